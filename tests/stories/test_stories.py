"""Plays the transcripts in this folder: whole situations, told in sentences, against the dispatcher.

A story is a text file. `given` lines say who is there. A `when` line and the `and` lines under it happen in one turn of
the broker; the `then` lines under them are all that it does about it, in order (heartbeats aside), or `nothing`. Text
between the blocks is for the reader.

    ZMESH_REWRITE=1 scripts/test tests/stories     # writes what happens now under `then`; read the diff
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import Signals

import pytest

from tests.unit.core.world import Agent, Gateway, Peer, WorkerPeer, World, stage
from zmesh.config import Plan, RoutePlan
from zmesh.core.events import DispatcherEvent, Tick
from zmesh.messages import Role, Status, WorkerState

FOLDER = Path(__file__).parent
STORIES = sorted(FOLDER.glob("*.txt"))
IS_REWRITING = os.environ.get("ZMESH_REWRITE") == "1"
NOTHING = "nothing"


class Scene:
    """Where a story takes place; every sentence is a method with the pattern of its words."""

    def __init__(self) -> None:
        self.stages: list[dict[str, object]] = []
        self.routes: dict[str, list[str]] = {}
        self.limits: dict[str, object] = {}
        self.people: dict[str, Peer] = {}
        self._world: World | None = None

    @property
    def world(self) -> World:
        if self._world is None:
            self._world = World(*[stage(**one) for one in self.stages], routes=self.routes or None, **self.limits)
        return self._world

    # Given

    def has_stage(self, name: str, size: str, once: str | None, timeout: str | None) -> None:
        settings = {"name": name, "max_batch_size": int(size), "retry": once is None}
        self.stages.append({**settings, "timeout_seconds": float(timeout or 0)})

    def has_route(self, path: str, names: str) -> None:
        self.routes[path] = names.split(" then ")

    def has_limit(self, name: str, number: str) -> None:
        self.limits[name] = float(number) if "." in number else int(number)

    def has_gateway(self, name: str) -> None:
        self.people[name] = self.world.gateway(name)

    def has_agent(self, name: str) -> None:
        self.people[name] = self.world.agent(name)

    def has_worker(self, name: str, of: str | None, credit: str) -> None:
        self.people[name] = self.world.worker(name, of or "", credit=int(credit))

    # When

    def submits(self, name: str, ids: str, path: str | None, again: str | None, ms: str | None) -> DispatcherEvent:
        given = {"route": path} if path else {}
        left = {"ms": int(ms)} if ms else {}
        return self.gateway(name).submits(*numbers(ids), again=again is not None, **given, **left)

    def cancels(self, name: str, ids: str) -> DispatcherEvent:
        return self.gateway(name).cancels(*numbers(ids))

    def acknowledges(self, name: str, number: str) -> DispatcherEvent:
        return self.gateway(name).beats(int(number))

    def grants(self, name: str, credit: str) -> DispatcherEvent:
        return self.worker(name).credits(int(credit))

    def drains(self, name: str) -> DispatcherEvent:
        return self.worker(name).credits(0, WorkerState.DRAINING)

    def finishes(self, name: str, lease: str, rows: str | None, status: str | None, bad: str | None) -> DispatcherEvent:
        statuses = dict.fromkeys(numbers(bad or ""), Status[status]) if status else {}
        return self.worker(name).finishes(int(lease), *numbers(rows or ""), statuses=statuses)

    def finishes_after(self, name: str, lease: str, chunks: str) -> DispatcherEvent:
        return self.worker(name).finishes(int(lease), chunks=numbers(chunks))

    def streams(self, name: str, text: str, ids: str, lease: str, seq: str | None) -> DispatcherEvent:
        return self.worker(name).streams(int(lease), *numbers(ids), seq=int(seq or 0), text=text)

    def finishes_with(self, name: str, lease: str, size: str) -> DispatcherEvent:
        return self.worker(name).finishes(int(lease), payload=bytes(int(size)))

    def finishes_of_old(self, name: str, ids: str) -> DispatcherEvent:
        return self.worker(name).finishes_of_old(*numbers(ids))

    def reports(self, name: str, worker: str, cause: str, lease: str | None) -> DispatcherEvent:
        code = -Signals[cause] if cause.startswith("SIG") else int(cause.removeprefix("exit code "))
        agent = self.people[name]
        assert isinstance(agent, Agent), f"{name} is no agent"
        return agent.reports(self.worker(worker), code, lease=int(lease or 0))

    def is_unreachable(self, name: str) -> DispatcherEvent:
        return self.people[name].is_unreachable()

    def cannot_be_sent(self, lease: str, name: str) -> DispatcherEvent:
        return self.worker(name).cannot_be_sent(int(lease))

    def returns(self, name: str, running: str | None, waiting: str | None, answered: str | None) -> DispatcherEvent:
        self.people[name].reconnects()
        return self.people[name].greets(
            running=numbers(running or ""),
            waiting=numbers(waiting or ""),
            answered=numbers(answered or ""),
            epoch=self.world.mesh.directory.epoch,
        )

    def is_of_another_app(self, role: str, of: str | None, stages: str, path: str, way: str) -> DispatcherEvent:
        plan = Plan(
            stages=tuple(stage(name) for name in stages.split(", ")),
            routes=(RoutePlan(path=path, stages=tuple(way.split(" then "))),),
        )
        socket = 1 + [one["name"] for one in self.stages].index(of) if of else 0
        stranger = self.world.stranger(f"the {role}", Role[role.upper()], socket)
        return stranger.greets(stage=of or "", fingerprint=plan.fingerprint, shape=plan.shape)

    def leaves(self, name: str) -> DispatcherEvent:
        return self.people[name].leaves()

    def gateway(self, name: str) -> Gateway:
        found = self.people[name]
        assert isinstance(found, Gateway), f"{name} is no gateway"
        return found

    def worker(self, name: str) -> WorkerPeer:
        found = self.people[name]
        assert isinstance(found, WorkerPeer), f"{name} is no worker"
        return found


def numbers(text: str) -> list[int]:
    return [int(word) for word in re.findall(r"\d+", text)]


IDS = r"(\d+(?:(?:, | and )\d+)*)"
CAUSE = r"(SIG\w+|exit code \d+)"
GIVEN: dict[str, Callable[..., None]] = {
    r"stage (\w+) with batches of (\d+)(, once only)?(?: and a timeout of ([\d.]+) s)?": Scene.has_stage,
    r"route (/\S+) through (.+)": Scene.has_route,
    r"limit (\w+) of ([\d.]+)": Scene.has_limit,
    r"gateway (\w+)": Scene.has_gateway,
    r"agent (\w+)": Scene.has_agent,
    r"worker (\w+)(?: of (\w+))? with credit (\d+)": Scene.has_worker,
}
WHEN: dict[str, Callable[..., DispatcherEvent]] = {
    rf"(\w+) submits {IDS}(?: to (/\S+))?( again)?(?: with (\d+) ms left)?": Scene.submits,
    rf"(\w+) cancels {IDS}": Scene.cancels,
    r"(\w+) acknowledges (\d+)": Scene.acknowledges,
    r"(\w+) grants credit (\d+)": Scene.grants,
    r"(\w+) drains": Scene.drains,
    rf"(\w+) finishes lease (\d+)(?:, rows? {IDS})?(?:, with (\w+) for rows? {IDS})?": Scene.finishes,
    rf"(\w+) finishes lease (\d+) after {IDS} events": Scene.finishes_after,
    rf"(\w+) says '([^']*)' to {IDS} of lease (\d+)(?: as number (\d+))?": Scene.streams,
    r"(\w+) finishes lease (\d+) with (\d+) bytes each": Scene.finishes_with,
    rf"(\w+) finishes what the former broker gave it: {IDS}": Scene.finishes_of_old,
    rf"(\w+) reports that (\w+) died of {CAUSE}(?:, running lease (\d+))?": Scene.reports,
    r"(\w+) cannot be reached": Scene.is_unreachable,
    r"lease (\d+) cannot be sent to (\w+)": Scene.cannot_be_sent,
    rf"(\w+) says hello again(?:, running {IDS})?(?:, holding {IDS})?(?:, having answered {IDS})?": Scene.returns,
    r"(\w+) leaves": Scene.leaves,
    r"an? (\w+)(?: of (\w+))? says hello, whose app has the stages ([\w, ]+?) and the route (/\S+) through (.+)": (
        Scene.is_of_another_app
    ),
}


def understand(scene: Scene, sentences: dict[str, Callable[..., object]], text: str) -> object:
    for pattern, act in sentences.items():
        if match := re.fullmatch(pattern, text):
            return act(scene, *match.groups())
    raise AssertionError(f"nobody understands {text!r}")


def blocks(lines: list[str]) -> Iterator[tuple[list[str], list[str], list[str]]]:
    """(what is said before, the `when` and `and` lines, the `then` lines) of each turn, in order."""
    before, happened, done = [], [], []
    for line in lines:
        word = line.split(" ")[0]
        if happened and word not in {"and", "then"}:
            yield before, happened, done
            before, happened, done = [], [], []
        {"when": happened, "and": happened, "then": done}.get(word, before).append(line)
    yield before, happened, done


def play(lines: list[str]) -> list[str]:
    """The story as it goes now."""
    scene, told = Scene(), []
    for before, happened, _ in blocks(lines):
        for line in before:
            if line.startswith("given "):
                understand(scene, GIVEN, line.removeprefix("given "))
        told += before + happened
        if happened:
            told += [f"then {effect}" for effect in turn(scene, happened) or [NOTHING]]
    return told


def turn(scene: Scene, happened: list[str]) -> list[str]:
    """Time that passes is told first, with everybody who is well giving signs of life."""
    effects: list[str] = []
    said: list[DispatcherEvent] = [Tick()]
    for line in happened:
        text = line.partition(" ")[2]
        if match := re.fullmatch(r"([\d.]+) (ms|s) pass(?:es)?(?:, (\w+) being silent)?", text):
            silent = [scene.people[match[3]]] if match[3] else []
            effects += scene.world.wait(float(match[1]) / (1000 if match[2] == "ms" else 1), silent=silent)
        else:
            event = understand(scene, WHEN, text)
            assert isinstance(event, DispatcherEvent)
            said.append(event)
    return effects + scene.world.turn(*said)


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_story_goes_as_it_is_told(path: Path):
    lines = path.read_text(encoding="utf-8").splitlines()
    told = play(lines)
    if IS_REWRITING:
        path.write_text("\n".join(told) + "\n", encoding="utf-8")
    assert told == lines


def test_there_are_stories():
    assert len(STORIES) >= 4


def test_a_sentence_nobody_understands_is_an_error():
    with pytest.raises(AssertionError, match="nobody understands 'w1 sings'"):
        play(["given stage embed with batches of 2", "given worker w1 with credit 1", "when w1 sings"])
