"""One fast device as the promoter sees it: its speed and fill, the cache copies on it, and which of them ranks lowest.

Owns the residents of a device and their heap. Invariant: what a heap records of a resident is never above its true
rank, for scores only rise (heat.py). So the top, refreshed until the recorded rank is the true one, is the lowest.
Whoever lowers ranks (a shifted landmark, a changed speed) rebuilds the heap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

#: Speeds that differ by less leave the ranks as they are (a rebuild of the heaps costs time).
SPEED_CHANGE: Final = 0.2
#: Entries of a heap beyond two for each resident, before those of copies that are gone are taken out.
STALE_MAX: Final = 64


@dataclass(slots=True)
class Device:
    """A device as the promoter sees it. Speeds are measured, else declared; fill counts what is not a cache copy."""

    id: int
    server: int
    tier: str
    capacity_bytes: int
    seconds: float                # latency of a small read
    bytes_per_second: float
    other_bytes: int = 0          # home copies, trash, garbage: not ours to displace
    load: float = 0.0             # 0..1, share of time its server is busy
    is_usable: bool = True        # up, not draining, not failed, not read-only

    def read_seconds(self, size: int) -> float:
        return self.seconds + size / self.bytes_per_second


@dataclass(slots=True)
class Resident:
    """A cache copy on a fast device."""

    size: int
    homes: tuple[int, ...]        # devices that a read would go to without this copy
    gain: float                   # log2(saved) - beta * log2(size)
    is_pinned: bool = False
    share: float = 1.0            # of the chunk's reads, when it has more than one fast copy


class Shelf:
    """The cache copies on one fast device: how much they take, and which ranks lowest."""

    def __init__(self, device: Device, fill: float) -> None:
        self.device = device
        self.residents: dict[bytes, Resident] = {}
        self.used_bytes = 0
        self.heap: list[tuple[float, bytes]] = []
        self.rate_tokens = 0.0
        self.fill = fill

    @property
    def room_bytes(self) -> int:
        return int(self.device.capacity_bytes * self.fill) - self.device.other_bytes - self.used_bytes

    def put(self, chunk: bytes, resident: Resident, rank: float) -> None:
        self.drop(chunk)
        self.residents[chunk] = resident
        self.used_bytes += resident.size
        heappush(self.heap, (rank, chunk))
        if self._has_many_stale():
            self._forget_stale()

    def _has_many_stale(self) -> bool:
        return len(self.heap) > 2 * len(self.residents) + STALE_MAX

    def _forget_stale(self) -> None:
        """Leave one entry of each resident: the lowest, because a copy that is put again may rank lower than before."""
        lowest: dict[bytes, float] = {}
        for rank, chunk in self.heap:
            if chunk in self.residents and rank <= lowest.get(chunk, rank):
                lowest[chunk] = rank
        self.heap = [(rank, chunk) for chunk, rank in lowest.items()]
        heapify(self.heap)

    def drop(self, chunk: bytes) -> Resident | None:
        """Its entry in the heap goes when it comes to the top, or when too many such are in it."""
        resident = self.residents.pop(chunk, None)
        if resident is not None:
            self.used_bytes -= resident.size
        return resident

    def rebuild(self, rank: Callable[[bytes, Resident], float]) -> None:
        self.heap = [(rank(chunk, resident), chunk) for chunk, resident in self.residents.items()]
        heapify(self.heap)

    def lowest(self, rank: Callable[[bytes, Resident], float]) -> tuple[float, bytes] | None:
        """The resident of the lowest true rank (pinned ones left out), at the top of the heap; None when empty."""
        heap = self.heap
        if self._has_many_stale():
            self.rebuild(rank)
            heap = self.heap
        while heap:
            recorded, chunk = heap[0]
            resident = self.residents.get(chunk)
            if resident is None or resident.is_pinned:
                heappop(heap)
                continue
            true = rank(chunk, resident)
            if true == recorded:
                return heap[0]
            heapreplace(heap, (true, chunk))
        return None


def speed_changed(ranked_with: tuple[float, float] | None, device: Device) -> bool:
    """Whether ranks computed with that latency and rate are too far from the device's speed of today."""
    if ranked_with is None:
        return True
    seconds, rate = ranked_with
    return (
        abs(device.seconds - seconds) > SPEED_CHANGE * seconds
        or abs(device.bytes_per_second - rate) > SPEED_CHANGE * rate
    )
