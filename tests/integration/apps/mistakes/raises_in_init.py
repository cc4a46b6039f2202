from zmesh import Server, Worker


class Parse(Worker):
    def __init__(self):
        raise RuntimeError("no weights here")

    def forward(self, data):
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Parse)
    server.run()
