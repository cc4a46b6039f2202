"""What the processes of a server use: CPU seconds and memory, by what each of them is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["GroupOf", "Memory", "cpu_seconds", "family", "memory", "mosec_group", "one_group", "spent", "zmesh_group"]

GroupOf = Callable[[Sequence[str], bool], str]  # of a command line, and whether it is the process that was started


@dataclass
class Memory:
    """Of some processes, in bytes. `shared_once` counts a page that n of them share as 1/n of a page (PSS)."""

    processes: int = 0
    rss: int = 0
    shared_once: int = 0


def zmesh_group(line: Sequence[str], is_root: bool) -> str:
    """A lone broker is shown apart; the gateway beside it keeps its name."""
    if is_root:
        return "agent"
    if "zmesh.serving" in line:
        return "broker"
    return "gateway + broker" if "gateway" in line else "worker"


def mosec_group(line: Sequence[str], is_root: bool) -> str:
    if is_root or any("resource_tracker" in word for word in line):
        return "supervisor"
    return "controller" if line and Path(line[0]).name == "mosec" else "workers"


def one_group(line: Sequence[str], is_root: bool) -> str:
    return "all"


def family(pid: int) -> Iterator[psutil.Process]:
    """A process and all its descendants, as far as they live."""
    try:
        root = psutil.Process(pid)
        yield from (root, *root.children(recursive=True))
    except psutil.NoSuchProcess:
        return


def _grouped(pid: int, group_of: GroupOf) -> Iterator[tuple[psutil.Process, str]]:
    for process in family(pid):
        try:
            line = process.cmdline()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        yield process, group_of(line, process.pid == pid)


def cpu_seconds(pid: int, group_of: GroupOf = zmesh_group) -> dict[int, tuple[str, float]]:
    """CPU seconds so far of a process and all its descendants: pid → (what it is, seconds)."""
    found = {}
    for process, group in _grouped(pid, group_of):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        found[process.pid] = (group, times.user + times.system)
    return found


def spent(before: Mapping[int, tuple[str, float]], after: Mapping[int, tuple[str, float]]) -> dict[str, float]:
    """CPU seconds between two moments, by what the processes are."""
    totals: dict[str, float] = {}
    for pid, (group, seconds) in after.items():
        totals[group] = totals.get(group, 0.0) + seconds - before.get(pid, (group, 0.0))[1]
    return totals


def memory(pid: int, group_of: GroupOf = zmesh_group) -> dict[str, Memory]:
    """Of a process and all its descendants, by what they are."""
    found: dict[str, Memory] = {}
    for process, group in _grouped(pid, group_of):
        try:
            used = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        total = found.setdefault(group, Memory())
        total.processes += 1
        total.rss += used.rss
        total.shared_once += used.pss
    return found
