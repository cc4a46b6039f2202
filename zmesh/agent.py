"""Starts, watches and restarts the workers of one host, and its gateway: the parent of everything `zmesh run` runs.

The agent loads no model and opens no request. It waits in one poller for signals, for exits (pidfds), for what its
children say (pipes) and for the broker, so that an exit is reported within milliseconds whatever the others do. It owns
the listening HTTP socket: a gateway that dies leaves it open, with the clients in its backlog.

Stopping goes from the outside in. The gateway finishes what it has accepted and exits, then the workers, then we. No
way out of `run` leaves a child or the socket directory behind.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from random import Random
from time import monotonic

from zmesh import logs
from zmesh.config import Plan, Settings
from zmesh.core.agency import AgentEffect, AgentEvent, AgentLink, Beat, End, WorkerGone
from zmesh.core.effects import Reconnect, Report, Transmit
from zmesh.core.events import LinkLost, Started, Tick
from zmesh.core.restarts import FAILED_STARTS_MAX, Deeds, Restarts
from zmesh.hosting import Signals, announcement, chosen_stages, class_name, curl_data, listen
from zmesh.line import RETRY_SECONDS, Line
from zmesh.messages import Kill, PeerId
from zmesh.pipe import Slate
from zmesh.processes import Child, OutOfMemoryKills, Slot, signal_name
from zmesh.transport import Context, Poller, private_directory, raise_file_limit

__all__ = ["Agent", "run"]

DRAIN_GRACE_SECONDS = 1.0  # for the gateway to say its last answers after its time is over
LEAVE_SECONDS = 1.0  # for a worker to leave when nobody wants anything of it any more
KILL_SECONDS = 5.0  # for killed processes to be gone; one that hangs in its driver may take for ever
QUIET_EXIT_SECONDS = 2.0  # from a worker's word that it failed, or left, to its exit; then it is helped
EXIT_START_FAILED, EXIT_NEVER_READY, EXIT_DRAIN_EXPIRED, EXIT_INTERRUPTED = 1, 3, 4, 130

log = logging.getLogger("zmesh.agent")


class Agent:
    """One run. `run` returns the exit code, with every child gone. Only in the main thread."""

    def __init__(self, plan: Plan, settings: Settings, app: str, example: bytes | None) -> None:
        self._plan, self._settings, self._app, self._example = plan, settings, os.path.abspath(app), example
        self._stages = chosen_stages(plan, settings.stage)
        random = Random(os.getpid())
        self._gateway = Slot(None, 0, Restarts(1, random))
        self._slots = [self._gateway]
        for stage in self._stages:
            restarts = Restarts(stage.num, random)
            self._slots += [Slot(stage, number, restarts) for number in range(1, stage.num + 1)]
        peer = PeerId(os.urandom(16))
        self._link = AgentLink(peer, socket.gethostname(), os.getpid(), plan.fingerprint, settings.limits())
        self._oom = OutOfMemoryKills()
        self._watched: dict[int, Callable[[], None]] = {}
        self._poller = Poller()
        self._connect_at: float | None = None
        self._was_ready = False
        self._drain_until: float | None = None  # set: we are stopping, and the gateway has until then
        self._leave_until: float | None = None  # set: the gateway is gone, and the workers have until then
        self._shown: dict[Restarts, str] = {}  # the last traceback of each stage that was logged
        self._interrupts = 0
        self._drain_exit_code = 0
        self._exit_code: int | None = None
        self._farewell = ""  # why we gave up

    def run(self) -> int:
        """Raises StartError when nothing could be started."""
        raise_file_limit()
        self._directory = private_directory(self._settings.path)
        context = Context()
        try:
            with listen(self._settings.host, self._settings.port) as self._listener, Signals() as self._signals:
                self._line = Line(context, self._directory.front, self._poller, self._settings.limits())
                self._watch(self._signals.fd, self._heed_signals)
                try:
                    while self._exit_code is None:
                        self._turn()
                finally:
                    self._end_all()
                    sys.stderr.write(self._farewell)  # the last line, now that nobody else can say anything
        finally:
            context.close()
            self._directory.remove()
        return self._exit_code

    # ── the loop ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _turn(self) -> None:
        self._start_due(monotonic())
        for fd in self._poller.wait(self._patience()):
            if fd in self._watched:
                self._watched[fd]()
        events: list[AgentEvent] = [Tick()]
        now = monotonic()
        if self._connect_at is not None and now >= self._connect_at:
            self._connect_at = None
            self._line.connect()
            events.append(Started())
        self._line.flush()
        self._tell(*events, *self._line.receive())
        self._look_at_the_clock(now)

    def _patience(self) -> float | None:
        moments = [self._link.next_wakeup(), self._connect_at, self._drain_until, self._leave_until]
        moments += [moment for slot in self._slots for moment in (slot.start_at, slot.help_at)]
        due = [moment for moment in moments if moment is not None]
        seconds = max(0.0, min(due) - monotonic()) if due else None
        if self._line.is_parking:
            return RETRY_SECONDS if seconds is None else min(seconds, RETRY_SECONDS)
        return seconds

    def _watch(self, fd: int, react: Callable[[], None]) -> None:
        self._poller.watch(fd)
        self._watched[fd] = react

    def _unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._poller.forget(fd)

    def _look_at_the_clock(self, now: float) -> None:
        for slot in self._slots:
            if slot.help_at is not None and now >= slot.help_at and slot.child is not None:
                slot.help_at = None
                slot.child.kill()
        if self._leave_until is not None:
            if now >= self._leave_until or all(slot.child is None for slot in self._slots):
                self._exit_code = self._drain_exit_code
        elif self._drain_until is not None and now >= self._drain_until:
            log.error("the time to drain is over and accepted requests are left; everything ends now")
            self._exit_code = EXIT_DRAIN_EXPIRED

    # ── processes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_due(self, now: float) -> None:
        for slot in self._slots:
            if slot.start_at is not None and now >= slot.start_at and slot.child is None:
                slot.start_at = None
                try:
                    slot.child = child = self._start_worker(slot) if slot.stage else self._start_gateway()
                except OSError as error:  # no memory, no process numbers, no files left
                    slot.start_at = now + slot.restarts.died(slot.worker_id, Deeds.NONE, now)
                    log.error("%s cannot be started: %s", slot.name, error)
                else:
                    self._watch(child.pipe.fd, partial(self._listen_to, slot))
                    self._watch(child.pidfd, partial(self._bury, slot))

    def _start_gateway(self) -> Child:
        command = [sys.executable, "-m", "zmesh", "gateway", self._app, "--", *self._settings.user_args]
        listener = self._listener.fileno()
        document = {
            "role": "gateway",
            "front": self._directory.front,
            "listen": listener,
            "settings": self._settings.to_json(),
        }
        return Child("gateway", command, document, keep=[listener])

    def _start_worker(self, slot: Slot) -> Child:
        assert slot.stage is not None, "a gateway is no worker"
        env = slot.stage.env[slot.worker_id - 1] if slot.stage.env else None
        document = {
            "role": "worker",
            "app": self._app,
            "user_args": list(self._settings.user_args),
            "plan": self._plan.to_json(),
            "settings": self._settings.to_json(),
            "stage": slot.stage.name,
            "worker_id": slot.worker_id,
            "front": self._directory.front,
        }
        return Child(slot.name, [sys.executable, "-m", "zmesh.stage"], document, env=env, slate=Slate.make())

    def _listen_to(self, slot: Slot) -> None:
        child = slot.child
        if child is None:
            return
        lines = child.pipe.receive()
        if lines is None:
            self._unwatch(child.pipe.fd)  # its exit comes by the other way
        for line in lines or []:
            match line:
                case {"say": "ready"}:
                    child.is_ready = True
                    slot.restarts.started()
                    if slot is self._gateway:
                        self._tell(LinkLost())  # its broker is new; do not wait for the former one's silence
                        self._connect_at = monotonic()
                    self._announce()
                case {"say": "failed", "text": str(text), "line": str(last)}:
                    child.failure, child.failure_line = text, last
                    slot.help_at = monotonic() + QUIET_EXIT_SECONDS
                case {"say": "left"}:
                    slot.help_at = monotonic() + QUIET_EXIT_SECONDS
                case _:
                    log.debug("%s says what we do not know: %r", slot.name, line)

    def _bury(self, slot: Slot) -> None:
        """A process ended: say so, and decide about its successor."""
        self._listen_to(slot)  # its last words
        child, deeds = slot.child, slot.deeds()
        assert child is not None, "its pidfd is watched only while it is there"
        self._unwatch(child.pipe.fd)
        self._unwatch(child.pidfd)
        code = child.reap()
        if self._drain_until is None or (self._leave_until is None and slot.stage):
            now = monotonic()
            slot.start_at = now + slot.restarts.died(slot.worker_id, deeds, now)
            seconds = None if self._is_hopeless(slot, deeds) else slot.start_at - now
            log.warning("%s", slot.obituary(code, seconds))
            self._show_traceback(slot, child)
        if slot.stage is not None:
            is_oom = code == -signal.SIGKILL and self._oom.rose()
            is_failing = slot.restarts.is_failing
            exited = child.exited(slot.stage.name, slot.worker_id, code, is_oom=is_oom, is_failing=is_failing)
            self._tell(WorkerGone(exited))
        elif self._drain_until is not None:
            is_clean = code == 0 or not child.is_ready
            self._dismiss_workers(0 if is_clean else EXIT_DRAIN_EXPIRED)
        slot.child = slot.help_at = None
        child.close()
        self._give_up_if_hopeless(slot, child, deeds, code)

    def _show_traceback(self, slot: Slot, child: Child) -> None:
        """Once, however often the same goes wrong. A run that gives up shows it at its end."""
        gives_up = not self._was_ready and self._settings.on_start_failure == "exit"
        if child.failure and not gives_up and self._shown.get(slot.restarts) != child.failure:
            self._shown[slot.restarts] = child.failure
            log.error("%s failed to start\n%s", slot.name, child.failure.rstrip())

    def _is_hopeless(self, slot: Slot, deeds: Deeds) -> bool:
        """Whether we give up with the death of its child, which is the last of too many failed starts."""
        failed = deeds is Deeds.NONE and slot.restarts.failed_starts >= FAILED_STARTS_MAX
        gives_up = not self._was_ready and self._settings.on_start_failure == "exit" and self._drain_until is None
        return failed and gives_up

    def _give_up_if_hopeless(self, slot: Slot, child: Child, deeds: Deeds, code: int) -> None:
        if not self._is_hopeless(slot, deeds):
            return
        what = f"stage {slot.stage.name}" if slot.stage else "the gateway"
        if slot.stage and class_name(slot.stage) != slot.stage.name:
            what += f" ({class_name(slot.stage)})"
        why = child.failure_line or f"it ended before it was ready: {signal_name(code)}"
        line = f"zmesh: {what} failed to start {FAILED_STARTS_MAX} times: {why}\n"
        self._farewell = f"{child.failure.rstrip()}\n{line}" if child.failure else line
        self._exit_code = EXIT_NEVER_READY if slot.stage else EXIT_START_FAILED

    def _end_all(self) -> None:
        """Nothing that we started is left after this."""
        living = [slot.child for slot in self._slots if slot.child is not None]
        for child in living:
            child.kill()
        until = monotonic() + KILL_SECONDS
        for child in living:
            if select.select([child.pidfd], [], [], max(0.0, until - monotonic()))[0]:
                child.reap()
            else:
                log.error("%s (pid %d) does not end although it was killed", child.name, child.pid)
        self._line.disconnect()

    # ── the broker ────────────────────────────────────────────────────────────────────────────────────────────────

    def _tell(self, *events: AgentEvent) -> None:
        for effect in self._link.handle(*events, now=monotonic()):
            self._perform(effect)

    def _perform(self, effect: AgentEffect) -> None:
        match effect:
            case Transmit(session, message):
                self._line.send(session, message)
            case Beat(session):
                workers = [(slot.child, slot.stage, slot.worker_id) for slot in self._slots]
                beats = [child.beat(stage.name, number) for child, stage, number in workers if child and stage]
                self._line.send(session, self._link.heartbeat(beats))
            case Reconnect(after_seconds):
                self._line.disconnect()
                self._connect_at = monotonic() + after_seconds
            case Report(level, text):
                log.log(logging.getLevelName(level.upper()), "%s", text)
            case End(kill):
                self._obey(kill)

    def _obey(self, kill: Kill) -> None:
        """Only if it still runs that lease: the order may be older than what it does now."""
        for slot in self._slots:
            child = slot.child
            if child is None or child.slate is None or child.peer != kill.peer or kill.interrupt:
                continue
            if child.slate.read().lease == kill.lease:
                log.warning("%s is killed: %s", slot.name, kill.reason)
                child.kill()

    # ── the beginning and the end ─────────────────────────────────────────────────────────────────────────────────

    def _announce(self) -> None:
        """Once, when the gateway and a worker of every stage are ready."""
        ready = {slot.stage.name if slot.stage else None for slot in self._slots if slot.child and slot.child.is_ready}
        if self._was_ready or self._drain_until is not None or len(ready) < len(self._stages) + 1:
            return
        self._was_ready = True
        data = curl_data(self._example, self._directory.path)
        print(announcement(self._plan, self._stages, self._listener, data), flush=True)

    def _heed_signals(self) -> None:
        for number in self._signals.take():
            self._interrupts += number is signal.SIGINT
            if self._interrupts > 1:
                self._exit_code = EXIT_INTERRUPTED
            self._drain(number.name)

    def _drain(self, why: str) -> None:
        if self._drain_until is not None:
            return
        seconds = self._settings.drain_seconds
        log.info("%s: finishing what was accepted, for %g s at most", why, seconds)
        self._drain_until = monotonic() + seconds + DRAIN_GRACE_SECONDS
        self._listener.close()
        self._gateway.start_at = None
        gateway = self._gateway.child
        if gateway is None:
            self._dismiss_workers(0)
        elif gateway.is_ready:
            gateway.pipe.send(say="drain", seconds=seconds)
        else:
            gateway.kill()  # it has accepted nothing yet

    def _dismiss_workers(self, exit_code: int) -> None:
        self._leave_until = monotonic() + LEAVE_SECONDS + DRAIN_GRACE_SECONDS
        self._drain_exit_code = exit_code
        for slot in self._slots:
            slot.start_at = None
            if slot.child is not None and slot.child.is_ready:
                slot.child.pipe.send(say="drain", seconds=LEAVE_SECONDS)
            elif slot.child is not None:
                slot.child.kill()


def run(plan: Plan, settings: Settings, app: str, example: bytes | None = None) -> int:
    """Run the app on this host until it is told to stop; the exit code. Raises StartError when nothing could start.

    `example` is a body that the first route answers, for the line that is shown to try it with.
    """
    logs.setup(settings.log_level, "agent")
    return Agent(plan, settings, app, example).run()
