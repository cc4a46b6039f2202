from helper import declare

if __name__ == "__main__":
    declare().run()
