from zmesh import Server, Worker


class Parse(Worker):
    def forward(self, data):
        return data


server = Server()
server.append_worker(Parse)
