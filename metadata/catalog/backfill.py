"""What exists, queued for another site a page at a time: the latest versions of a bucket, its older ones, and which
versions are gone for good, as far as the feed remembers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from metadata.catalog import bodies, feed, schema
from metadata.catalog.among import among
from metadata.catalog.session import Session
from metadata.catalog.sites import names_through, number_of
from tierstore.clock import version_site

_q: Final = schema.replication_queue.c


class Page(NamedTuple):
    """Of a backfill. last: the last key, "" at the end; version: of the last row, where older versions are walked."""

    queued: int
    walked: int
    last: str
    version: int = 0


def queue_page(
    session: Session, target: str, bucket_id: int, *, prefix: str, after: str, limit: int, at_ms: int,
    is_again: bool = False, after_version: int | None = None,
) -> Page:  # fmt: skip
    """Queue the latest versions behind a key, as if they were written now, but for those that wait already; with
    after_version the older ones, behind that version of the key. Of those whose bytes are another site's only the ones
    that readers fetched whole, if the target itself wrote them: it may have lost them. is_again: the target has
    forgotten names, so what waits for its body alone is queued, too."""
    rows = session.connection.execute(_page(bucket_id, prefix, after, after_version, limit)).all()
    changes: list[feed.NewChange] = []
    last, version, waiting = "", 0, 0
    number = number_of(session.connection, target)
    known = _waiting(session, target, bucket_id, after, rows[-1].key, is_again=is_again) if rows else {}
    for key, version, kind, size, ref in rows:
        if not key.startswith(prefix):
            return Page(_append(session, changes, at_ms) + waiting, len(rows), "")
        last = key
        if known.get((key, version), -1) >= size:       # shorter: what became hot of it
            waiting += 1
            continue
        is_back = kind == schema.KIND_REMOTE and version_site(version) == number and _is_whole(session, ref, size)
        if kind != schema.KIND_REMOTE or is_back:
            what = schema.CHANGE_MARKER if kind == schema.KIND_MARKER else schema.CHANGE_PUT
            changes.append(feed.NewChange(what, bucket_id, key, version, size, (target,)))
    has_more = len(rows) == limit
    return Page(_append(session, changes, at_ms) + waiting, len(rows), last if has_more else "", version)


def _page(bucket_id: int, prefix: str, after: str, after_version: int | None, limit: int) -> sa.Select[Any]:
    t = schema.objects.c if after_version is None else schema.versions.c
    query = sa.select(t.key, t.version, t.kind, t.size, t.ref).where(t.bucket_id == bucket_id)
    if prefix:
        query = query.where(t.key >= prefix)
    if after_version is None:
        return query.where(t.key > after).order_by(t.key).limit(limit)
    behind = sa.tuple_(t.key, t.version) > sa.tuple_(sa.literal(after), sa.literal(after_version, sa.BigInteger))
    return query.where(behind).order_by(t.key, t.version).limit(limit)


def _waiting(
    session: Session, target: str, bucket_id: int, first: str, through: str, *, is_again: bool
) -> dict[tuple[str, int], int]:
    """Keys from `first` up to `through`, with the versions, that the target is to get, and how many bytes of each. A
    scan of its queue, which a backfill keeps short."""
    query = sa.select(_q.key, _q.version, sa.func.max(_q.size)).where(
        _q.target == target, _q.bucket_id == bucket_id, _q.key >= first, _q.key <= through,
        _q.kind.in_((schema.CHANGE_PUT, schema.CHANGE_MARKER)),
    )  # fmt: skip
    if is_again:
        query = query.where(_q.sequence > names_through(session.connection, target))
    found = session.connection.execute(query.group_by(_q.key, _q.version))
    return {(str(key), int(version)): int(size) for key, version, size in found}


def _is_whole(session: Session, ref: int | None, size: int) -> bool:
    return ref is not None and bodies.covered(session.connection, ref, 0, size)[0] >= size


def _append(session: Session, changes: list[feed.NewChange], at_ms: int) -> int:
    feed.append_bulk(session, changes, at_ms=at_ms, version=0)
    return len(changes)


def queue_gone(
    session: Session, target: str, bucket_ids: Collection[int], *, after: int, through: int, at_ms: int
) -> int:
    """Say again which versions of these buckets are gone for good, of the changes between two sequences; how many."""
    t = schema.changes.c
    rows = session.connection.execute(
        sa.select(t.bucket_id, t.key, t.version)
        .where(
            t.sequence > after, t.sequence <= through, t.kind == schema.CHANGE_DELETE, among(t.bucket_id, bucket_ids)
        )
        .order_by(t.sequence)
    ).all()
    gone = [feed.NewChange(schema.CHANGE_DELETE, *row, 0, (target,)) for row in rows]
    return _append(session, gone, at_ms)
