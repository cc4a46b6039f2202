import sys

from zmesh import Server, Worker


class Parse(Worker):
    def __init__(self):
        sys.exit("no card here")

    def forward(self, data):
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Parse)
    server.run()
