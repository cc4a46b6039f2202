"""A worker for every way to answer wrongly, and one that answers well."""

import os
import time

from zmesh import Server, Worker


class Parse(Worker):
    def forward(self, data):
        return data


class Raises(Worker):
    def forward(self, data):
        raise RuntimeError("out of cheese")


class Short(Worker):
    def forward(self, data):
        return []


class NoList(Worker):
    def forward(self, data):
        return 5


class NotJson(Worker):
    def forward(self, data):
        return {1, 2}


class Text(Worker):
    def forward(self, data):
        return data

    def serialize(self, data):
        return "text"


class Picky(Worker):
    def deserialize(self, data):
        return super().deserialize(data)["text"]

    def forward(self, data):
        return data


class Slow(Worker):
    def forward(self, data):
        time.sleep(data["seconds"])
        return data


class Dies(Worker):
    def forward(self, data):
        os._exit(9)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Parse)
    server.append_worker(Raises, route="/raises")
    server.append_worker(Short, max_batch_size=8, route="/short")
    server.append_worker(NoList, max_batch_size=8, route="/no-list")
    server.append_worker(NotJson, route="/not-json")
    server.append_worker(Text, route="/text")
    server.append_worker(Picky, route="/picky")
    server.append_worker(Slow, route="/slow")
    server.append_worker(Dies, route="/dies")
    server.run()
