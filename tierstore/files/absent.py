"""Names that a mount knows not to be there, so that it need not ask: metadata has delegated their directory to it
(ADR 0685), and it remembers every name that it was shown there or has brought there itself.

What is remembered are bits, several names to one: a bit that is set means "ask". Names are never taken out again; they
are forgotten by generations. Invariants: a name is noted before the change that brings it is sent, in every directory,
delegated or not: the change may be done after the directory was read, and its outcome may never be known; so what is
noted outlives the delegations of its time by one generation.
Bounds: 2 x BITS of memory, NAMES_MAX names of a generation, DIRECTORIES_MAX directories. answered: look-ups saved.
"""

from __future__ import annotations

from typing import Final

from tierstore.transport.delegations import DelegationPage

BITS: Final = 1 << 20
#: About one name in twenty is asked for although it is not there, when a generation is full.
NAMES_MAX: Final = 50_000
DIRECTORIES_MAX: Final = 256
#: Look-ups in vain in a directory before it is read, and how many more each time that was of no use.
FIRST_MISSES: Final = 4
MISSES_MAX: Final = 1024


class Absent:
    """One per mount. Event loop only."""

    def __init__(self) -> None:
        self._page: DelegationPage | None = None
        self.place = ""
        #: Number of a directory -> its delegation.
        self._held: dict[int, int] = {}
        #: Number of a directory -> (look-ups in vain since it was read, how many there must be).
        self._misses: dict[int, tuple[int, int]] = {}
        self._bits = bytearray(BITS // 8)
        self._older = bytes(BITS // 8)
        self._noted = 0
        self.answered = 0

    async def attach(self, place: str) -> None:
        """Metadata's process is at `place` ("": it delegates nothing)."""
        if place == self.place:
            return
        self.close()
        self.place = place
        self._page = await DelegationPage.open(place) if place else None

    def close(self) -> None:
        """Ask about everything. Harmless to repeat."""
        self._held.clear()
        page, self._page, self.place = self._page, None, ""
        if page is not None:
            page.close()

    @property
    def is_attached(self) -> bool:
        return self._page is not None

    def is_known(self, parent: int, name: str) -> bool:
        """Whether it is certain that the directory has no such name."""
        number = self._held.get(parent)
        if number is None or self._page is None:
            return False
        if not self._page.holds(number):
            del self._held[parent]
            return False
        at, bit = _place(parent, name)
        if (self._bits[at] | self._older[at]) & bit:
            return False
        self.answered += 1
        return True

    def is_worth_reading(self, parent: int) -> bool:
        """A name was looked up there in vain: whether it is time to read the directory and have it delegated."""
        if self._page is None or parent in self._held:
            return False
        count, needed = self._misses.pop(parent, (0, FIRST_MISSES))
        is_due = count + 1 >= needed
        self._misses[parent] = (0, min(2 * needed, MISSES_MAX)) if is_due else (count + 1, needed)
        if len(self._misses) > DIRECTORIES_MAX:
            del self._misses[next(iter(self._misses))]
        return is_due

    def take(self, parent: int, number: int, names: list[str]) -> None:
        """The directory is delegated, and these are its names."""
        for name in names:
            self.note(parent, name)
        self._held.pop(parent, None)
        self._held[parent] = number
        if len(self._held) > DIRECTORIES_MAX:
            del self._held[next(iter(self._held))]

    def note(self, parent: int, name: str) -> None:
        """The name is there, or may come to be by this mount's hand. Before it is sent."""
        at, bit = _place(parent, name)
        if self._bits[at] & bit:
            return
        self._bits[at] |= bit
        self._noted += 1
        if self._noted > NAMES_MAX:
            self._older, self._bits, self._noted = bytes(self._bits), bytearray(BITS // 8), 0
            self._held.clear()


def _place(parent: int, name: str) -> tuple[int, int]:
    number = hash((parent, name)) & (BITS - 1)
    return number >> 3, 1 << (number & 7)
