from zmesh import Server, Worker


class Parse(Worker):
    def forward(self, data):
        return data


def main():
    server = Server()
    server.append_worker(Parse)
    server.run()
