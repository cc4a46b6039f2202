"""Imported by mistake_elsewhere.py."""

from zmesh import Server, Worker


class Parse(Worker):
    def forward(self, data):
        return data


def declare() -> Server:
    server = Server()
    server.append_worker(Parse, num=0)
    return server
