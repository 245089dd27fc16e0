"""Bytes written and not committed yet, and how they lie over what is there. Pure: no I/O.

Runs are in the order of writing; where two overlap, the later one counts. A run that is sealed (its chunk is on the
way or stored) never changes; what is written over it becomes a run of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(slots=True, eq=False)
class Run:
    """Bytes at start .. end. appended: written by O_APPEND (its place is found at the commit)."""

    start: int
    data: bytearray
    appended: bool = False
    sealed: bool = False

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class Part(NamedTuple):
    """Bytes [start, end) come from `run`; None: nothing was written there."""

    start: int
    end: int
    run: Run | None


def place(runs: list[Run], start: int, data: bytes | memoryview, *, appended: bool, run_bytes_max: int) -> Run:
    """Put bytes into the runs: into the newest open run when they fit in or continue it, else as a new one."""
    end = start + len(data)
    for run in reversed(runs):
        fits = run.start <= start <= run.end and max(end, run.end) - run.start <= run_bytes_max
        if fits and not run.sealed and run.appended == appended:
            at = start - run.start
            run.data[at : at + len(data)] = data
            return run
        if run.start < end and start < run.end:
            break       # the newest that overlaps cannot take it: it must lie on top
    run = Run(start, bytearray(data), appended)
    runs.append(run)
    return run


def parts(runs: Iterable[Run], first: int, end: int) -> list[Part]:
    """Who has the bytes of [first, end), in order, without gaps (a gap is a part of nobody)."""
    found: list[Part] = [Part(first, end, None)] if end > first else []
    for run in runs:
        if run.end <= first or run.start >= end or not run.data:
            continue
        laid: list[Part] = []
        lo, hi = max(run.start, first), min(run.end, end)
        for part in found:
            if part.end <= lo or part.start >= hi:
                laid.append(part)
                continue
            if part.start < lo:
                laid.append(Part(part.start, lo, part.run))
            if part.end > hi:
                laid.append(Part(hi, part.end, part.run))
        laid.append(Part(lo, hi, run))
        laid.sort(key=lambda part: part.start)
        found = laid
    return found


def cut(runs: list[Run], size: int) -> list[Run]:
    """The runs when the file ends at `size`; sealed ones are replaced by shorter ones."""
    kept = []
    for run in runs:
        if run.start >= size:
            continue
        if run.end > size:
            run = Run(run.start, run.data[: size - run.start], run.appended)
        kept.append(run)
    return kept
