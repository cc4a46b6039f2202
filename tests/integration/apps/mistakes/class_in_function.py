from zmesh import Server, Worker


def make():
    class Parse(Worker):
        def forward(self, data):
            return data

    return Parse


server = Server()
server.append_worker(make())

if __name__ == "__main__":
    server.run()
