"""One real worker process, with a test in the place of its agent and of its broker: every frame passes through here."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zmesh import messages
from zmesh.config import Limits, Plan, RoutePlan, Settings, StagePlan
from zmesh.messages import Columns, Credit, Hello, LeaseId, Message, Results, SessionId, State, Status, TaskId, Welcome
from zmesh.pipe import Slate
from zmesh.processes import Child
from zmesh.transport import Context, Router
from zmesh.wire import decode, encode

LIMITS = Limits()
EPOCH, SESSION = 5, SessionId(9)
ONLY = int(State.INGRESS | State.EGRESS)


class LoneWorker:
    """`child` is the worker, `outcomes` are status and payload by lease and row."""

    def __init__(self, router: Router, child: Child) -> None:
        self.router, self.child = router, child
        self.outcomes: dict[int, dict[int, tuple[Status, bytes]]] = {}
        self.sizes: dict[int, int] = {}
        self.credit = 0
        self._address = b""
        self._acks: list[LeaseId] = []
        self._events = select.poll()
        self._events.register(router.fd, select.POLLIN)

    def tell(self, message: Message) -> None:
        sent = self.router.send(self._address, encode(message, SESSION))
        assert sent.value == "sent", f"{message} was not taken: {sent.value}"

    def lease(self, lease: int, bodies: Sequence[bytes], remaining_ms: int = 60_000) -> None:
        """TASKS; row i has the id `100 * lease + i`."""
        count = len(bodies)
        ids = [TaskId(100 * lease + row) for row in range(count)]
        columns = Columns(ids, [ONLY] * count, [remaining_ms] * count, [1] * count, [0] * count, list(bodies))
        acks, self._acks = self._acks, []
        self.sizes[lease], self.outcomes[lease] = count, {}
        self.tell(messages.Tasks(LeaseId(lease), columns, acks))

    def hear(self) -> None:
        """Take everything that the worker has said; every frame must be the protocol, every row must be new."""
        while (frames := self.router.receive()) is not None:
            self._address = bytes(frames[0])
            _, message = decode(frames[1:], LIMITS)
            match message:
                case Hello():
                    welcome = Welcome(
                        messages.PROTOCOL_VERSION, messages.PeerId(bytes(16)), EPOCH, SESSION, 60_000, 600_000,
                        LIMITS.frame_bytes_max, LIMITS.message_rows_max, LIMITS.message_inline_bytes_max, ["Lone"], [],
                    )  # fmt: skip
                    self.tell(welcome)
                case Credit():
                    self.credit = message.total
                case Results():
                    self._take(message)
                case _:
                    raise AssertionError(f"a worker should not say {message}")

    def _take(self, results: Results) -> None:
        rows = self.outcomes[results.lease]
        for row, status, payload in zip(results.rows, results.statuses, results.payloads, strict=True):
            assert row not in rows, f"row {row} of lease {results.lease} is answered twice"
            assert row < self.sizes[results.lease]
            rows[row] = Status(status), bytes(payload)
        if self.is_done(results.lease):
            self._acks.append(results.lease)

    def is_done(self, lease: int) -> bool:
        return len(self.outcomes[lease]) == self.sizes[lease]

    def wait(self, condition: Any, seconds: float = 20.0) -> None:
        """Hear until `condition()`."""
        end = time.monotonic() + seconds
        self.hear()
        while not condition():
            assert time.monotonic() < end, f"waited {seconds} s; the slate says {self.slate.read()}"
            self._events.poll(1)
            self.hear()

    def answer(self, lease: int, seconds: float = 20.0) -> list[tuple[Status, bytes]]:
        """Of all its rows, once they are there."""
        self.wait(lambda: self.is_done(lease), seconds)
        return [self.outcomes[lease][row] for row in range(self.sizes[lease])]

    @property
    def slate(self) -> Slate:
        assert self.child.slate is not None
        return self.child.slate


@contextlib.contextmanager
def lone_worker(app: Path, cls: str, *, timeout: float = 0.0, max_batch_size: int = 4) -> Iterator[LoneWorker]:
    """Its stage runs `cls` of `app` and has this `timeout` in seconds. It is ready when it is handed out."""
    stage = StagePlan(name="Lone", worker=cls, timeout_seconds=timeout, max_batch_size=max_batch_size)
    plan = Plan(stages=(stage,), routes=(RoutePlan(path="/lone", stages=("Lone",)),))
    context = Context()
    with tempfile.TemporaryDirectory(prefix="zmesh-lone-") as place:
        router = context.router(LIMITS.frame_bytes_max, f"ipc://{place}/0.s")
        router.bind()
        document = {
            "app": str(app), "user_args": [], "plan": plan.to_json(), "settings": Settings(log_level="error").to_json(),
            "stage": "Lone", "worker_id": 1, "front": f"ipc://{place}/front.s", "role": "worker", "fronts": [],
        }  # fmt: skip
        env = {"PYTHONPATH": os.pathsep.join(sys.path)}
        child = Child("Lone/1", [sys.executable, "-m", "zmesh.stage"], document, env=env, slate=Slate.make())
        try:
            worker = LoneWorker(router, child)
            worker.wait(lambda: worker.credit)
            yield worker
        finally:
            child.kill()
            child.reap()
            child.close()
            router.close()
            context.close()
