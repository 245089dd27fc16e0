"""Rows of `objects` and `versions`: the hot bulk statements of lookup and commit, and the listing's one range.

Owns the SQL of names; what it means for a key to be versioned, deleted or conditional is services/names/commit's.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from metadata.catalog import schema
from metadata.catalog.session import BulkRead, BulkWrite
from metadata.catalog.statement import Statement


class ObjectRow(NamedTuple):
    """One version of one key. body: packed chunks (kind inline); ref: body id (rows) or inode id; meta: MessagePack."""

    bucket_id: int
    key: str
    version: int
    kind: int
    is_null: int
    size: int
    etag: str
    created_at_ms: int
    body: bytes | None
    meta: bytes | None
    ref: int | None


COLUMNS: Final = ObjectRow._fields

#: The latest version, as lookups read it and as commits lock it.
LATEST: Final = BulkRead(schema.objects, COLUMNS, ("bucket_id", "key"))
LATEST_LOCKED: Final = BulkRead(schema.objects, COLUMNS, ("bucket_id", "key"), lock="UPDATE")
VERSION: Final = BulkRead(schema.versions, COLUMNS, ("bucket_id", "key", "version"))
VERSION_LOCKED: Final = BulkRead(schema.versions, COLUMNS, ("bucket_id", "key", "version"), lock="UPDATE")

INSERT_LATEST: Final = BulkWrite("insert", schema.objects, COLUMNS)
REPLACE_LATEST: Final = BulkWrite("update", schema.objects, COLUMNS, by=("bucket_id", "key"))
DELETE_LATEST: Final = BulkWrite("delete", schema.objects, ("bucket_id", "key"), by=("bucket_id", "key"))
INSERT_VERSION: Final = BulkWrite("insert", schema.versions, COLUMNS)
REPLACE_VERSION: Final = BulkWrite("update", schema.versions, COLUMNS, by=("bucket_id", "key", "version"))
DELETE_VERSION: Final = BulkWrite(
    "delete", schema.versions, ("bucket_id", "key", "version"), by=("bucket_id", "key", "version")
)


_O: Final = schema.objects.c
_LATEST: Final = Statement(
    sa.select(*(_O[name] for name in COLUMNS)).where(
        _O.bucket_id == sa.bindparam("bucket_id"), _O.key == sa.bindparam("key")
    )
)
_V: Final = schema.versions.c
_VERSION: Final = Statement(
    sa.select(*(_V[name] for name in COLUMNS)).where(
        _V.bucket_id == sa.bindparam("bucket_id"), _V.key == sa.bindparam("key"),
        _V.version == sa.bindparam("version"),
    )
)  # fmt: skip


def latest(connection: sa.Connection, bucket_id: int, key: str) -> ObjectRow | None:
    """The latest version as this snapshot has it, not locked."""
    row = _LATEST.first(connection, bucket_id=bucket_id, key=key)
    return None if row is None else ObjectRow._make(row)


def version(connection: sa.Connection, bucket_id: int, key: str, version_id: int) -> ObjectRow | None:
    """A version that is not the latest, not locked."""
    row = _VERSION.first(connection, bucket_id=bucket_id, key=key, version=version_id)
    return None if row is None else ObjectRow._make(row)


def newest_version(connection: sa.Connection, bucket_id: int, key: str) -> ObjectRow | None:
    """The newest row of `versions` of a key, locked: it becomes the latest when the latest is deleted for good."""
    t = schema.versions.c
    row = connection.execute(
        sa.select(*(t[name] for name in COLUMNS))
        .where(t.bucket_id == bucket_id, t.key == key)
        .order_by(t.version.desc())
        .limit(1)
        .with_for_update()
    ).first()
    return None if row is None else ObjectRow(*row)


def null_version(connection: sa.Connection, bucket_id: int, key: str, *, lock: bool = True) -> ObjectRow | None:
    """The key's "null" version among those that are not the latest (there is at most one)."""
    t = schema.versions.c
    query = (
        sa.select(*(t[name] for name in COLUMNS))
        .where(t.bucket_id == bucket_id, t.key == key, t.is_null == 1)
        .order_by(t.version.desc())
        .limit(1)
    )
    row = connection.execute(query.with_for_update() if lock else query).first()
    return None if row is None else ObjectRow(*row)


#: Columns of a listing, in this order; the last three only where asked for: tier and heat, storage class.
LIST_COLUMNS: Final = ("key", "size", "etag", "version", "created_at_ms", "body", "ref", "meta")


def _page(*, with_body: bool, with_meta: bool, from_inclusive: bool, has_end: bool) -> Statement:
    t = schema.objects.c
    names = LIST_COLUMNS[:5] + LIST_COLUMNS[5:7] * with_body + LIST_COLUMNS[7:] * with_meta
    low = t.key >= sa.bindparam("low") if from_inclusive else t.key > sa.bindparam("low")
    query = sa.select(*(t[name] for name in names)).where(t.bucket_id == sa.bindparam("bucket_id"), low)
    if has_end:
        query = query.where(t.key < sa.bindparam("high"))
    return Statement(query.where(t.kind != schema.KIND_MARKER).order_by(t.key).limit(sa.bindparam("limit")))


_PAGES: Final = {
    (body, meta, inclusive, end): _page(with_body=body, with_meta=meta, from_inclusive=inclusive, has_end=end)
    for body in (False, True) for meta in (False, True) for inclusive in (False, True) for end in (False, True)
}  # fmt: skip


def page(
    connection: sa.Connection, bucket_id: int, *, low: str, inclusive: bool, high: str | None, limit: int,
    with_body: bool, with_meta: bool = False,
) -> list[Any]:  # fmt: skip
    """Up to `limit` latest versions (no markers) with low <(=) key < high, in key order. One index range."""
    values: dict[str, object] = {"bucket_id": bucket_id, "low": low, "limit": limit}
    if high is not None:
        values["high"] = high
    return _PAGES[with_body, with_meta, inclusive, high is not None].rows(connection, **values)


def drop_tombstones(connection: sa.Connection, bucket_id: int) -> None:
    """Of a bucket without versioning: its markers only tell other sites what was deleted."""
    t = schema.objects
    connection.execute(sa.delete(t).where(t.c.bucket_id == bucket_id, t.c.kind == schema.KIND_MARKER))


def has_any(connection: sa.Connection, bucket_id: int) -> bool:
    """Whether the bucket holds anything at all, markers and old versions included."""
    for table in (schema.objects, schema.versions, schema.multipart_uploads):
        if connection.execute(sa.select(sa.literal(1)).where(table.c.bucket_id == bucket_id).limit(1)).first():
            return True
    return False


def count(connection: sa.Connection, bucket_id: int) -> tuple[int, int]:
    """(objects, bytes) of a bucket's latest versions: a scan of its rows, for operators only."""
    t = schema.objects.c
    row = connection.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(t.size), 0)).where(
            t.bucket_id == bucket_id, t.kind != schema.KIND_MARKER
        )
    ).one()
    return int(row[0]), int(row[1])
