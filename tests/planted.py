"""Mistakes that are planted into the core on purpose by more than one layer of tests; each has to be caught."""

import pytest

from zmesh.core.workers import Crew, Lease, Worker


def credit_is_granted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    release = Crew.release

    def generous(crew: Crew, worker: Worker, lease: Lease, now: float, grant: bool) -> None:
        release(crew, worker, lease, now, grant)
        worker.total += grant
        crew.sort(worker)

    monkeypatch.setattr(Crew, "release", generous)
