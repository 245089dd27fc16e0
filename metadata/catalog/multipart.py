"""Rows of multipart uploads, and pages of all versions of a bucket. Parts are rows of `objects` (docs/adr/0100)."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from metadata.catalog import objects, schema
from metadata.catalog.objects import ObjectRow

_U: Final = schema.multipart_uploads
_COLUMNS: Final = (_U.c.id, _U.c.key, _U.c.owner, _U.c.created_at_ms, _U.c.meta)


def insert(  # noqa: PLR0917 - the columns
    connection: sa.Connection, upload: bytes, bucket_id: int, key: str, owner: str, at_ms: int, meta: bytes | None
) -> None:
    """Begin an upload. Doing it twice with the same id is doing it once."""
    if get(connection, upload) is None:
        connection.execute(
            sa.insert(_U).values(id=upload, bucket_id=bucket_id, key=key, owner=owner, created_at_ms=at_ms, meta=meta)
        )


def get(connection: sa.Connection, upload: bytes, *, lock: bool = False) -> Any:
    """(id, bucket_id, key, owner, created_at_ms, meta) or None."""
    query = sa.select(_U).where(_U.c.id == upload)
    return connection.execute(query.with_for_update() if lock else query).first()


def delete(connection: sa.Connection, upload: bytes) -> bool:
    """End an upload; whether it was there."""
    return bool(connection.execute(sa.delete(_U).where(_U.c.id == upload)).rowcount)


def page(
    connection: sa.Connection, bucket_id: int, *, low: str, low_id: bytes, high: str | None, limit: int
) -> list[Any]:
    """Up to `limit` uploads behind (low, low_id) with key < high: one index range."""
    behind = sa.or_(_U.c.key > low, sa.and_(_U.c.key == low, _U.c.id > low_id))
    query = sa.select(*_COLUMNS).where(_U.c.bucket_id == bucket_id, _U.c.key >= low, behind)
    if high is not None:
        query = query.where(_U.c.key < high)
    return list(connection.execute(query.order_by(_U.c.key, _U.c.id).limit(limit)))


def parts(
    connection: sa.Connection, bucket_id: int, *, low: str, high: str, limit: int, lock: bool = False
) -> list[ObjectRow]:
    """Rows of parts with low < key < high, in order."""
    t = schema.objects.c
    query = (
        sa.select(*(t[name] for name in objects.COLUMNS))
        .where(t.bucket_id == bucket_id, t.key > low, t.key < high)
        .order_by(t.key)
        .limit(limit)
    )
    return [ObjectRow(*row) for row in connection.execute(query.with_for_update() if lock else query)]


_VERSION_COLUMNS: Final = ("key", "version", "kind", "is_null", "size", "etag", "created_at_ms", "meta")


def versions(  # noqa: PLR0917 - bounds of one range
    connection: sa.Connection, bucket_id: int, low: str, below: int, high: str | None, limit: int, *, inclusive: bool
) -> list[tuple[Any, ...]]:
    """(is latest, *_VERSION_COLUMNS) of up to `limit` rows in order of key, newest first.

    Where `below`: of key `low` only versions older than that; else `low` itself as `inclusive` says."""
    found: list[tuple[Any, ...]] = []
    for table, is_latest in ((schema.objects, True), (schema.versions, False)):
        t = table.c
        if below:
            start = sa.or_(t.key > low, sa.and_(t.key == low, t.version < below))
            start = sa.and_(t.key >= low, start)
        else:
            start = t.key >= low if inclusive else t.key > low
        query = sa.select(*(t[name] for name in _VERSION_COLUMNS)).where(t.bucket_id == bucket_id, start)
        if high is not None:
            query = query.where(t.key < high)
        rows = connection.execute(query.order_by(t.key, t.version.desc()).limit(limit))
        found += [(is_latest, *row) for row in rows]
    found.sort(key=lambda row: (row[1].encode(), -row[2]))
    return found[:limit]
