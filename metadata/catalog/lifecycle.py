"""Pages of every version of a bucket, with what lifecycle rules judge: one index range a page, newest first in a key;
uploads by age; parts whose upload is no more."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from metadata.catalog import schema
from metadata.catalog.among import among


class VersionRow(NamedTuple):
    is_latest: bool
    key: str
    version: int
    kind: int
    size: int
    created_at_ms: int
    meta: bytes | None


_COLUMNS: Final = VersionRow._fields[1:]


def page(connection: sa.Connection, bucket_id: int, *, key: str, below: int, limit: int) -> list[VersionRow]:
    """Up to `limit` versions behind (key, below): keys in order, the newest of a key first. key "": from the start."""
    found: list[VersionRow] = []
    for table, is_latest in ((schema.objects, True), (schema.versions, False)):
        t = table.c
        query = sa.select(*(t[name] for name in _COLUMNS)).where(
            t.bucket_id == bucket_id, t.key >= key, sa.or_(t.key > key, t.version < below)
        )
        rows = connection.execute(query.order_by(t.key, t.version.desc()).limit(limit))
        found += [VersionRow(is_latest, *row) for row in rows]
    found.sort(key=lambda row: (row.key.encode(), -row.version))
    return found[:limit]


def old_uploads(connection: sa.Connection, bucket_id: int, *, before_ms: int, limit: int) -> list[Any]:
    """(id, key, created_at_ms) of uploads that began before a moment, the oldest first."""
    u = schema.multipart_uploads.c
    query = sa.select(u.id, u.key, u.created_at_ms).where(u.bucket_id == bucket_id, u.created_at_ms < before_ms)
    return list(connection.execute(query.order_by(u.created_at_ms).limit(limit)))


def parts_page(connection: sa.Connection, bucket_id: int, *, after: str, limit: int) -> list[Any]:
    """(key, version, created_at_ms) of parts behind a key, in order."""
    t = schema.objects.c
    query = sa.select(t.key, t.version, t.created_at_ms).where(t.bucket_id == bucket_id, t.key > after)
    return list(connection.execute(query.order_by(t.key).limit(limit)))


def living_uploads(connection: sa.Connection, uploads: list[bytes]) -> set[bytes]:
    """Which of these uploads are not ended."""
    u = schema.multipart_uploads.c
    return {bytes(row[0]) for row in connection.execute(sa.select(u.id).where(among(u.id, uploads)))}
