"""What an agent does when the broker tells it to end or to interrupt a worker: only if that is what it still does."""

import fcntl
import os
import select
import sys
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest

from zmesh.agent import Agent, obey
from zmesh.messages import Kill, LeaseId, PeerId, Phase
from zmesh.pipe import Slate
from zmesh.processes import Child, Slot
from zmesh.transport import raise_file_limit

CHILD = """
import signal, sys
from zmesh.pipe import Slate, child_pipe
pipe = child_pipe()
signal.signal(signal.SIGUSR1, lambda *_: pipe.send(say="interrupted", ordered=slate.ordered()))
slate = Slate.open(pipe.receive_first(10)["slate"])
slate.write(7, 3)
pipe.send(say="ready")
while True:
    signal.pause()
"""


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child("A/1", [sys.executable, "-c", CHILD], {}, slate=Slate.make())
    yield made
    made.kill()
    made.reap()
    made.close()


def hear(child: Child) -> list[dict[str, object]]:
    assert select.select([child.pipe.fd], [], [], 10)[0], "the child says nothing"
    return child.pipe.receive() or []


def order(child: Child, **fields: Any) -> None:
    slots = [Slot("worker", None, 1, None, child=child), Slot("worker", None, 2, None)]  # type: ignore[arg-type]
    obey(Kill(**{"peer": child.peer, "lease": LeaseId(7), "reason": "test", "interrupt": True, **fields}), slots)


def test_a_worker_is_interrupted_in_the_lease_that_was_meant(child: Child):
    assert hear(child) == [{"say": "ready"}]
    order(child, lease=LeaseId(6))
    order(child, peer=PeerId(bytes(16)))
    assert child.slate is not None and child.slate.ordered() == 0, "neither was about what it does"
    order(child)
    assert hear(child) == [{"say": "interrupted", "ordered": 7}]
    assert child.slate.read()[:2] == (7, Phase.FORWARD), "and it lives"


def test_a_worker_is_killed_in_the_lease_that_was_meant(child: Child):
    hear(child)
    order(child, interrupt=False)
    assert hear(child) == []


def test_an_interrupt_for_one_that_has_just_ended_is_harmless(child: Child):
    hear(child)
    child.kill()
    hear(child)
    order(child)


def test_an_agent_with_many_children_ends_them_all():
    """select(2) knows no descriptor from 1024 on."""
    raise_file_limit()
    child = Child("A/1", [sys.executable, "-c", "import time; time.sleep(60)"], {}, slate=Slate.make())
    low, child.pidfd = child.pidfd, fcntl.fcntl(child.pidfd, fcntl.F_DUPFD_CLOEXEC, 1024)
    os.close(low)
    agent = Agent.__new__(Agent)
    agent._slots = [Slot("worker", None, 1, None, child=child)]  # type: ignore[arg-type]
    agent._link, agent._line = Mock(joined=False), Mock()
    agent._end_all()
    assert not os.path.exists(f"/proc/{child.pid}")
    child.close()
