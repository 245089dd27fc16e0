"""Waiting until the promoter has nothing left to move, and what the moving costs: a row of its own.

The windows of a GET are about GETs. What other rows wrote and read a moment before is still being promoted when they
begin, and its CPU was charged to them. Condition: two ticks of the promoter in which it began nothing, and no copy
under way; after DEADLINE_SECONDS the windows are played all the same, and their row says so.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

from bench.cluster import Running
from bench.processes import cpu_seconds
from bench.result import Result
from tests.kit.admin import ask

DEADLINE_SECONDS: Final = 180.0
#: Between two looks: each is a request to metadata, which is being measured.
LOOK_SECONDS: Final = 1.0
TICKS: Final = 2
_REASONS: Final = ("promote", "demote")


@dataclass(frozen=True)
class Settled:
    """What the wait showed. cpu_ms: of all server processes meanwhile, with what they take at rest."""

    is_settled: bool
    moved_bytes: int
    cpu_ms: float
    seconds: float

    def result(self, row: str) -> Result:
        mebibytes = self.moved_bytes / (1 << 20)
        detail = f"{mebibytes:,.0f} MiB in {self.seconds:.0f} s, {self.cpu_ms:,.0f} ms in all" + (
            "" if self.is_settled else "; NOT settled"
        )
        each = self.cpu_ms / mebibytes if mebibytes else 0.0
        return Result(f"e2e promotions, {row}", each, unit="ms/MiB", is_less_better=True, detail=detail)


def settle(cluster: Running) -> Settled:
    """Wait, DEADLINE_SECONDS at most."""
    began, cpu = time.monotonic(), cpu_seconds(cluster.up)
    first = before = _look(cluster)
    is_settled = False
    while not is_settled and time.monotonic() < began + DEADLINE_SECONDS:
        time.sleep(LOOK_SECONDS)
        now = _look(cluster)
        if now.moved_bytes != before.moved_bytes or now.open_jobs:
            before = now
        is_settled = not now.open_jobs and now.ticks >= before.ticks + TICKS
    last = _look(cluster)
    return Settled(
        is_settled, last.moved_bytes - first.moved_bytes, (cpu_seconds(cluster.up) - cpu) * 1e3,
        time.monotonic() - began,
    )  # fmt: skip


@dataclass(frozen=True)
class _Look:
    ticks: int
    open_jobs: int
    moved_bytes: int


def _look(cluster: Running) -> _Look:
    """Raises RuntimeError when nobody answers."""
    answer: dict[str, Any] | None = ask(cluster.cluster, "/v1/admin/jobs?limit=1")
    if answer is None:
        raise RuntimeError("the gateway does not tell of its jobs")
    work = [one for one in answer["work"] if one["why"] in _REASONS]
    return _Look(
        ticks=sum(duty["steps"] for duty in answer["duties"] if duty["name"] == "tiering"),
        open_jobs=sum(one["waiting"] + one["running"] for one in work),
        moved_bytes=sum(one["bytes_moved"] for one in work),
    )
