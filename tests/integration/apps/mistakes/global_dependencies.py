from fastapi import Depends

from zmesh import Server, Worker


class Parse(Worker):
    def forward(self, data):
        return data


def key():
    return None


if __name__ == "__main__":
    server = Server()
    server.app.router.dependencies.append(Depends(key))
    server.append_worker(Parse)
    server.run()
