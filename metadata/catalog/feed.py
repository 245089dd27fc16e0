"""The change feed: its head, appending, reading, pruning. A transaction appends last, because it holds the head's
lock from then to its end: that orders the feed as it was committed and leaves no gaps (rule 6)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import sqlalchemy as sa

from metadata.catalog import schema
from metadata.catalog.session import BulkWrite, Session
from metadata.catalog.statement import Statement

INSERT_CHANGES: Final = BulkWrite(
    "insert", schema.changes, ("sequence", "at_ms", "kind", "bucket_id", "key", "version")
)
INSERT_REPLICATION: Final = BulkWrite(
    "insert", schema.replication_queue,
    ("target", "sequence", "at_ms", "bucket_id", "key", "version", "kind", "size"),
)  # fmt: skip


class Change(NamedTuple):
    """One entry. What bucket_id, key and version hold for each kind: see schema.CHANGE_*."""

    sequence: int
    at_ms: int
    kind: int
    bucket_id: int
    key: str
    version: int


class NewChange(NamedTuple):
    """An entry before it has its place; the first four are Change's last. targets: sites that must hear of it; size:
    bytes they have to fetch."""

    kind: int
    bucket_id: int
    key: str
    version: int
    size: int = 0
    targets: tuple[str, ...] = ()


def append_bulk(session: Session, entries: Sequence[NewChange], *, at_ms: int, version: int) -> tuple[int, int]:
    """Append entries (and their replication work); (sequence of the last one, largest version id of the catalog)."""
    if not entries:
        return 0, 0
    last, floor = session.append(INSERT_CHANGES, [(at_ms, *e[:4]) for e in entries], version)
    first = last - len(entries) + 1
    work = [
        (target, sequence, at_ms, e.bucket_id, e.key, e.version, e.kind, e.size)
        for sequence, e in enumerate(entries, first) for target in e.targets
    ]  # fmt: skip
    session.write(INSERT_REPLICATION, work)
    return last, floor


def append(connection: sa.Connection, entries: Iterable[NewChange], *, at_ms: int) -> int:
    """The same on an ordinary connection, without replication work; the last sequence (0: nothing to append)."""
    entries = list(entries)
    if not entries:
        return 0
    last = int(_ADVANCE.first(connection, by=len(entries))[0])
    _INSERT.run_many(
        connection,
        [
            {"sequence": last - len(entries) + i, "at_ms": at_ms, "kind": e.kind, "bucket_id": e.bucket_id,
             "key": e.key, "version": e.version}
            for i, e in enumerate(entries, 1)
        ],
    )  # fmt: skip
    return last


_H: Final = schema.feed_head.c
_ADVANCE: Final = Statement(
    sa.update(schema.feed_head)
    .where(_H.id == 1)
    .values(sequence=_H.sequence + sa.bindparam("by", type_=sa.BigInteger))
    .returning(_H.sequence)
)
_INSERT: Final = Statement(sa.insert(schema.changes), columns=INSERT_CHANGES.columns)
_C: Final = schema.changes.c
_HEAD: Final = Statement(sa.select(schema.feed_head.c.sequence, schema.feed_head.c.version))
_OLDEST: Final = Statement(sa.select(sa.func.coalesce(sa.func.min(_C.sequence), sa.literal_column("0"))))
_READ: Final = Statement(
    sa.select(*(_C[name] for name in Change._fields))
    .where(_C.sequence > sa.bindparam("after"))
    .order_by(_C.sequence)
    .limit(sa.bindparam("limit"))
)


def head(connection: sa.Connection) -> tuple[int, int]:
    """(sequence of the newest change, largest version id)."""
    row = _HEAD.first(connection)
    return int(row[0]), int(row[1])


def read(connection: sa.Connection, after: int, limit: int) -> list[Change]:
    """Up to `limit` changes after a sequence, in order. Complete: what is committed later has a larger sequence."""
    return list(map(Change._make, _READ.rows(connection, after=after, limit=limit)))


def oldest(connection: sa.Connection) -> int:
    """The first sequence still kept; a cursor below it minus one needs a resync. 0: the feed is empty."""
    return int(_OLDEST.first(connection)[0])


def prune(connection: sa.Connection, *, through: int, limit: int = 10_000) -> int:
    """Forget up to `limit` of the oldest changes with sequence <= through; how many."""
    t = schema.changes.c
    first = oldest(connection)
    if not first:
        return 0
    stop = min(through, first + limit - 1)
    return int(connection.execute(sa.delete(schema.changes).where(t.sequence <= stop)).rowcount)
