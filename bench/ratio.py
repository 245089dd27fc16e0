"""Alternating measurement of two servers under one load client: rates, their ratio, CPU per request, steal.

The machine is never quiet, so only ratios of neighbouring windows count: side A, side B, A, B, ...; the figure is the
median over pairs in which the host stole little CPU. CPU time of all processes of a side comes from /proc.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.processes import cpu_seconds, steal_seconds
from bench.result import Result

STEAL_MAX = 0.03            # share of the machine's time; pairs above it are dropped
SERVER_CPU, CLIENT_CPU = 0, 1


def build_httpload(directory: Path) -> Path:
    """Compile the load client; needs gcc."""
    program = directory / "httpload"
    source = Path(__file__).with_name("httpload.c")
    subprocess.run(["gcc", "-O2", "-o", str(program), str(source)], check=True)
    return program


@dataclass(frozen=True)
class Window:
    """One run of the load client against one side."""

    requests: int
    bad: int
    rate: float             # requests per second
    cpu_us: float           # of the server per request, user and system
    p99_ms: float
    steal: float


@dataclass
class Side:
    """name, pid of the server (its children count), arguments of the load client; before() prepares a window."""

    name: str
    pid: int
    arguments: Callable[[], Sequence[str]]


def measure(httpload: Path, side: Side, *, seconds: float, connections: int) -> Window:
    """One window. Raises RuntimeError when an answer was not 2xx: a rate of errors is no rate."""
    cpu0, steal0 = cpu_seconds(side.pid), steal_seconds()
    command = ["taskset", "-c", str(CLIENT_CPU), str(httpload), "-c", str(connections), "-d", str(seconds)]
    done = subprocess.run([*command, *side.arguments()], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"load client on {side.name}: {done.returncode} {done.stderr[:300]}")
    found = json.loads(done.stdout)
    if found["bad"]:
        raise RuntimeError(f"{side.name}: {found['bad']} of {found['requests']} answers were errors")
    cpu, steal = cpu_seconds(side.pid) - cpu0, steal_seconds() - steal0
    return Window(
        requests=found["requests"], bad=found["bad"], rate=found["rps"], cpu_us=cpu / max(found["requests"], 1) * 1e6,
        p99_ms=found["p99_ms"], steal=steal / found["seconds"] / (os.cpu_count() or 1),
    )  # fmt: skip


@dataclass(frozen=True)
class Ratio:
    """ours / reference, medians over the good pairs."""

    ratio: float
    cpu_ratio: float        # CPU per request: reference / ours, so that larger is better here too
    ours_rate: float
    reference_rate: float
    ours_cpu_us: float
    reference_cpu_us: float
    ours_p99_ms: float
    pairs: int
    dropped: int

    def result(self, row: str, *, must: float, aim: float) -> Result:
        """As one row of the table."""
        detail = (f"{self.ours_rate:,.0f}/s, reference {self.reference_rate:,.0f}/s {self.reference_cpu_us:.1f} us; "
                  f"CPU ratio {self.cpu_ratio:.2f}; p99 {self.ours_p99_ms:.2f} ms; "
                  f"{self.pairs} pairs, {self.dropped} dropped")  # fmt: skip
        return Result(row, self.ratio, must=must, aim=aim, cpu_us=self.ours_cpu_us, detail=detail)


def compare(
    httpload: Path, ours: Side, reference: Side, *, rounds: int, seconds: float, connections: int = 16,
    reference_seconds: float | None = None,
) -> Ratio:  # fmt: skip
    """Alternate the sides; the order within a pair alternates too."""
    pairs: list[tuple[Window, Window]] = []
    dropped = 0
    for number in range(rounds):
        windows: dict[str, Window] = {}
        for side in (ours, reference) if number % 2 else (reference, ours):
            span = reference_seconds if side is reference and reference_seconds else seconds
            windows[side.name] = measure(httpload, side, seconds=span, connections=connections)
        pair = windows[ours.name], windows[reference.name]
        if max(pair[0].steal, pair[1].steal) > STEAL_MAX or not all(window.requests for window in pair):
            dropped += 1
        else:
            pairs.append(pair)
    if not pairs:
        raise RuntimeError("every window was disturbed or too short for one request; nothing was measured")

    def median(values: list[float]) -> float:
        return statistics.median(values)

    return Ratio(
        ratio=median([a.rate / b.rate for a, b in pairs]),
        cpu_ratio=median([b.cpu_us / a.cpu_us if a.cpu_us else 0.0 for a, b in pairs]),
        ours_rate=median([a.rate for a, _ in pairs]),
        reference_rate=median([b.rate for _, b in pairs]),
        ours_cpu_us=median([a.cpu_us for a, _ in pairs]),
        reference_cpu_us=median([b.cpu_us for _, b in pairs]),
        ours_p99_ms=median([a.p99_ms for a, _ in pairs]),
        pairs=len(pairs),
        dropped=dropped,
    )
