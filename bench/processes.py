"""CPU time and memory of server processes and all their children, from /proc. Names come from the command lines.

A process that ends between two looks takes its time with it: servers under measurement do not end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
_ROLES = ("metadata", "objectd", "tierstore.gateway", "nginx")


def tree(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found += tree(int(child))
    except FileNotFoundError:
        pass        # it ended meanwhile
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children."""
    return sum(cpu_by_process(pid).values())


def cpu_by_process(pid: int) -> dict[int, float]:
    """User and system seconds of each process of a tree."""
    found = {}
    for process in tree(pid):
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue        # it ended meanwhile
        found[process] = (int(fields[11]) + int(fields[12])) / TICK
    return found


def role(pid: int) -> str:
    """gateway, metadata, objectd, nginx or other."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except FileNotFoundError:
        return "other"
    for name in _ROLES:
        if f"-m {name} " in words or f"-m {name}\n" in words + "\n" or words.startswith(name):
            return name.rpartition(".")[2]
    return "other"


def resident_bytes(pid: int) -> int:
    """RSS of one process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no VmRSS of process {pid}")


def steal_seconds() -> float:
    """CPU time that the host withheld from this machine, all cores."""
    with open("/proc/stat") as file:
        return int(file.readline().split()[8]) / TICK


def busy_seconds() -> float:
    """CPU time that anything on this machine used, all cores."""
    with open("/proc/stat") as file:
        fields = [int(text) for text in file.readline().split()[1:]]
    return (fields[0] + fields[1] + fields[2] + fields[5] + fields[6]) / TICK


@contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """Processes started inside run on that core; the caller itself comes back to all of its cores."""
    if cpu is None:
        yield
        return
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)
