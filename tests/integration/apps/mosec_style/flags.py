"""Flags of its own, read beside those of the server, in every process."""

import argparse

from zmesh import Server, Worker

parser = argparse.ArgumentParser()
parser.add_argument("--scale", type=int, default=1)
parser.add_argument("--fast", action="store_true")
args, _ = parser.parse_known_args()


class Scale(Worker):
    def forward(self, data: dict) -> dict:
        return {"x": args.scale * data["x"], "fast": args.fast}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Scale)
    server.run()
