"""In which order bodies go to another site: the hottest first, every fourth turn the oldest. Pure.

The aging bound follows from the turns: a row is taken at the latest after AGING_TURNS times as many turns as there
are older rows waiting, however hot the others are. Total time is that of any order, because only the order changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from metadata.catalog.sites import QueueRow

#: One turn in so many goes to the oldest row.
AGING_TURNS: Final = 4


class BodyOrder:
    """Rows that wait, by sequence. heat_of is asked again at each rank()."""

    def __init__(self, heat_of: Callable[[bytes], float]) -> None:
        self._heat_of = heat_of
        self._rows: dict[int, tuple[QueueRow, list[bytes]]] = {}
        self._hottest: list[int] = []       # the hottest last
        self._oldest: list[int] = []        # the oldest last
        self._turn = 0
        self._is_ranked = False

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._rows

    def add(self, row: QueueRow, chunks: list[bytes]) -> None:
        """chunks: those whose heat is the row's (its hottest counts)."""
        self._rows[row.sequence] = (row, chunks)
        self._is_ranked = False

    def heat(self, chunks: list[bytes]) -> float:
        return max((self._heat_of(chunk) for chunk in chunks), default=0.0)

    def rank(self) -> None:
        """Put the rows in order by their heat of now; among equals the older first."""
        heats = {sequence: self.heat(chunks) for sequence, (_, chunks) in self._rows.items()}
        self._hottest = sorted(heats, key=lambda sequence: (heats[sequence], -sequence))
        self._oldest = sorted(heats, reverse=True)
        self._is_ranked = True

    def take(self) -> QueueRow | None:
        """The next row, which leaves; None when none waits."""
        if not self._rows:
            return None
        if not self._is_ranked:
            self.rank()
        self._turn += 1
        order = self._oldest if self._turn % AGING_TURNS == 0 else self._hottest
        while True:
            found = self._rows.pop(order.pop(), None)
            if found is not None:
                return found[0]

    def peek_bytes(self) -> int:
        """Size of the row that comes next, roughly: of the hottest."""
        while self._hottest and self._hottest[-1] not in self._rows:
            self._hottest.pop()
        return self._rows[self._hottest[-1]][0].size if self._hottest else 0
