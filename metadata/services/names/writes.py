"""The write set of one batch of commits: what the decisions of commit add up to, written at the end by one
bulk statement per table.

Invariant: a batch names a key at most once, so the order of rows within a table does not matter; the feed comes last,
because taking its sequence holds the head's lock until the transaction ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from metadata.catalog import bodies, feed, objects, operations, schema, usage
from metadata.catalog.objects import ObjectRow
from metadata.catalog.session import Session
from tierstore.names import UploadId, operation_of


class Committed(NamedTuple):
    """One applied mutation, told to listeners after the commit. old_body and new_body: packed chunks when inline."""

    kind: int                     # schema.CHANGE_*
    bucket: str
    key: str
    version: int
    size: int
    old_body: bytes | None = None
    new_body: bytes | None = None


@dataclass(slots=True)
class WriteSet:
    """Rows to be written; see the tables. Redone from nothing when the batch is."""

    at_ms: int
    inserted: list[ObjectRow] = field(default_factory=list)
    replaced: list[ObjectRow] = field(default_factory=list)
    deleted: list[tuple[int, str]] = field(default_factory=list)
    versions: list[ObjectRow] = field(default_factory=list)
    extents: list[tuple[int, int, bytes, int, int]] = field(default_factory=list)
    chunks: list[tuple[bytes, int, int, int, int, bytes]] = field(default_factory=list)
    garbage: list[tuple[int, bytes]] = field(default_factory=list)
    results: list[tuple[bytes, bytes]] = field(default_factory=list)
    uploads: list[bytes] = field(default_factory=list)       # that now have committed
    ended_leases: list[tuple[bytes]] = field(default_factory=list)
    changes: list[feed.NewChange] = field(default_factory=list)
    events: list[Committed] = field(default_factory=list)
    wants_events: bool = False
    version_max: int = 0
    has_targets: bool = False     # other sites must hear of something
    came: list[tuple[int, str]] = field(default_factory=list)   # rows that stand where none stood, or a delete marker
    by: str = ""                  # the mount that all this is from
    #: bucket id -> [objects, bytes] that this batch adds; of buckets with a quota only (services/names/quotas).
    usage: dict[int, list[int]] = field(default_factory=dict)

    def flush(self, session: Session) -> int:
        """Write everything; the largest version id of the catalog (0 when nothing changed)."""
        for write, rows in (
            (objects.DELETE_LATEST, self.deleted), (objects.INSERT_LATEST, self.inserted),
            (objects.REPLACE_LATEST, self.replaced), (objects.INSERT_VERSION, self.versions),
            (bodies.INSERT_CHUNKS, self.chunks), (bodies.INSERT_EXTENTS, self.extents),
            (bodies.INSERT_GARBAGE, self.garbage), (operations.INSERT_RESULTS, self.results),
            (operations.INSERT_RESULTS, self._marks()), (operations.DELETE_LEASES, self.ended_leases),
        ):  # fmt: skip
            if rows:
                session.defer(write, rows)
        for bucket_id, (objects_added, bytes_added) in sorted(self.usage.items()):
            if objects_added or bytes_added:
                usage.add(session.connection, bucket_id, objects=objects_added, held=bytes_added)
        if session.witness is not None and self.came:
            session.witness.came(self.came, self.by)
        return feed.append_bulk(session, self.changes, at_ms=self.at_ms, version=self.version_max)[1]

    def _marks(self) -> list[tuple[bytes, bytes]]:
        """Rows of uploads whose operation does not say by its id that they have committed."""
        if not self.uploads:
            return []
        marks = {operation_of(UploadId(upload)) for upload in self.uploads}
        marks.difference_update([operation for operation, _ in self.results])
        return [(mark, b"") for mark in sorted(marks)]

    def put(self, row: ObjectRow, old: ObjectRow | None) -> None:
        """Make `row` the latest; `old` is the row that stands there now."""
        (self.inserted if old is None else self.replaced).append(row)
        if old is None or old.kind == schema.KIND_MARKER:
            self.came.append((row.bucket_id, row.key))

    def count(self, bucket_id: int, objects: int, held: int) -> None:
        """The bucket holds so much more (or less); of no interest where it has no quota."""
        added = self.usage.get(bucket_id)
        if added is not None:
            added[0] += objects
            added[1] += held

    def discard(self, session: Session, row: ObjectRow) -> None:
        """The row is gone for good: what only it owned becomes garbage."""
        if self.usage and row.kind != schema.KIND_MARKER:
            self.count(row.bucket_id, -1, -row.size)
        if row.kind == schema.KIND_INLINE:
            if row.body:
                self.garbage.append((self.at_ms, row.body))
        elif row.kind == schema.KIND_ROWS:
            assert row.ref is not None, "a row of this kind names its body"
            bodies.release(session, row.ref, at_ms=self.at_ms)
        elif row.kind == schema.KIND_REMOTE and row.ref is not None:
            bodies.release(session, row.ref, at_ms=self.at_ms)
