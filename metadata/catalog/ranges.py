"""Whole ranges of keys below a prefix, moved to another prefix by a handful of statements: what a directory rename
costs the catalog.

Every moved row gets one and the same version: versions order what stands at one key, and no two rows have the same.
Invariant: source and target do not overlap, and nothing stands below the target but delete markers, which go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from metadata.catalog import schema
from metadata.catalog.packed import CHUNK_BYTES, CHUNK_ID_BYTES, REPLICA_BYTES
from metadata.catalog.session import BulkWrite, Session
from metadata.catalog.statement import Statement

_O: Final = schema.objects.c
_IN_RANGE: Final = (
    _O.bucket_id == sa.bindparam("bucket_id"), _O.key >= sa.bindparam("low"), _O.key < sa.bindparam("high"),
)  # fmt: skip
_STANDS: Final = _O.kind != sa.literal_column(str(schema.KIND_MARKER))
PAGE_ROWS: Final = 2048


class Span(NamedTuple):
    """rows: without delete markers. version: the largest, of markers too. remote: bodies that are at another site."""

    rows: int
    version: int
    remote: int


class Moved(NamedTuple):
    """What moves along with a row outside of it. body: None, too, where the engine itself finds the placements of the
    body (`move_places`)."""

    key: str
    version: int
    meta: bytes | None
    body: bytes | None
    created_at_ms: int


_SPAN: Final = Statement(
    sa.select(
        sa.func.count(sa.case((_STANDS, sa.literal_column("1")))),
        sa.func.coalesce(sa.func.max(_O.version), sa.literal_column("0")),
        sa.func.count(sa.case((_O.kind == sa.literal_column(str(schema.KIND_REMOTE)), sa.literal_column("1")))),
    ).where(*_IN_RANGE)
)


def _page(body: sa.ColumnElement[Any]) -> sa.Select[Any]:
    return (
        sa.select(_O.key, _O.version, _O.meta, body, _O.created_at_ms)
        .where(*_IN_RANGE, _STANDS)
        .order_by(_O.key)
        .limit(sa.literal_column(str(PAGE_ROWS)))
    )


_PAGE: Final = Statement(_page(_O.body))
#: A packed body of one chunk and no more, as nearly all are: it is as long as its own count of replicas says.
_IS_OF_ONE: Final = (
    f"length(objects.body) >= {CHUNK_BYTES} AND length(objects.body) = "
    f"{CHUNK_BYTES} + {REPLICA_BYTES} * get_byte(objects.body, {CHUNK_BYTES - 1})"
)
_PAGE_OF_OTHERS: Final = Statement(_page(sa.literal_column(f"CASE WHEN NOT ({_IS_OF_ONE}) THEN objects.body END")))
#: The device of the replica with the number n, u32 little-endian.
_DEVICE: Final = " + ".join(
    f"(get_byte(objects.body, {CHUNK_BYTES + byte} + {REPLICA_BYTES} * n)::BIGINT << {8 * byte})" for byte in range(4)
)
#: Parameters: target, length of source + 1, version, bucket, low, high.
_MOVE_PLACES: Final = (
    "UPDATE placements "
    "SET bucket_id = $4::BIGINT, key = $1::TEXT || substr(of.key, $2::INTEGER), version = $3::BIGINT "
    f"FROM (SELECT objects.key, substr(objects.body, 1, {CHUNK_ID_BYTES}) AS chunk, {_DEVICE} AS device FROM objects, "
    f"generate_series(0, CASE WHEN {_IS_OF_ONE} THEN get_byte(objects.body, {CHUNK_BYTES - 1}) ELSE 0 END - 1) AS n "
    f"WHERE objects.bucket_id = $4::BIGINT AND objects.key >= $5 AND objects.key < $6 "
    f"AND objects.kind <> {schema.KIND_MARKER}) AS of "
    f"WHERE placements.device_id = of.device AND placements.chunk_id = of.chunk"
)
#: PostgreSQL may take a plan that reads and sorts all that is left of a range for each page of it. Until the end of the
#: transaction it may only follow the key's index.
_BY_INDEX: Final = (
    "SELECT set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true), "
    "set_config('enable_seqscan', 'off', true)"
)
SET_META: Final = BulkWrite("update", schema.objects, ("bucket_id", "key", "meta"), by=("bucket_id", "key"))


def _high(prefix: str) -> str:
    assert prefix.endswith("/"), "directories end in a slash"
    return prefix[:-1] + "0"


def _below(bucket_id: int, prefix: str) -> tuple[sa.ColumnElement[bool], ...]:
    return _O.bucket_id == bucket_id, _O.key >= prefix, _O.key < _high(prefix)


def span(connection: sa.Connection, bucket_id: int, prefix: str) -> Span:
    """What lies below a prefix that ends in a slash. One pass over the range."""
    return Span._make(_SPAN.first(connection, bucket_id=bucket_id, low=prefix, high=_high(prefix)))


def rows(connection: sa.Connection, bucket_id: int, prefix: str) -> Iterator[list[Moved]]:
    """The rows below a prefix, page by page."""
    statement = _PAGE
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_BY_INDEX)
        statement = _PAGE_OF_OTHERS
    low, last = prefix, ""
    while True:
        page = list(map(Moved._make, statement.rows(connection, bucket_id=bucket_id, low=low, high=_high(prefix))))
        fresh = [row for row in page if row.key != last]     # a page begins with the last row of the one before
        if fresh:
            yield fresh
        if len(page) < PAGE_ROWS:
            return
        low = last = page[-1].key


def move_places(connection: sa.Connection, bucket_id: int, source: str, target: str, version: int) -> None:
    """Give the placements of what lies below source their new owner, where the engine can do it by itself: on
    PostgreSQL, for bodies of one chunk. The others' bodies come with `rows`. Before the rows themselves move."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_BY_INDEX)
        values = (target, len(source) + 1, version, bucket_id, source, _high(source))
        connection.exec_driver_sql(_MOVE_PLACES, values)


def move(
    session: Session, bucket_id: int, source: str, target: str, *, count: int, version: int, at_ms: int
) -> None:
    """Move the `count` rows below source to target, with their changes for the feed (a delete and a put each)."""
    connection = session.connection
    if session.witness is not None:
        session.witness.moved(bucket_id)
    connection.execute(
        sa.delete(schema.objects).where(*_below(bucket_id, target), _O.kind == schema.KIND_MARKER)
    )
    last, _ = session.advance(2 * count, version)
    first = last - 2 * count
    _note(connection, bucket_id, source, schema.CHANGE_DELETE, after=first, at_ms=at_ms)
    moved = connection.execute(
        sa.update(schema.objects)
        .where(*_below(bucket_id, source), _O.kind != schema.KIND_MARKER)
        .values(key=sa.literal(target, sa.Text) + sa.func.substr(_O.key, len(source) + 1), version=version)
    ).rowcount
    assert moved == count, f"{moved} rows were moved, {count} counted"
    _note(connection, bucket_id, target, schema.CHANGE_PUT, after=first + count, at_ms=at_ms)


def _note(connection: sa.Connection, bucket_id: int, prefix: str, kind: int, *, after: int, at_ms: int) -> None:
    """Entries of the feed for the rows below a prefix, in the order of their keys."""
    number: Any = sa.func.row_number().over(order_by=_O.key)
    listed = sa.select(
        sa.cast(number + after, sa.BigInteger), sa.cast(sa.literal(at_ms), sa.BigInteger),
        sa.cast(sa.literal(kind), sa.SmallInteger), _O.bucket_id, _O.key, _O.version,
    ).where(*_below(bucket_id, prefix), _O.kind != schema.KIND_MARKER)  # fmt: skip
    names = ["sequence", "at_ms", "kind", "bucket_id", "key", "version"]
    connection.execute(sa.insert(schema.changes).from_select(names, listed))
