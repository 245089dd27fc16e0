"""How long the catalog keeps what only repeats and late readers need. Bounded deletes, oldest first.

The feed is cut only behind every reader: the reverse table, the snapshot's journal, and the sites' queues copy what
they need out of it; a cursor behind the cut gets `resync` (rule 6).
"""

from __future__ import annotations

from typing import Final

from metadata.catalog import feed, garbage, leases, operations
from metadata.catalog.database import Database
from metadata.catalog.leases import Connection, require_epoch
from metadata.services.cluster.duties import PROMOTER
from metadata.services.cluster.membership import Cluster
from metadata.services.jobs.work import ReplicaBook

FEED_KEPT_MS: Final = 7 * 86_400_000
#: An upload condemned this long ago lapsed long before; leases cannot revive a lapsed upload.
CONDEMNED_KEPT_MS: Final = 30 * 86_400_000
LIMIT: Final = 5000
#: Setting that holds the sequence up to which the journal on the object servers goes.
JOURNAL_SETTING: Final = "journal-sequence"


class Retention:
    def __init__(
        self, database: Database, cluster: Cluster, book: ReplicaBook, *, feed_kept_ms: int = FEED_KEPT_MS
    ) -> None:
        self._database = database
        self._cluster = cluster
        self._book = book
        self._feed_kept_ms = feed_kept_ms

    async def step(self, epoch: int) -> tuple[int, bool]:
        """(rows forgotten, more)."""
        now_ms = self._cluster.now_ms()

        def work(c: Connection) -> int:
            require_epoch(c, PROMOTER, epoch)
            done = operations.prune(c, now_ms=now_ms)
            done += garbage.trim_condemned(c, before_ms=now_ms - CONDEMNED_KEPT_MS, limit=LIMIT)
            journalled = int(leases.setting(c, JOURNAL_SETTING, "0"))
            through = min(self._book.mark(c), journalled)
            cut = garbage.last_change_before(c, at_ms=now_ms - self._feed_kept_ms, through=through)
            return done + feed.prune(c, through=cut, limit=LIMIT)

        done = await self._database.write(work)
        return done, done >= LIMIT
