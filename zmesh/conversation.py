"""What is said between the processes, as lines for a person: `--log-level debug`.

`<` is a message that came, `>` one that goes, and `=` what became of it; after the sign stands who is at the other end.
How many tasks and which, never a payload. Signs of life, which everybody gives every second, are left out, and so is a
CREDIT that says nothing new.

Nobody who does not debug pays for this: each program chooses, when it is made, a line, a port or a broker that talks.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

from zmesh.messages import (
    Ack,
    Cancel,
    Chunk,
    Columns,
    Credit,
    Drain,
    Exited,
    Goodbye,
    Heartbeat,
    Hello,
    Kill,
    LeaseId,
    Message,
    PeerId,
    Refuse,
    Reply,
    Results,
    Role,
    Stats,
    Status,
    Submit,
    TaskId,
    Tasks,
    Welcome,
)

__all__ = ["Conversation", "called", "greeter", "task_name", "words"]

SHOWN_MAX = 8  # tasks, or runs of them, that one line names
PEERS_MAX = 4096  # whose last CREDIT is remembered


class Conversation:
    """One end of it, in the words of `log`."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._credits: dict[tuple[str, str], str] = {}

    def heard(self, whom: str, message: Message) -> None:
        self._tell("<", whom, message)

    def said(self, whom: str, message: Message) -> None:
        self._tell(">", whom, message)

    def became(self, text: str) -> None:
        self._log.debug("= %s", text)

    def _tell(self, sign: str, whom: str, message: Message) -> None:
        if isinstance(message, Heartbeat) or (isinstance(message, Credit) and not self._is_news(sign, whom, message)):
            return
        self._log.debug("%s %s %s", sign, whom, words(message), extra={"request_id": _requests(message)})

    def _is_news(self, sign: str, whom: str, credit: Credit) -> bool:
        if len(self._credits) >= PEERS_MAX:
            self._credits.clear()
        former, self._credits[sign, whom] = self._credits.get((sign, whom)), words(credit)
        return words(credit) != former


def called(role: Role, peer: PeerId, host: str, worker: str) -> str:
    """`worker` is its stage and number, of a worker."""
    match role:
        case Role.WORKER:
            return worker
        case Role.GATEWAY:
            return f"gateway {peer[:4].hex()}"  # with which the names of its tasks begin
        case Role.AGENT:
            return f"agent {host}"
    return role.name.lower()


def greeter(hello: Hello) -> str:
    """How whoever says this is called."""
    return called(hello.role, hello.peer, hello.host, f"{hello.stage}/{hello.worker_id}")


def task_name(task: TaskId) -> str:
    """`5f3a0c1b.12`: the gateway that had the request, and its number there."""
    return f"{task >> 32:08x}.{task & 0xFFFFFFFF}"


def words(message: Message) -> str:
    """What it says, in one line."""
    match message:
        case Submit(route=route, columns=columns):
            again = " again" if message.again else ""
            return f"SUBMIT{again} {route}: {_tasks(columns.ids, columns)}"
        case Tasks(lease=lease, columns=columns, acks=acks):
            also = f"; ACK {_leases(acks)}" if acks else ""
            return f"TASKS lease {lease}: {_tasks(columns.ids, columns)}{also}"
        case Results(lease=lease, statuses=statuses):
            return f"RESULTS lease {lease}: {_statuses(statuses)} in {message.compute_us / 1000:.1f} ms"
        case Reply(number=number, ids=ids, statuses=statuses):
            return f"REPLY {number}: {_statuses(statuses)}: {_tasks(ids)}"
        case Chunk(lease=lease, ids=ids):
            return f"CHUNK lease {lease}: {message.kind.name} of {_tasks(ids)}"
        case Cancel(ids=ids, reason=reason):
            return f"CANCEL {_tasks(ids)}: {reason}"
        case Ack(leases=leases, peers=peers):
            return f"ACK {_leases(leases)}" if leases else f"ACK {_count(len(peers), 'exit')}"
        case Credit(total=total, state=state):
            return f"CREDIT {total} in all, {state.name}"
        case _:
            return _rare_words(message)


def _rare_words(message: Message) -> str:
    """What peers say when they come, go, or something is wrong."""
    match message:
        case Hello():
            held = [*message.running, *message.waiting]
            holding = f", holding {_leases(held)}" if held else ""
            return f"HELLO from {greeter(message)} (pid {message.pid}){holding}"
        case Welcome():
            return f"WELCOME to epoch {message.epoch:x}"
        case Refuse(code=code, text=text):
            return f"REFUSE {code.name}: {text}"
        case Exited(stage=stage, worker_id=number, lease=lease, phase=phase):
            doing = f"in {phase.name} of lease {lease}" if lease else "idle"
            return f"EXITED {stage}/{number}, {doing}: {_last_line(message.reason)}"
        case Kill(lease=lease, reason=reason):
            return f"{'INTERRUPT' if message.interrupt else 'KILL'} lease {lease}: {reason}"
        case Drain(deadline_ms=milliseconds, reason=reason):
            return f"DRAIN within {milliseconds / 1000:g} s: {reason}"
        case Goodbye(leases=leases):
            return f"GOODBYE{f', unfinished: {_leases(leases)}' if leases else ''}"
        case Stats(snapshot=snapshot):
            return f"STATS, {len(snapshot)} characters" if snapshot else "STATS?"
    return type(message).__name__.upper()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _statuses(statuses: Sequence[int]) -> str:
    """`3 OK, 1 TIMEOUT`."""
    known = Counter(statuses)
    return ", ".join(f"{count} {_status(status)}" for status, count in sorted(known.items())) or "nothing"


def _status(status: int) -> str:
    return Status(status).name if status in Status._value2member_map_ else f"status {status}"


def _leases(leases: Sequence[LeaseId]) -> str:
    more = f" and {len(leases) - SHOWN_MAX} more" if len(leases) > SHOWN_MAX else ""
    return f"lease {' '.join(map(str, leases[:SHOWN_MAX]))}{more}"


def _tasks(ids: Sequence[TaskId], columns: Columns | None = None) -> str:
    """How many, and which: with their requests where they are known, else in runs, `5f3a0c1b.0-63`."""
    requests = _requests_of(columns) if columns else []
    if requests:
        pairs = zip(ids, columns.contexts or (), strict=True) if columns else ()
        named = [f"{task_name(id)} ({context['request_id']})" if context else task_name(id) for id, context in pairs]
    else:
        named = list(_runs(ids))
    more = " …" if len(named) > SHOWN_MAX else ""
    return f"{_count(len(ids), 'task')} {' '.join(named[:SHOWN_MAX])}{more}"


def _runs(ids: Sequence[TaskId]) -> Iterable[str]:
    start = last = None
    for id in [*ids, None]:
        if start is None or last is None:
            start = last = id
        elif id is None or id != last + 1:
            end = f"-{last & 0xFFFFFFFF}" if last > start else ""
            yield f"{task_name(start)}{end}"
            start = last = id
        else:
            last = id


def _requests(message: Message) -> list[str]:
    """The requests that its line names, so that they can be searched for."""
    return _requests_of(message.columns)[:SHOWN_MAX] if isinstance(message, Submit | Tasks) else []


def _requests_of(columns: Columns) -> list[str]:
    return [context["request_id"] for context in columns.contexts or () if context and "request_id" in context]


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no reason given"
