from zmesh import Server, Worker


class Parse(Worker):
    example = {"x": 1}

    def forward(self, data):
        return data


class Count(Worker):
    def forward(self, data):
        return len(data["text"])


if __name__ == "__main__":
    server = Server()
    server.append_worker(Parse)
    server.append_worker(Count)
    server.run()
