"""Torments a real mesh and judges what its clients saw: `scripts/chaos`, see `docs/testing.md`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic
from typing import Any

from tests.chaos.checker import Violation, check
from tests.chaos.faults import Fault
from tests.chaos.history import History
from tests.chaos.layouts import LAYOUTS, tormented
from tests.chaos.nemesis import Journal, Nemesis, Sampler, schedule
from tests.chaos.profiles import FAULTS, PROFILES, Profile
from tests.chaos.report import report
from tests.harness import REPOSITORY

WARM_SECONDS, BASELINE_SECONDS, RECOVERY_SECONDS = 3.0, 5.0, 10.0
DRAIN_SECONDS = 10.0
PROGRESS_SECONDS = 10.0


class Clients:
    """The process that sends; what it says each second is in `told`."""

    def __init__(self, load: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.workload", json.dumps(load)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            text=True,
        )
        self.pid = self._process.pid
        self.told: dict[str, Any] = {}
        self.longest = 0.0
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None, "it is piped"
        for line in self._process.stdout:
            self.told = json.loads(line)
            self.longest = max(self.longest, self.told["longest"])

    def command(self, **words: object) -> None:
        assert self._process.stdin is not None, "it is piped"
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()

    def check_alive(self) -> None:
        assert self._process.poll() is None, f"the clients ended with {self._process.returncode}"

    def stop(self, seconds: float) -> None:
        """After this all their answers are written, or given up."""
        self.command(do="stop")
        code = self._process.wait(seconds)
        assert code == 0, f"the clients ended with {code}"
        self._reader.join(5)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join(5)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None, "it is piped"
            with contextlib.suppress(BrokenPipeError):  # a word that they did not live to read
                pipe.close()


def torment(
    profile: Profile, seconds: float, seed: int, clients: int, directory: Path, say: Callable[[str], None]
) -> None:
    """Leaves a history in `directory`. `seconds` is all of the load: before, during and after the faults."""
    faults_for = seconds - WARM_SECONDS - BASELINE_SECONDS - RECOVERY_SECONDS
    settings = {
        **asdict(profile),
        "faults": sorted(profile.faults),
        "seed": seed,
        "seconds": seconds,
        "clients": clients,
    }
    (directory / "settings.json").write_text(json.dumps({"e": "settings", **settings}) + "\n")
    env = {
        "CHAOS_MS": str(profile.service_ms),
        "CHAOS_WORKERS": str(profile.workers),
        "CHAOS_BATCH": str(profile.batch),
        "CHAOS_ROUTES": ",".join(profile.routes),
    }
    journal, samples = Journal(directory / "nemesis.jsonl"), Journal(directory / "mesh.jsonl")
    with tormented(profile.layout, directory, env, int(profile.timeout * 1000), profile.capacity) as mesh:
        load = Clients(
            {
                "port": mesh.port,
                "history": str(directory / "clients.jsonl"),
                "clients": clients,
                "seed": seed,
                "routes": [f"/{route}" for route in profile.routes],
                "timeout": profile.timeout,
                "hasty": profile.hasty,
                "fickle": profile.fickle,
                "wild_bursts": profile.wild_bursts,
                "think": profile.think,
            }
        )
        nemesis = Nemesis(mesh, journal, profile.faults, load.command)
        waiting = Waiting(load, nemesis, say)
        try:
            with Sampler(mesh, samples, [load.pid]) as sampler:
                journal.note("phase", name="load")
                waiting.wait(WARM_SECONDS)
                journal.note("phase", name="baseline")
                waiting.wait(BASELINE_SECONDS)
                journal.note("phase", name="nemesis")
                nemesis.run(schedule(profile.faults, seed, faults_for), faults_for, waiting.wait)
                journal.note("phase", name="recovery")
                waiting.wait(RECOVERY_SECONDS)
                journal.note("phase", name="drain")
                load.stop(profile.timeout + 30)
                _drain(sampler)
                journal.note("phase", name="over")
            for name, code in mesh.stop().items():
                journal.note("exit", name=name, code=code)
            assert not nemesis.failures, nemesis.failures
        finally:
            load.kill()
            journal.close()
            samples.close()


def _drain(sampler: Sampler) -> None:
    """Until everything is empty, which the last sample then shows, or until it has had time enough."""
    end = monotonic() + DRAIN_SECONDS
    while monotonic() < end:
        sample = sampler.take()
        if sample is not None and not sample["tasks"] and not sample["kept"]:
            return
        time.sleep(0.2)


class Waiting:
    """Time that passes, with a line about it now and then."""

    def __init__(self, clients: Clients, nemesis: Nemesis, say: Callable[[str], None]) -> None:
        self._clients, self._nemesis, self._say = clients, nemesis, say
        self._began = monotonic()
        self._due = self._began + PROGRESS_SECONDS

    def wait(self, seconds: float) -> None:
        end = monotonic() + seconds
        while (left := end - monotonic()) > 0:
            time.sleep(min(left, 0.2))
            self._clients.check_alive()
            if monotonic() >= self._due:
                self._due += PROGRESS_SECONDS
                told = self._clients.told
                self._say(
                    f"{monotonic() - self._began:5.0f} s  {told.get('answered', 0):>8} answers, "
                    f"{told.get('refused', 0)} not 200, {told.get('lost', 0)} lost, {self._nemesis.struck} faults, "
                    f"p50 {told.get('p50', 0) * 1000:.0f} ms, longest wait {self._clients.longest:.2f} s"
                )


def chosen(arguments: argparse.Namespace) -> Profile:
    """The profile that was asked for, with the faults that its layout can have."""
    profile = PROFILES[arguments.profile]
    if arguments.layout:
        profile = replace(profile, layout=arguments.layout)
    faults: dict[str, Fault] = dict(profile.faults)
    if arguments.faults:
        names = arguments.faults.split(",")
        if unknown := [name for name in names if name not in FAULTS]:
            raise SystemExit(f"chaos: there is no fault {unknown[0]!r}; there are {', '.join(FAULTS)}")
        faults = {name: profile.faults.get(name, FAULTS[name]) for name in names}
    able = {name: fault for name, fault in faults.items() if profile.layout in fault.layouts}
    if arguments.faults and (wrong := sorted(set(faults) - set(able))):
        raise SystemExit(f"chaos: the layout {profile.layout} has no {', '.join(wrong)}; try --layout hosts")
    return replace(profile, faults=able)


def main(args: Sequence[str] | None = None) -> int:
    """0 when every invariant held, 1 when one did not."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--profile", choices=sorted(PROFILES), default="default")
    parser.add_argument("--minutes", type=float, help="of load in all; the profile's own if not given")
    parser.add_argument("--seed", type=int, help="of the schedule and the workload; printed if not given")
    parser.add_argument("--faults", default="", help=f"instead of the profile's: {', '.join(FAULTS)}")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--layout", choices=LAYOUTS, help="instead of the profile's")
    parser.add_argument("--check", metavar="DIRECTORY", help="judge a recorded history again; run nothing")
    parser.add_argument("--keep", action="store_true", help="keep the history even if every invariant held")
    arguments = parser.parse_args(args)
    if arguments.check:
        return judge(Path(arguments.check))
    profile = chosen(arguments)
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1_000_000)
    minutes = arguments.minutes or profile.minutes
    how = f"layout {profile.layout}, {minutes:g} min, seed {seed}"
    print(f"chaos: {arguments.profile}: {profile.says}; {how}", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="zmesh-chaos-"))
    try:
        torment(profile, minutes * 60, seed, arguments.clients, directory, lambda line: print(line, flush=True))
    except BaseException:
        print(f"chaos: broken off; what there is of the history is in {directory}", flush=True)
        raise
    code = judge(directory)
    if code == 0 and not arguments.keep:
        shutil.rmtree(directory)
    elif code == 0:
        print(f"the history is in {directory}")
    return code


def judge(directory: Path) -> int:
    history = History.read(directory)
    violations: list[Violation] = check(history)
    print(report(history, violations))
    if violations:
        print(f"the history is in {directory}; judge it again with scripts/chaos --check {directory}")
    return bool(violations)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
