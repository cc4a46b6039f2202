from zmesh import Server, Worker
from zmesh.mixins import PickleIPCMixin


class Parse(PickleIPCMixin, Worker):
    def forward(self, data):
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Parse)
    server.run()
