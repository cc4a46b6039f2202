"""Code that takes its time in `forward`, and says when it was broken off."""

import time
from typing import Any

import zmesh

log = zmesh.get_logger()


class Stubborn(zmesh.Worker):
    """The first item's `how` says what to do for `ms`: spin, sleep, or poll for being cancelled."""

    def forward(self, data: list[dict[str, Any]]) -> list[Any]:
        end = time.monotonic() + max(item.get("ms", 0) for item in data) / 1000
        log.info("doing %s", data[0].get("how"))
        match data[0].get("how"):
            case "sleep":
                time.sleep(end - time.monotonic())
            case "poll":
                tasks = [zmesh.current_task(i) for i in range(len(data))]
                while not all(task.cancelled for task in tasks) and time.monotonic() < end:
                    pass
                told = [task.cancelled for task in tasks]
                log.info("told: %s", told)
                return told
            case _:
                while time.monotonic() < end:
                    pass
        return data


class Witness(zmesh.Worker):
    """Spins for `ms` and answers with its nonce, and with what befell earlier batches: their first nonce and how many
    milliseconds passed from the first `deserialize` to the blow."""

    def __init__(self) -> None:
        self.begun_at: float | None = None
        self.blows: list[tuple[int, float]] = []

    def deserialize(self, data: bytes) -> Any:
        if self.begun_at is None:
            self.begun_at = time.monotonic()
        return super().deserialize(data)

    def forward(self, data: list[dict[str, Any]]) -> list[Any]:
        begun_at, self.begun_at = self.begun_at or 0.0, None
        end = time.monotonic() + data[0]["ms"] / 1000
        try:
            while time.monotonic() < end:
                pass
        except BaseException:
            self.blows.append((data[0]["nonce"], 1000 * (time.monotonic() - begun_at)))
            raise
        blows, self.blows = self.blows, []
        return [{"nonce": item["nonce"], "blows": blows} for item in data]


class Timed(Stubborn):
    """The same in a stage that has a `timeout`."""


if __name__ == "__main__":
    server = zmesh.Server()
    server.append_worker(Timed, timeout=0.5, max_batch_size=4, route="/timed")
    server.append_worker(Stubborn, max_batch_size=4, route="/patient")
    server.run()
