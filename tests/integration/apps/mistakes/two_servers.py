from zmesh import Server, Worker


class Parse(Worker):
    def forward(self, data):
        return data


first, second = Server(), Server()
first.append_worker(Parse, route="/first")
second.append_worker(Parse, route="/second")
