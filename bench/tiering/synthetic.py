"""Seeded synthetic object-store workloads, as bench/traces/SYNTHETIC.md specifies them.

One Generator(PCG64(seed)) drives everything in a fixed order: same seed, same bytes. Where the specification leaves
room: `requests` counts all requests of a trace (what a preset adds is taken off the Zipf reads); the share of
"5 % of all requests" of a crowd is of the mean rate; a new key of the drift is PUT at the full hour and its rank is
taken once an hour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tierstore.policy.trace import DELETE, GET, PUT, Trace

PRESETS: Final = ("steady", "drift", "scan", "flash", "all")
HOUR: Final = 3600.0
DAY: Final = 86_400.0

#: Where a request comes from.
ZIPF, ONE_HIT, SCAN, CROWD, WRITE = range(5)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Workload:
    """A trace, where each of its requests comes from, and the crowds: (key, time of its first request)."""

    trace: Trace
    origin: npt.NDArray[np.uint8]
    crowds: tuple[tuple[int, float], ...]


def generate(
    preset: str, *, seed: int = 1, objects: int = 20_000, requests: int = 200_000, span: float = DAY,
    alpha: float = 0.9, churn: float | None = None, is_size_correlated: bool = False,
) -> Workload:  # fmt: skip
    """A workload by its preset: steady, drift, scan, flash or all."""
    if preset not in PRESETS:
        raise ValueError(f"{preset!r} is no preset; they are {', '.join(PRESETS)}")
    build = _Builder(seed, objects, requests, span, alpha)
    has_drift, has_scans, has_crowds = preset in {"drift", "all"}, preset in {"scan", "all"}, preset in {"flash", "all"}
    build.rank(0.02 if churn is None and has_drift else churn or 0.0, has_new_keys=has_drift)
    build.sizes(is_size_correlated)
    if has_scans:
        # The new keys that the mix writes are requested once, too: they count towards the 20 %.
        build.one_hits(int((0.16 if preset == "all" else 0.2) * requests))
        build.scans(max(round(4 * span / DAY), 1))
    if has_crowds:
        build.crowds(max(round(3 * span / DAY), 1))
    if preset == "all":
        build.mix()
    build.zipf()
    return build.workload()


class _Builder:
    def __init__(self, seed: int, objects: int, requests: int, span: float, alpha: float) -> None:
        self.random = np.random.Generator(np.random.PCG64(seed))
        self.objects, self.requests, self.span, self.alpha = objects, requests, span, alpha
        self.keys = objects  # given out so far
        self.parts: list[tuple[Floats, Ints, int, int]] = []  # times, keys, op, origin
        self.crowd_list: list[tuple[int, float]] = []
        # Cumulative rate on a grid of a minute, for the diurnal arrivals.
        self.grid = np.linspace(0.0, span, int(span // 60) + 2)
        rate = np.maximum(1 + 0.6 * np.sin(2 * np.pi * (self.grid - 6 * HOUR) / DAY), 0.1)
        self.cumulative = np.concatenate([[0.0], np.cumsum((rate[1:] + rate[:-1]) / 2)])

    def rank(self, churn: float, *, has_new_keys: bool) -> None:
        """Rank 1..N of every key in every hour; keys that come new, with the rank at which they enter."""
        random, n = self.random, self.objects
        hours = max(int(np.ceil(self.span / HOUR)), 1)
        order = np.empty(n)
        order[random.permutation(n)] = np.arange(1, n + 1)
        self.ranks = [order]
        self.entries: list[tuple[int, Ints, Floats]] = []
        for hour in range(1, hours):
            order = order.copy()
            swaps = int(churn * n)
            if swaps:
                ours, theirs = random.choice(n, swaps, replace=False), random.choice(n, swaps, replace=False)
                for a, b in zip(ours.tolist(), theirs.tolist(), strict=True):
                    order[a], order[b] = order[b], order[a]
            self.ranks.append(order)
            if has_new_keys:
                count = n // 100
                keys = self._new_keys(count)
                self.entries.append((hour, keys, random.uniform(1, 0.2 * n, count)))
                self._add(np.full(count, hour * HOUR), keys, PUT, WRITE)

    def sizes(self, is_correlated: bool) -> None:
        """Drawn for as many keys as the trace can ever have; the largest 1 % may be moved to cold keys."""
        random, n = self.random, self.objects + 2 * self.requests
        is_large = random.random(n) < 0.1
        small = random.lognormal(np.log(64 * 1024), 1.6, n)
        large = random.lognormal(np.log(8 * 1024 * 1024), 1.2, n)
        self.size = np.clip(np.where(is_large, large, small), 512, 1 << 30).astype(np.int64)
        if is_correlated:
            own, ranks = self.size[: self.objects], self.ranks[0]
            largest = np.argsort(own)[-(self.objects // 100) :]
            hot = largest[ranks[largest] <= self.objects / 2]
            cold = np.setdiff1d(np.flatnonzero(ranks > self.objects / 2), largest)[: len(hot)]
            own[hot], own[cold] = own[cold].copy(), own[hot].copy()

    def one_hits(self, count: int) -> None:
        self._add(self._arrivals(count), self._new_keys(count), GET, ONE_HIT)

    def scans(self, count: int) -> None:
        """Each reads 5 % of N keys of the cold half, once, in key order, at ten times the mean rate."""
        step = self.span / self.requests / 10
        reads = int(0.05 * self.objects)
        cold = np.flatnonzero(self.ranks[0] > self.objects / 2)
        for start in np.sort(self.random.uniform(0, self.span - reads * step, count)):
            keys = np.sort(self.random.choice(cold, min(reads, len(cold)), replace=False))
            self._add(start + step * np.arange(len(keys)), keys, GET, SCAN)

    def crowds(self, count: int) -> None:
        """A cold key gets 5 % of all requests for 20 minutes: up in 60 s, then down with a half-life of 10 minutes."""
        cold = np.flatnonzero(self.ranks[0] > self.objects / 2)
        reads = int(0.05 * self.requests / self.span * 1200)
        seconds = np.arange(1201.0)
        shape = np.where(seconds < 60, seconds / 60, 2.0 ** (-(seconds - 60) / 600))
        cumulative = np.cumsum(shape) / shape.sum()
        for start in np.sort(self.random.uniform(0, self.span - 1200, count)):
            key = int(self.random.choice(cold))
            times = start + np.interp(np.sort(self.random.random(reads)), cumulative, seconds)
            self._add(times, np.full(reads, key), GET, CROWD)
            self.crowd_list.append((key, float(times[0])))

    def mix(self) -> None:
        """8 % PUT (half new keys, half overwrites of Zipf-chosen keys), 2 % DELETE of the cold half."""
        new, again, gone = int(0.04 * self.requests), int(0.04 * self.requests), int(0.02 * self.requests)
        self._add(self._arrivals(new), self._new_keys(new), PUT, WRITE)
        times = self._arrivals(again)
        self._add(times, self._popular(times), PUT, WRITE)
        cold = np.flatnonzero(self.ranks[0] > self.objects / 2)
        self._add(self._arrivals(gone), self.random.choice(cold, gone), DELETE, WRITE)

    def zipf(self) -> None:
        """The reads by popularity fill the trace up to its number of requests."""
        times = self._arrivals(max(self.requests - sum(len(part[0]) for part in self.parts), 0))
        self._add(times, self._popular(times), GET, ZIPF)

    def workload(self) -> Workload:
        time = np.concatenate([part[0] for part in self.parts])
        order = np.argsort(time, kind="stable")
        key = np.concatenate([part[1] for part in self.parts])[order].astype(np.int64)
        op = np.concatenate([np.full(len(part[0]), part[2]) for part in self.parts])[order].astype(np.uint8)
        origin = np.concatenate([np.full(len(part[0]), part[3]) for part in self.parts])[order].astype(np.uint8)
        return Workload(Trace(time[order], key, self.size[key], op), origin, tuple(self.crowd_list))

    def _add(self, times: Floats, keys: Ints, op: int, origin: int) -> None:
        self.parts.append((times, keys, op, origin))

    def _new_keys(self, count: int) -> Ints:
        self.keys += count
        return np.arange(self.keys - count, self.keys)

    def _arrivals(self, count: int) -> Floats:
        """Times of a non-homogeneous Poisson process, given how many there are."""
        drawn = np.sort(self.random.random(count)) * self.cumulative[-1]
        times: Floats = np.interp(drawn, self.cumulative, self.grid)
        return times

    def _popular(self, times: Floats) -> Ints:
        """A key for each (sorted) time, by the ranks of its hour."""
        keys = np.empty(len(times), dtype=np.int64)
        hours = np.minimum((times // HOUR).astype(np.int64), len(self.ranks) - 1)
        for hour in range(len(self.ranks)):
            start, end = np.searchsorted(hours, [hour, hour + 1])
            ranks, names = [self.ranks[hour]], [np.arange(self.objects)]
            for entered, new, rank in self.entries:
                if entered <= hour:
                    ranks.append(rank * 2.0 ** ((hour - entered) / 6))
                    names.append(new)
            weights = np.cumsum(np.concatenate(ranks) ** -self.alpha)
            drawn = np.searchsorted(weights, self.random.random(end - start) * weights[-1], side="right")
            keys[start:end] = np.concatenate(names)[drawn]
        return keys


def fitted_alpha(workload: Workload) -> float:
    """Zipf exponent by maximum likelihood over the ranks of the Zipf reads (ranks by count; check of the generator)."""
    is_zipf = workload.origin == ZIPF
    counts = np.sort(np.bincount(workload.trace.key[is_zipf]))[::-1].astype(np.float64)
    counts = counts[: max(len(counts) // 20, 10)]  # the head: in the tail the order by count is noise
    logs = np.log(np.arange(1, len(counts) + 1))
    low, high = 0.1, 3.0
    mean = float((counts * logs).sum() / counts.sum())
    for _ in range(60):  # the likelihood's slope falls in alpha: bisect
        middle = (low + high) / 2
        weights = np.exp(-middle * logs)
        low, high = (middle, high) if float((weights * logs).sum() / weights.sum()) > mean else (low, middle)
    return (low + high) / 2


def one_hit_share(workload: Workload) -> float:
    """Share of the trace's keys that are read exactly once."""
    trace = workload.trace
    reads = np.bincount(trace.key[trace.op == GET], minlength=int(trace.key.max()) + 1)
    return float((reads == 1).sum()) / len(np.unique(trace.key))


def csv_text(workload: Workload) -> str:
    """The common form: time,key,size,op."""
    trace, names = workload.trace, ("GET", "PUT", "DELETE")
    rows = zip(trace.time.tolist(), trace.key.tolist(), trace.size.tolist(), trace.op.tolist(), strict=True)
    return "time,key,size,op\n" + "".join(f"{t:.3f},{k},{s},{names[o]}\n" for t, k, s, o in rows)
