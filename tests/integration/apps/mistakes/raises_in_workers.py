from zmesh import Server, Worker

if __name__ != "__main__":
    raise RuntimeError("only in workers")


class Parse(Worker):
    def forward(self, data):
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Parse)
    server.run()
