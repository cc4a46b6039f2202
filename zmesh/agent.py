"""Starts, watches and restarts the processes of one host: the parent of everything that a verb of `zmesh` runs here.

The agent loads no model and opens no request. It waits in one poller for signals, for exits (pidfds), for what its
children say (pipes) and for the broker, so that an exit is reported within milliseconds whatever the others do. It owns
the listening HTTP socket: a gateway that dies leaves it open, with the clients in its backlog.

Stopping goes from the outside in: the gateway finishes what it has accepted, then the workers go, then a broker of our
own, then we. No way out of `run` leaves a child or the socket directory behind.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from random import Random
from time import monotonic

from zmesh import logs
from zmesh.addresses import check_free, is_loopback, listen
from zmesh.board import Board
from zmesh.config import Plan, Settings
from zmesh.core.agency import AgentEffect, AgentEvent, AgentLink, Beat, End, Retire, WorkerGone
from zmesh.core.effects import Leave, Reconnect, Report, Transmit
from zmesh.core.events import LinkLost, Started, Tick
from zmesh.core.restarts import FAILED_STARTS_MAX, Deeds, Restarts
from zmesh.crashing import check, crash_at
from zmesh.daemons import Daemons
from zmesh.errors import DrainExpired, NeverReady, StartError
from zmesh.hosting import HeavyBatches, Search, curl_data, stage_called
from zmesh.household import Departure, House, Household, household, shared_memory, welcome
from zmesh.line import line_class
from zmesh.messages import Goodbye, Kill, PeerId
from zmesh.mixins import IPC_MIXINS
from zmesh.pipe import is_ready
from zmesh.processes import Child, OutOfMemoryKills, Slot, Watches, reap_orphans, signal_name
from zmesh.signals import Signals
from zmesh.transport import Context, Poller, private_directory, raise_file_limit

__all__ = ["Agent", "obey", "run"]

KILL_SECONDS = 5.0  # for killed processes to be gone; one that hangs in its driver may take for ever
QUIET_EXIT_SECONDS = 2.0  # from a worker's word that it failed, or left, to its exit; then it is helped
GOODBYE_MS = 500  # for our last word to leave
INSECURE_SECONDS = 60.0  # between two warnings that an address is open to strangers
EXIT_INTERRUPTED = 130  # by a second SIGINT

log = logging.getLogger("zmesh.agent")
heavy_batches = HeavyBatches(IPC_MIXINS)  # one agent to a process


class Agent:
    """One run. `run` returns the exit code, with every child gone. Only in the main thread."""

    def __init__(self, here: Household, plan: Plan, settings: Settings, app: str, example: bytes | None) -> None:
        self._here, self._plan, self._settings, self._app, self._example = here, plan, settings, app, example
        self._slots = here.slots(Random(os.getpid()), settings.restarts_per_minute)
        self._peer = peer = PeerId(os.urandom(16))
        host, limits = socket.gethostname(), settings.limits()
        self._link = AgentLink(peer, host, os.getpid(), plan.fingerprint, limits, shape=plan.shape)
        self._epoch = 0  # of the broker that our workers were last told of
        self._oom = OutOfMemoryKills()
        self._poller = Poller()
        self._watches = Watches(self._poller)
        self._connect_at: float | None = monotonic() if here.connect else None
        self._search = Search(here.connect, settings.connect_timeout / 1000, monotonic())
        where = here.bind or here.connect
        self._warn_at: float | None = monotonic() if where and not is_loopback(where) else None
        self._was_ready = False
        self._departure: Departure | None = None  # set: we are stopping
        self._shown: dict[Restarts, str] = {}  # the last traceback of each stage that was logged
        self._interrupts = self._drain_exit_code = 0
        self._exit_code: int | None = None
        self._farewell = ""  # why we gave up

    def run(self) -> int:
        """Raises StartError when nothing could be started."""
        check()
        raise_file_limit()
        here, settings, limits = self._here, self._settings, self._settings.limits()
        with ExitStack() as held:
            self._signals = held.enter_context(Signals(children=os.getpid() == 1))
            held.callback(here.daemons.end)
            fronts, front, self._directory = [], here.connect, None
            if here.has_broker:
                directory = private_directory(settings.path)
                held.callback(directory.remove)
                self._directory, fronts = directory.path, [front := directory.front]
            if here.bind:
                fronts.append(check_free(here.bind, len(self._plan.stages)))
            self._listener = held.enter_context(listen(settings.host, settings.port)) if self._has("gateway") else None
            number, board = self._listener.fileno() if self._listener else -1, None
            if here.gateways > 1:
                board = Board.make(here.gateways, len(self._plan.routes))
                held.callback(board.close)
            self._memory = held.enter_context(shared_memory(here, self._plan, settings))
            told = here, self._peer, self._plan, settings, self._app, front, tuple(fronts), number, board
            self._house = House(*told, self._memory.directory)
            context = Context()
            held.callback(context.close)
            self._line = line_class(settings.log_level)(context, front, self._poller, limits, "agent")
            self._watches.add(self._signals.fd, self._heed_signals)
            held.callback(lambda: sys.stderr.write(self._farewell))  # when nobody else can say anything any more
            held.callback(self._end_all)
            here.daemons.watch(self._watches, self._mourn)
            while self._exit_code is None:
                self._turn()
        return self._exit_code

    def _has(self, role: str) -> bool:
        return role in self._here.roles

    # ── the loop ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _turn(self) -> None:
        self._start_due(monotonic())
        self._watches.wait(self._patience())
        events: list[AgentEvent] = [Tick()]
        now = monotonic()
        if self._connect_at is not None and now >= self._connect_at:
            self._connect_at = None
            self._line.connect()
            events.append(Started())
        self._line.flush()
        self._tell(*events, *self._line.receive())
        if not self._was_ready:
            self._announce()
        if os.getpid() == 1:
            reap_orphans({slot.child.pid for slot in self._slots if slot.child is not None} | self._here.daemons.pids)
        self._look_at_the_clock(now)

    def _patience(self) -> float | None:
        moments = [self._link.next_wakeup(), self._connect_at, self._warn_at]
        moments += [self._departure.until, self._departure.say_at] if self._departure else []
        moments += [self._search.note_at, self._search.give_up_at, self._memory.due]
        moments += [moment for slot in self._slots for moment in (slot.start_at, slot.help_at)]
        return self._line.patience(*moments)

    def _look_at_the_clock(self, now: float) -> None:
        self._memory.sweep(now)
        for slot in self._slots:
            if slot.help_at is not None and now >= slot.help_at and slot.child is not None:
                slot.help_at = None
                slot.child.kill()
        if self._departure is not None and self._exit_code is None:
            if left := self._departure.remaining(now):
                log.info("%s", left)
            if now >= self._departure.until:
                self._expire(self._departure)
        if self._warn_at is not None and now >= self._warn_at:
            self._warn_at = now + INSECURE_SECONDS
            where = self._here.bind or self._here.connect
            log.warning("%s can be reached by other hosts and nothing there is locked (--insecure)", where)
        if hopeless := self._search.look(now, self._link.joined):
            self._give_up(StartError.exit_code, hopeless)

    # ── processes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_due(self, now: float) -> None:
        for slot in self._slots:
            if slot.start_at is not None and now >= slot.start_at and slot.child is None:
                slot.start_at = None
                try:
                    slot.child = child = self._house.start(slot)
                except OSError as error:  # no memory, no process numbers, no files left
                    slot.start_at = now + slot.restarts.died(slot.worker_id, Deeds.NONE, now)
                    log.error("%s cannot be started: %s", slot.name, error)
                else:
                    crash_at("agent.spawned")
                    self._watches.add(child.pipe.fd, partial(self._listen_to, slot))
                    self._watches.add(child.pidfd, partial(self._bury, slot))

    def _listen_to(self, slot: Slot) -> None:
        child = slot.child
        if child is None:
            return
        lines = child.pipe.receive()
        if lines is None:
            self._watches.drop(child.pipe.fd)  # its exit comes by the other way
        for line in lines or []:
            match line:
                case {"say": "ready"}:
                    child.is_ready = True
                    slot.restarts.started()
                    if slot.role == self._here.broker_role:
                        self._tell(LinkLost())  # it is new; do not wait for the former one's silence
                        self._connect_at = monotonic()
                case {"say": "failed", "text": str(text), "line": str(last)}:
                    child.failure, child.failure_line = text, last
                    slot.help_at = monotonic() + QUIET_EXIT_SECONDS
                case {"say": "left", "held": int(held)}:
                    slot.help_at = monotonic() + QUIET_EXIT_SECONDS
                    if held and self._here.serves_others:
                        log.error("%s left %d batches unfinished", slot.name, held)
                        self._drain_exit_code = DrainExpired.exit_code
                case {"say": "heavy", "bytes": int(size), "rows": int(rows)}:
                    heavy_batches.say(slot.key[1], size, rows)
                case _:
                    log.debug("%s says what we do not know: %r", slot.name, line)

    def _bury(self, slot: Slot) -> None:
        """A process ended: say so, and decide about its successor."""
        self._listen_to(slot)  # its last words
        child, deeds = slot.child, slot.deeds()
        assert child is not None, "its pidfd is watched only while it is there"
        self._watches.drop(child.pipe.fd)
        self._watches.drop(child.pidfd)
        code = child.reap()
        self._house.clear(slot)
        if self._departure is None or self._departure.stays(slot.role):
            self._replace(slot, child, deeds, code)
        elif code and child.is_ready and slot.role != "worker":
            self._drain_exit_code = DrainExpired.exit_code
        if slot.stage is not None:
            is_oom = code == -signal.SIGKILL and self._oom.rose()
            why = slot.restarts.excess
            exited = child.exited(
                slot.stage.name, slot.worker_id, code, is_oom=is_oom, is_failing=slot.restarts.is_failing, why=why
            )
            self._tell(WorkerGone(exited))
        slot.child = slot.help_at = None
        child.close()
        if self._departure is not None and self._departure.leaving == slot.role and not self._living(slot.role):
            self._go_on(self._departure)

    def _replace(self, slot: Slot, child: Child, deeds: Deeds, code: int) -> None:
        now = monotonic()
        slot.start_at = now + slot.restarts.died(slot.worker_id, deeds, now)
        is_start = not self._was_ready and self._settings.on_start_failure == "exit" and self._departure is None
        if is_start and deeds is Deeds.NONE and slot.restarts.failed_starts >= FAILED_STARTS_MAX:
            what = stage_called(slot.stage) if slot.stage else f"the {slot.role}"
            why = child.failure_line or f"it ended before it was ready: {signal_name(code)}"
            exit_code = NeverReady.exit_code if slot.stage else StartError.exit_code
            log.warning("%s", slot.obituary(code))
            self._give_up(exit_code, f"{what} failed to start {FAILED_STARTS_MAX} times: {why}", child.failure)
            return
        wait = slot.start_at - now
        again = f"in {wait:.1f} s" if wait >= 0.05 else "at once"
        log.warning("%s; it is started again %s", slot.obituary(code), again)
        # Once, however often the same goes wrong. A run that gives up shows it at its end.
        if child.failure and not is_start and self._shown.get(slot.restarts) != child.failure:
            self._shown[slot.restarts] = child.failure
            log.error("%s failed to start\n%s", slot.name, child.failure.rstrip())

    def _give_up(self, exit_code: int, line: str, detail: str = "") -> None:
        """End everything; `line` is the last that is said."""
        if self._exit_code is None:
            self._farewell = logs.last_words(line, detail)
            self._exit_code = exit_code

    def _living(self, role: str) -> list[Slot]:
        return [slot for slot in self._slots if slot.role == role and slot.child is not None]

    def _end_all(self) -> None:
        """Nothing that we started is left after this."""
        living = [slot.child for slot in self._slots if slot.child is not None]
        for child in living:
            child.kill()
        until = monotonic() + KILL_SECONDS
        for child in living:
            if is_ready(child.pidfd, until):
                child.reap()
            else:
                log.error("%s (pid %d) does not end although it was killed", child.name, child.pid)
        if self._link.joined:
            self._line.send(self._link.session, Goodbye([]))
        self._line.disconnect(GOODBYE_MS)

    # ── the broker ────────────────────────────────────────────────────────────────────────────────────────────────

    def _tell(self, *events: AgentEvent) -> None:
        for effect in self._link.handle(*events, now=monotonic()):
            self._perform(effect)
        if self._link.joined and self._link.epoch != self._epoch:
            self._epoch = self._link.epoch
            for slot in self._living("worker"):  # before their own next heartbeat
                assert slot.child is not None, "the living have a process"
                slot.child.pipe.send(say="epoch", epoch=self._epoch)

    def _perform(self, effect: AgentEffect) -> None:
        match effect:
            case Transmit(session, message):
                self._line.send(session, message)
            case Beat(session):
                beats = [s.child.beat(s.stage.name, s.worker_id) for s in self._slots if s.child and s.stage]
                self._line.send(session, self._link.heartbeat(beats))
            case Reconnect(after_seconds):
                self._line.disconnect()
                self._connect_at = monotonic() + after_seconds
            case Report(level, text):
                logs.say(log, level, text)
            case End(kill):
                obey(kill, self._slots)
            case Retire(drain):
                self._drain(drain.reason, drain.deadline_ms / 1000)
            case Leave(reason):
                self._give_up(StartError.exit_code, reason)

    # ── the beginning and the end ─────────────────────────────────────────────────────────────────────────────────

    def _announce(self) -> None:
        """Once, when every role, every gateway and every stage here is ready, and the broker has answered."""
        here = self._here
        wanted = {slot.key for slot in self._slots}
        ready = {slot.key for slot in self._slots if slot.child and slot.child.is_ready}
        if self._departure is not None or wanted != ready or (here.connect and not self._link.joined):
            return
        self._was_ready = True
        data = curl_data(self._example, self._directory)
        logs.announce(log, welcome(here, self._plan, self._app, self._listener, data))

    def _heed_signals(self) -> None:
        for number in self._signals.take():
            if number is signal.SIGCHLD:
                continue  # see `_turn`
            self._interrupts += number is signal.SIGINT
            if self._interrupts > 1:
                self._exit_code = EXIT_INTERRUPTED
            self._drain(number.name)

    def _mourn(self, obituary: str) -> None:
        """A daemon ended, and the app does not want to be without it."""
        self._heed_signals()  # a Ctrl-C goes to a daemon too, and then it is the reason
        if self._departure is None:
            self._farewell = logs.last_words(f"{obituary}, and the server with it")
            self._drain_exit_code = StartError.exit_code
        self._drain(obituary)

    def _drain(self, why: str, seconds: float = 0.0) -> None:
        """Within so many seconds, or in the time that our settings give it."""
        if self._departure is not None:
            return
        seconds = seconds or self._settings.drain_seconds
        log.info("%s: finishing what was accepted, for %g s at most", why, seconds)
        if self._listener is not None:
            self._listener.close()
        self._search.end()
        self._departure = Departure(self._here, self._slots, seconds, monotonic())
        self._go_on(self._departure)

    def _go_on(self, departure: Departure) -> None:
        if not departure.go_on(monotonic()):
            self._exit_code = self._drain_exit_code

    def _expire(self, departure: Departure) -> None:
        """Whoever was told to leave has not."""
        if departure.leaving == "worker" and not self._here.serves_others:
            self._exit_code = self._drain_exit_code
        else:
            log.error("the time to drain is over and accepted requests are left; everything ends now")
            self._exit_code = DrainExpired.exit_code


def obey(kill: Kill, slots: Sequence[Slot]) -> None:
    """Only if it still runs that lease: the order may be older than what it does now."""
    for slot in slots:
        if slot.child is not None and slot.child.runs(kill.peer, kill.lease):
            level, how = (logging.INFO, "interrupted") if kill.interrupt else (logging.WARNING, "killed")
            log.log(level, "%s is %s: %s", slot.name, how, kill.reason)
            slot.child.obey(kill)


def run(
    verb: str,
    plan: Plan,
    settings: Settings,
    app: str,
    example: bytes | None = None,
    daemons: Daemons | None = None,
) -> int:
    """Do what `verb` means on this host until it is told to stop; the exit code. Raises StartError when nothing could
    start.

    `example` is a body that the first route answers, for the line that is shown to try it with. `daemons` are processes
    that the app needs: when one ends, so do we, and the other way round.
    """
    logs.setup(settings.log_level, "agent", settings.log_format)
    here = replace(household(verb, plan, settings), daemons=daemons or Daemons())
    return Agent(here, plan, settings, os.path.abspath(app), example).run()
