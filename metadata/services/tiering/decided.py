"""The last decisions about each chunk, for explain: what was done or not done with it, when and why.

Owns DECISIONS_EACH_MAX decisions of at most DECIDED_CHUNKS_MAX chunks, those decided about last. In memory: a restart
forgets them, which costs explanations, nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from tierstore.policy.plan import Decision

DECIDED_CHUNKS_MAX: Final = 20_000
DECISIONS_EACH_MAX: Final = 8


class Decisions:
    """One per process."""

    def __init__(self) -> None:
        #: Lists, not deques: an empty deque takes 600 bytes, and most chunks have one or two decisions.
        self._of: OrderedDict[bytes, list[Decision]] = OrderedDict()

    def of(self, chunk: bytes) -> tuple[Decision, ...]:
        """Oldest first; of equal refusals in a row only the newest."""
        return tuple(self._of.get(chunk, ()))

    def forget(self, chunk: bytes) -> None:
        """The chunk is gone."""
        self._of.pop(chunk, None)

    def note(self, decisions: Iterable[Decision]) -> None:
        """Add what a tick decided."""
        for decision in decisions:
            known = self._of.get(decision.chunk)
            if known is None:
                known = self._of[decision.chunk] = []
            last = known[-1] if known else None
            if last is not None and (last.action, last.why) == (decision.action, decision.why) == ("skip", last.why):
                known.pop()     # the same again: the newest is enough
            known.append(decision)
            del known[:-DECISIONS_EACH_MAX]
            self._of.move_to_end(decision.chunk)
        while len(self._of) > DECIDED_CHUNKS_MAX:
            self._of.popitem(last=False)
