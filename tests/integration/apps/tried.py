"""For dry runs: a pipeline with an environment, batches, a route without an example, and one that hangs if asked to."""

import logging
import os
import signal

from zmesh import Server, Worker, get_logger

log = logging.getLogger(__name__)


class Parse(Worker):
    multi_examples = [{"text": "how many words"}, {"text": "two words"}]

    def forward(self, data):
        return data["text"]


class Count(Worker):
    def forward(self, texts):
        print("to stdout")
        log.info("counting")
        if os.environ.get("HANG"):
            get_logger().info("hanging")
            signal.pause()
        return [{"words": len(text.split()), "card": os.environ["CARD"]} for text in texts]


class Silent(Worker):
    def forward(self, data):
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Parse, route="/words")
    server.append_worker(Count, num=2, max_batch_size=8, env=[{"CARD": "first"}, {"CARD": "second"}], route="/words")
    server.append_worker(Silent, route="/silent")
    server.run()
