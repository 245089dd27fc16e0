"""From a bucket's name to its row, as quickly as the engine allows.

On SQLite this process is the only writer, so a dict that is dropped at every change of a bucket is exact; on
PostgreSQL every question goes to the database, in a statement shared with whoever asks at that moment.
"""

from __future__ import annotations

from typing import Final

from metadata.catalog.buckets import BY_NAME, Bucket
from metadata.catalog.database import Database
from tierstore.errors import NotFound

#: Buckets remembered; beyond it the dict starts anew.
REMEMBERED_MAX: Final = 100_000


class BucketNames:
    """One per process, shared by lookups and listings; whoever changes a bucket calls forget() after the commit."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, Bucket] = {}

    def now(self, name: str) -> Bucket | None:
        """The bucket, or None when only `get` can tell. Raises NotFound(code="no-such-bucket")."""
        bucket = self._known.get(name)
        if bucket is not None:
            return bucket
        if "\x00" in name:       # PostgreSQL takes no NUL in a text
            raise _missing(name)
        rows = self._database.select_now(BY_NAME, [(name,)])
        if rows is None:
            return None
        if not rows:
            raise _missing(name)
        if len(self._known) >= REMEMBERED_MAX:
            self._known.clear()
        bucket = self._known[name] = Bucket.of(rows[0])
        return bucket

    async def get(self, name: str) -> Bucket:
        """Raises NotFound(code="no-such-bucket")."""
        bucket = self.now(name)
        if bucket is None:
            rows = await self._database.select(BY_NAME, [(name,)])
            if not rows:
                raise _missing(name)
            bucket = Bucket.of(rows[0])
        return bucket

    def forget(self) -> None:
        self._known.clear()


def _missing(name: str) -> NotFound:
    return NotFound(f"there is no bucket {name!r}", code="no-such-bucket", bucket=name)
