from zmesh import Server, Stage, Worker


class Parse(Worker):
    def __init__(self):
        raise RuntimeError("no weights here")

    def forward(self, data):
        return data


if __name__ == "__main__":
    server = Server()
    server.register_runtime({"/inference": [Stage(Parse, name="reader")]})
    server.run()
