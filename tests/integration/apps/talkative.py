"""For logs: stages that say something by the logger of their module, of an item, and by none; and a large batch."""

import logging

from zmesh import Server, Worker, current_task

log = logging.getLogger(__name__)
log.info("imported")


class Widen(Worker):
    shared_memory_bytes = None  # so that the batch goes through the broker

    def forward(self, data):
        log.info("widening %s", data["text"])
        if data["text"] == "raise":
            raise RuntimeError("no cheese\n2026-01-01T00:00:00.000Z INFO agent forged")
        return b"x" * 2 * 1024 * 1024


class Measure(Worker):
    def forward(self, items):
        for index in range(len(items)):
            current_task(index).logger.info("measuring")
        return [len(item) for item in items]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Widen, num=2, route="/measure")
    server.append_worker(Measure, max_batch_size=4, route="/measure")
    server.run()
