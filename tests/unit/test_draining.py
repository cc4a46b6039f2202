"""`zmesh drain` against brokers that answer late, anew, or not as they should."""

from typing import Any

import pytest

from zmesh import draining
from zmesh.draining import Errand
from zmesh.errors import DrainExpired, StartError, UsageError
from zmesh.messages import Drain

HOST, MESH = Errand("ipc:///x", "x", "", "there", 5.0), Errand("ipc:///x", "x", "", "", 0.0)


def agent(host: str, pid: int, *, draining: bool = False) -> dict[str, Any]:
    return {"host": host, "pid": pid, "draining": draining}


def snapshot(*agents: dict[str, Any], draining: bool = False) -> dict[str, Any]:
    return {"agents": list(agents), "draining": draining}


class Broker:
    """Stands in for the way to a broker: each time it is asked it takes the next of `answers`, the last for ever.

    An answer is a snapshot, a number (of another broker's epoch), or None: the connection is lost.
    """

    def __init__(self, first: dict[str, Any], *answers: dict[str, Any] | int | None) -> None:
        self.epoch, self.lost_at, self.snapshot = 1, None, first
        self._answers = list(answers)
        self.heard: list[Drain] = []

    def say(self, message: Drain) -> None:
        assert self.lost_at is None, "nobody is there"
        self.heard.append(message)

    def ask(self) -> None:
        answer = self._answers[0]
        if len(self._answers) > 1:
            self._answers.pop(0)
        if answer is None:
            self.lost_at = 0.0 if self.lost_at is None else self.lost_at
        elif isinstance(answer, int):
            self.epoch, self.lost_at = answer, None
        else:
            self.snapshot = answer


def watch(errand: Errand, broker: Broker) -> Broker:
    draining._Watch(errand, broker.snapshot).until_gone(broker)  # type: ignore[arg-type]
    return broker


def test_a_host_is_gone_when_its_agents_are_and_is_told_once():
    there, other = agent("there", 1), agent("here", 1)
    before = snapshot(there, agent("there", 2), other)
    drains = snapshot(agent("there", 1, draining=True), agent("there", 2, draining=True), other)
    last = snapshot(agent("there", 2, draining=True), other)
    broker = watch(HOST, Broker(before, before, drains, drains, last, snapshot(other)))
    assert broker.heard == [Drain(5000, "zmesh drain", "there")]
    assert broker.snapshot == snapshot(other)


def test_an_answer_from_before_the_question_proves_nothing():
    before = snapshot(agent("there", 1))
    broker = Broker(before, before, before, before)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DrainExpired) as expired:
        patch.setattr(Errand, "patience", 0.05)
        watch(HOST, broker)
    assert str(expired.value) == "host there has not left within 0.05 s; it goes on by itself"
    assert expired.value.exit_code == 4


def test_who_is_started_again_on_a_host_is_not_waited_for():
    before, drains = snapshot(agent("there", 1)), snapshot(agent("there", 1, draining=True))
    watch(HOST, Broker(before, drains, snapshot(agent("there", 9))))
    watch(HOST, Broker(before, drains, snapshot(agent("there", 1))))  # process 1 of a container, each time


def test_a_mesh_is_gone_when_its_broker_is():
    broker = watch(MESH, Broker(snapshot(), snapshot(), snapshot(draining=True), None))
    assert broker.heard == [Drain(0, "zmesh drain")]


def test_another_broker_in_its_place_is_left_alone():
    assert watch(MESH, Broker(snapshot(), snapshot(draining=True), 2)).heard == [Drain(0, "zmesh drain")]


def test_a_broker_that_dies_before_it_has_said_that_it_heard_us_is_asked_again_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(draining, "RETURN_SECONDS", float("inf"))
    broker = Broker(snapshot(), None, None, 2, snapshot(draining=True), None)
    assert watch(MESH, broker).heard == [Drain(0, "zmesh drain")] * 2


def test_a_directory_is_waited_for_after_its_broker_is_gone(monkeypatch: pytest.MonkeyPatch):
    looks = [True, True, False]
    monkeypatch.setattr(draining, "is_in_use", lambda path: looks.pop(0))
    watch(Errand("ipc:///x", "x", "/x", "", 0.0), Broker(snapshot(), snapshot(draining=True), None))
    assert looks == []


@pytest.mark.parametrize(
    ("connect", "path", "error"),
    [("", "", UsageError), ("tcp://127.0.0.1:1", "x", UsageError), ("", "/nowhere", StartError)],
)
def test_what_cannot_be_asked(connect: str, path: str, error: type[StartError]):
    with pytest.raises(error):
        draining.errand(connect, path, "", insecure=False, seconds=0)


def test_a_host_is_looked_for_while_its_agent_may_be_on_its_way():
    """Its workers may be there already."""
    broker = Broker({}, {}, snapshot(agent("here", 1)), snapshot(agent("here", 1), agent("there", 2)))
    draining._find(broker, HOST)  # type: ignore[arg-type]
    assert draining._hosts(broker) == ["here", "there"]  # type: ignore[arg-type]


def test_a_host_that_nobody_knows_is_told_from_a_broker_that_nobody_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(draining, "NOBODY_SECONDS", 0.01)
    with pytest.raises(StartError, match=r"^no host there has joined; the hosts are: here$"):
        draining._find(Broker({}, snapshot(agent("here", 1))), HOST)  # type: ignore[arg-type]
    with pytest.raises(StartError, match=r"^no broker answers at x; "):
        draining._find(Broker({}, {}), HOST)  # type: ignore[arg-type]
