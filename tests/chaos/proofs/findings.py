"""What a check of `scripts/prove` says: figures, and whether each claim about them holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.chaos.history import Answer, History
from tests.chaos.layouts import TormentedMesh, tormented
from tests.chaos.run import Clients
from tests.harness import wait_until

SERVED_SECONDS = 60.0


@dataclass
class Findings:
    """`is_short` asks for the form that CI has time for."""

    is_short: bool
    say: Callable[[str], None]
    failed: int = 0
    claims: int = 0

    def note(self, text: str) -> None:
        self.say(f"          {text}")

    def hold(self, is_so: bool, text: str) -> None:
        self.claims += 1
        self.failed += not is_so
        self.say(f"  {'ok    ' if is_so else 'FAILED'}  {text}")


@dataclass
class Loaded:
    """A mesh of `chaos_stages.py`, and clients in a closed loop that write a history."""

    mesh: TormentedMesh
    load: Clients
    directory: Path
    exits: dict[str, int] = field(default_factory=dict)

    def wait_served(self, more: int = 500) -> None:
        """Until so many more requests were answered."""
        already = self.load.told.get("answered", 0)

        def is_enough() -> bool:
            self.load.check_alive()
            return self.load.told.get("answered", 0) >= already + more

        wait_until(is_enough, SERVED_SECONDS, f"{more} more answers; {self.load.told}")

    def finish(self, seconds: float = 60.0) -> History:
        """All that was sent is answered, or given up, after this."""
        self.load.stop(seconds)
        return History.read(self.directory)

    def deaths(self) -> int:
        return sum(stage["counters"]["deaths"] for stage in self.mesh.snapshot()["stages"])


@contextmanager
def loaded(
    layout: str,
    *,
    clients: int = 64,
    route: str = "double",
    workers: int = 2,
    batch: int = 16,
    service_ms: float = 5.0,
    timeout: float = 30.0,
    slow_first: float = 0.0,
    before: tuple[str, ...] = (),
    popen: Mapping[str, Any] | None = None,
) -> Iterator[Loaded]:
    """`timeout` and `slow_first` in seconds; the latter is what the first batch of every worker takes, if not 0."""
    env = {
        "CHAOS_MS": str(service_ms),
        "CHAOS_WORKERS": str(workers),
        "CHAOS_BATCH": str(batch),
        "CHAOS_ROUTES": route,
        "CHAOS_SLOW_SECONDS": str(slow_first),
    }
    with TemporaryDirectory(prefix="zmesh-proof-") as name:
        directory = Path(name)
        if slow_first:
            (directory / "slow-first").touch()
        how = {"before": before, "popen": dict(popen or {})}
        with tormented(layout, directory, env, int(timeout * 1000), **how) as mesh:
            words = {"port": mesh.port, "history": str(directory / "clients.jsonl"), "clients": clients}
            load = Clients({**words, "routes": [f"/{route}"], "timeout": timeout})
            try:
                yield Loaded(mesh, load, directory)
            finally:
                load.kill()


def is_right(answer: Answer, nonce: int) -> bool:
    return answer.status == 200 and (answer.request_id, answer.nonce, answer.answer) == (nonce, nonce, 2 * nonce + 1)


def outcomes(history: History) -> Counter[str]:
    """Of every request: the status of its answer, `wrong` for a 200 that is not its own, or what became of it."""
    counts: Counter[str] = Counter(twice=len(history.extras))
    for nonce, request in history.requests.items():
        if not request.answers:
            counts["broken" if request.broken is not None else "lost"] += 1
            continue
        answer = request.answers[0]
        is_wrong = answer.status == 200 and not is_right(answer, nonce)
        counts["wrong" if is_wrong else str(answer.status)] += 1
        counts["twice"] += len(request.answers) > 1
    return +counts


def in_words(counts: Mapping[str, int]) -> str:
    names = {"broken": "broken off", "lost": "never answered", "twice": "answered twice", "wrong": "answered wrongly"}
    return ", ".join(f"{count} {names.get(name, f'answered {name}')}" for name, count in sorted(counts.items()))


def longest_wait(history: History) -> float:
    waits = [request.answers[0].at - request.sent for request in history.requests.values() if request.answers]
    return max(waits, default=0.0)


def hold_all_right(found: Findings, history: History) -> None:
    counts = outcomes(history)
    total = len(history.requests)
    is_so = total > 0 and counts == {"200": total}
    found.hold(is_so, f"{total} requests: {in_words(counts)}; longest wait {longest_wait(history):.2f} s")
