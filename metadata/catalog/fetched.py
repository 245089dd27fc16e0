"""Bodies of other sites that were fetched for readers (schema.fetched_bodies): noted, kept, let go of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import sqlalchemy as sa

from metadata.catalog import bodies, feed, leases, objects, schema
from metadata.catalog.objects import ObjectRow
from metadata.catalog.session import Session
from tierstore.clock import SITE_BITS

_t = schema.fetched_bodies.c
#: A version id modulo this is the number of the site that wrote it (tierstore/clock).
SITES: Final = 1 << SITE_BITS


class Fetched(NamedTuple):
    bucket_id: int
    key: str
    version: int
    bytes: int


def _is(bucket_id: int, key: str, version: int) -> sa.ColumnElement[bool]:
    return sa.and_(_t.bucket_id == bucket_id, _t.key == key, _t.version == version)


def note(connection: sa.Connection, row: ObjectRow, size: int, *, at_ms: int) -> None:
    """More bytes of a version were fetched for a reader."""
    known = connection.execute(sa.select(_t.bytes).where(_is(row.bucket_id, row.key, row.version))).scalar()
    values: dict[str, object] = {
        "bucket_id": row.bucket_id, "key": row.key, "version": row.version, "bytes": (known or 0) + size,
        "at_ms": at_ms,
    }  # fmt: skip
    leases.upsert(connection, schema.fetched_bodies, ["bucket_id", "key", "version"], values)


def is_noted(connection: sa.Connection, row: ObjectRow) -> bool:
    """Whether what is here of a version may be let go of."""
    return connection.execute(sa.select(_t.bytes).where(_is(row.bucket_id, row.key, row.version))).first() is not None


def forget(connection: sa.Connection, bucket_id: int, key: str, version: int) -> bool:
    """The site keeps the body, or has none of it any more; whether it was noted."""
    return bool(connection.execute(sa.delete(schema.fetched_bodies).where(_is(bucket_id, key, version))).rowcount)


def forget_site(connection: sa.Connection, number: int) -> int:
    """What is here of versions that a site wrote is kept for good, because it may have lost them; how many."""
    return connection.execute(sa.delete(schema.fetched_bodies).where(_t.version % SITES == number)).rowcount


def total_bytes(connection: sa.Connection) -> int:
    """Of all of them: a scan of the table."""
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.sum(_t.bytes), 0))).scalar_one())


def oldest(connection: sa.Connection, limit: int) -> list[Fetched]:
    """Those that were fetched, or found to be hot, the longest ago."""
    rows = connection.execute(sa.select(_t.bucket_id, _t.key, _t.version, _t.bytes).order_by(_t.at_ms).limit(limit))
    return [Fetched(*row) for row in rows]


def chunks(connection: sa.Connection, body_id: int, limit: int) -> list[bytes]:
    """The first chunks that are here of a body."""
    e = schema.extents.c
    return list(
        connection.execute(
            sa.select(e.chunk_id).where(e.body_id == body_id).order_by(e.start).limit(limit)
        ).scalars()
    )


def keep(connection: sa.Connection, some: Sequence[Fetched], *, at_ms: int) -> None:
    """To the back: they are read."""
    for one in some:
        connection.execute(sa.update(schema.fetched_bodies).where(_is(*one[:3])).values(at_ms=at_ms))


def let_go(session: Session, some: Sequence[Fetched], *, at_ms: int) -> int:
    """Their bytes become garbage, their names stay; how many bytes. What was replaced or became the site's own since is
    only forgotten, and what is not noted any more is kept."""
    gone = 0
    changes = []
    for one in some:
        if not forget(session.connection, *one[:3]):
            continue        # it is to be kept for good, since a moment ago
        wanted = [one[:2]]
        rows = session.fetch(objects.LATEST_LOCKED, wanted)
        is_latest = bool(rows) and ObjectRow._make(rows[0]).version == one.version
        if not is_latest:
            rows = session.fetch(objects.VERSION_LOCKED, [one[:3]])
        row = ObjectRow._make(rows[0]) if rows else None
        if row is None or row.kind != schema.KIND_REMOTE or row.ref is None:
            continue
        bodies.release(session, row.ref, at_ms=at_ms)
        session.write(objects.REPLACE_LATEST if is_latest else objects.REPLACE_VERSION, [row._replace(ref=None)])
        changes.append(feed.NewChange(schema.CHANGE_PUT, row.bucket_id, row.key, row.version))
        gone += one.bytes
    feed.append_bulk(session, changes, at_ms=at_ms, version=0)
    return gone
