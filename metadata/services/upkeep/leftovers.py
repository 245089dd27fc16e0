"""Rows of the reverse table that the chunk's own row does not agree with: left behind by a copy that moved while its
name did (catalog/book.forget), or by an older release. Whoever walks over the table tells what it met; here stands
when such a row may go.

Invariant: a row goes only when it is wrong twice, and the table has passed the moment of the first time in between:
until then it may merely be late (rule 2). Bound: SUSPECTS_MAX rows are remembered, the oldest are forgotten first and
met again in the next pass.
"""

from __future__ import annotations

from typing import Final

from metadata.catalog import servers
from metadata.catalog.book import Located
from metadata.catalog.leases import Connection
from metadata.services.jobs.work import ReplicaBook

SUSPECTS_MAX: Final = 4096


class Leftovers:
    """One per walk; used in its transactions, one at a time. A transaction that is rolled back leaves a suspicion that
    is looked at again, nothing else."""

    def __init__(self, book: ReplicaBook) -> None:
        self._book = book
        #: (device, chunk) -> the feed's sequence when its row was first seen to be wrong.
        self._suspects: dict[tuple[int, bytes], int] = {}
        self.removed = 0

    def is_suspect(self, device: int, chunk: bytes) -> bool:
        """Whether the row was seen to be wrong and has to be looked at again."""
        return (device, chunk) in self._suspects

    def met(self, c: Connection, located: Located | None, device: int, chunk: bytes) -> bool:
        """Judge the row (device, chunk) by what `locate` found there, in the same transaction. Whether it is wrong;
        then the caller has nothing to do with it."""
        suspect = (device, chunk)
        if located is not None and any(replica.device == device for replica in located.chunk.replicas):
            self._suspects.pop(suspect, None)
            return False
        seen_at = self._suspects.get(suspect)
        if seen_at is None:
            if len(self._suspects) >= SUSPECTS_MAX:
                del self._suspects[next(iter(self._suspects))]
            # After `locate`: what it waited for is committed, and has its place in the feed up to here.
            self._suspects[suspect] = servers.feed_sequence(c)
        elif self._book.mark(c) >= seen_at:
            self.removed += self._book.forget(c, device, chunk)
            del self._suspects[suspect]
        return True
