"""In which order bodies go to another site: those that this site might lose, then the hottest; every fourth turn the
oldest. Pure.

A body is endangered while a device that holds one of its copies is lost: one more loss, and the other site's copy would
be the only one. Such bodies go before all, in turns of the oldest too. For the others the aging bound follows from the
turns: a row is taken at the latest after AGING_TURNS times as many turns as there are older rows waiting, however hot
the others are. Total time is that of any order, because only the order changes.

A row is placed by its heat when it comes; the heats of all are looked at again every few seconds, in slices, so that
nobody waits for a long queue to be ranked: 20,000 rows cost 20 slices of about a millisecond.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Final, NamedTuple

from metadata.catalog.sites import QueueRow

#: One turn in so many goes to the oldest row.
AGING_TURNS: Final = 4
#: Rows whose heat is looked at in one piece.
SLICE_ROWS: Final = 1000
#: In front of every heat.
ENDANGERED: Final = -math.inf

#: Reads per hour of chunks, in their order.
HeatsOf = Callable[[Sequence[bytes]], list[float]]


class Waiting(NamedTuple):
    """chunks: those whose heat is the row's (its hottest counts). homes: the devices that their copies stand on."""

    row: QueueRow
    chunks: list[bytes]
    homes: tuple[int, ...] = ()


class BodyOrder:
    """Rows that wait, by sequence. heats_of, and lost (devices), are asked as they come, and again by each ranking."""

    def __init__(self, heats_of: HeatsOf, lost: Callable[[], Collection[int]] = tuple) -> None:
        self._heats_of = heats_of
        self._lost = lost
        self._rows: dict[int, Waiting] = {}
        # Heaps. A row that one of them gave away stays in the other until it comes up there, or the next ranking.
        self._hottest: list[tuple[float, int]] = []     # minus the heat, sequence
        self._oldest: list[int] = []
        self._ranked: list[tuple[float, int]] | None = None     # the next _hottest, while a ranking is under way
        self._turn = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, rows: Sequence[Waiting]) -> None:
        for waiting, place in zip(rows, self._places(rows), strict=True):
            sequence = waiting.row.sequence
            if sequence not in self._rows:
                heappush(self._oldest, sequence)
            self._rows[sequence] = waiting
            heappush(self._hottest, place)
            if self._ranked is not None:
                self._ranked.append(place)

    def _places(self, rows: Sequence[Waiting]) -> list[tuple[float, int]]:
        lost = frozenset(self._lost())
        heats = self.heats([waiting.chunks for waiting in rows])
        if not lost:
            return [(-heat, waiting.row.sequence) for heat, waiting in zip(heats, rows, strict=True)]
        return [
            (-heat if lost.isdisjoint(waiting.homes) else ENDANGERED, waiting.row.sequence)
            for heat, waiting in zip(heats, rows, strict=True)
        ]

    def heats(self, bodies: Sequence[Sequence[bytes]]) -> list[float]:
        """Of each body the heat of its hottest chunk, 0 without one."""
        if all(len(chunks) == 1 for chunks in bodies):
            return self._heats_of([chunks[0] for chunks in bodies])
        found = iter(self._heats_of([chunk for chunks in bodies for chunk in chunks]))
        return [max(islice(found, len(chunks)), default=0.0) for chunks in bodies]

    def ranking(self) -> Iterator[None]:
        """Put the rows in order by their heat of now, a slice with each step; among equals the older first. Rows may
        come and go between the steps; the new order holds from the end of the last one on."""
        self._ranked = ranked = []
        left = iter(list(self._rows.values()))
        while some := list(islice(left, SLICE_ROWS)):
            ranked += self._places(some)
            yield
        if self._ranked is ranked:      # else a later ranking has begun
            heapify(ranked)
            self._hottest, self._ranked = ranked, None
            self._oldest = sorted(self._rows)

    def take(self) -> Waiting | None:
        """The next row, which leaves; None when none waits."""
        if not self._rows:
            self._hottest.clear()
            self._oldest.clear()
            return None
        self._turn += 1
        is_oldest = self._turn % AGING_TURNS == 0 and self._first()[0] != ENDANGERED
        while True:
            sequence = heappop(self._oldest) if is_oldest else heappop(self._hottest)[1]
            found = self._rows.pop(sequence, None)
            if found is not None:
                return found

    @property
    def is_hot(self) -> bool:
        """Whether a body waits that is read, or endangered."""
        return bool(self._rows) and self._first()[0] < 0

    def peek_bytes(self) -> int:
        """Size of the row that comes next, roughly: of the hottest."""
        return self._rows[self._first()[1]].row.size if self._rows else 0

    def _first(self) -> tuple[float, int]:
        """The place of the hottest. There must be a row."""
        while self._hottest[0][1] not in self._rows:
            heappop(self._hottest)
        return self._hottest[0]
