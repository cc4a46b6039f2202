from zmesh import Server, Worker

if __name__ == "__main__":

    class Parse(Worker):
        def forward(self, data):
            return data

    server = Server()
    server.append_worker(Parse)
    server.run()
