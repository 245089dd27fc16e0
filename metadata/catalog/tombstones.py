"""Delete markers of buckets without versioning: found by a walk along the key index, dropped while they still stand."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from metadata.catalog import feed, schema
from metadata.catalog.session import Session
from tierstore.clock import version_ms

_t = schema.objects.c


class Marker(NamedTuple):
    """made_at_ms: the time in its version id, which other clocks may have pushed ahead."""

    key: str
    version: int
    created_at_ms: int
    made_at_ms: int


class Page(NamedTuple):
    """last: the last key that was looked at, "" at the bucket's end."""

    markers: list[Marker]
    last: str


def page(connection: sa.Connection, bucket_id: int, after: str, limit: int) -> Page:
    """The markers among the next `limit` latest versions behind a key."""
    rows = connection.execute(
        sa.select(_t.key, _t.version, _t.kind, _t.created_at_ms)
        .where(_t.bucket_id == bucket_id, _t.key > after)
        .order_by(_t.key)
        .limit(limit)
    ).all()
    markers = [
        Marker(key, int(version), int(created), version_ms(int(version)))
        for key, version, kind, created in rows if kind == schema.KIND_MARKER
    ]  # fmt: skip
    return Page(markers, rows[-1][0] if len(rows) == limit else "")


def drop(session: Session, bucket_id: int, markers: list[Marker], *, at_ms: int) -> int:
    """Remove those that are still the latest of their keys; how many."""
    gone = []
    for marker in markers:
        done = session.connection.execute(
            sa.delete(schema.objects).where(
                _t.bucket_id == bucket_id, _t.key == marker.key, _t.version == marker.version,
                _t.kind == schema.KIND_MARKER,
            )
        )  # fmt: skip
        if done.rowcount:
            gone.append(feed.NewChange(schema.CHANGE_DELETE, bucket_id, marker.key, marker.version))
    feed.append_bulk(session, gone, at_ms=at_ms, version=0)
    return len(gone)
