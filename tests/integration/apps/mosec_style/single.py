"""One stage, JSON, errors of every kind."""

from zmesh import ClientError, Server, ServerError, ValidationError, Worker, get_logger
from zmesh.errors import MosecError

logger = get_logger()


class Square(Worker):
    example = {"x": 1}

    def __init__(self):
        super().__init__()
        logger.info("a worker of %s", type(self).__name__)

    def forward(self, data: dict) -> dict:
        if "x" not in data:
            raise ValidationError("'x' is missing\nsend a number")
        if data["x"] == "client":
            raise ClientError
        if data["x"] == "server":
            raise ServerError("the disk is full")
        if data["x"] == "mosec":
            raise MosecError("on purpose")
        return {"x": data["x"] ** 2}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Square)
    server.run()
