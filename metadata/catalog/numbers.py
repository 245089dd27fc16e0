"""From a file's number to its key: passes over a bucket's rows, because no index leads there (docs/adr/0240).

Numbers that a mount gave lie in the packed metadata as nine bytes (`mark`), so the engine itself finds the rows that
hold them; numbers that are made from a key are made again for each key, page by page. Only for a scan's connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from metadata.catalog import schema
from metadata.catalog.among import among
from metadata.catalog.statement import Statement

_O: Final = schema.objects.c
PAGE_ROWS: Final = 4096


class Numbered(NamedTuple):
    """What a number may be found in."""

    bucket_id: int
    key: str
    version: int
    meta: bytes | None
    created_at_ms: int


_COLUMNS: Final = tuple(_O[name] for name in Numbered._fields)
_PAGE: Final = Statement(
    sa.select(*_COLUMNS)
    .where(_O.bucket_id == sa.bindparam("bucket_id"), _O.key > sa.bindparam("after"))
    .where(_O.kind != sa.literal_column(str(schema.KIND_MARKER)))
    .order_by(_O.key)
    .limit(sa.literal_column(str(PAGE_ROWS)))
)


def mark(number: int) -> bytes:
    """A number of 64 bits as MessagePack has it."""
    return b"\xcf" + number.to_bytes(8, "big")


def holding(connection: sa.Connection, bucket_ids: tuple[int, ...], numbers: list[int]) -> list[Numbered]:
    """Rows whose metadata has the bytes of one of the numbers; whether as a number, the caller looks. One pass over
    the buckets, in the engine."""
    if not numbers:
        return []
    held = [_contains(connection, mark(number)) for number in numbers]
    query = sa.select(*_COLUMNS).where(
        among(_O.bucket_id, bucket_ids), _O.kind != schema.KIND_MARKER, _O.meta.is_not(None), sa.or_(*held)
    )
    return [_row(row) for row in connection.execute(query)]


def _contains(connection: sa.Connection, part: bytes) -> sa.ColumnElement[bool]:
    given = sa.literal(part, sa.LargeBinary)
    if connection.dialect.name == "sqlite":
        return sa.func.instr(_O.meta, given) > 0
    return sa.func.position(given.op("IN")(_O.meta)) > 0


def pages(connection: sa.Connection, bucket_id: int) -> Iterator[list[Numbered]]:
    """All rows of a bucket in the order of their keys."""
    after = ""
    while True:
        page = list(map(_row, _PAGE.rows(connection, bucket_id=bucket_id, after=after)))
        if page:
            yield page
        if len(page) < PAGE_ROWS:
            return
        after = page[-1].key


def _row(row: Sequence[Any]) -> Numbered:
    bucket_id, key, version, meta, created_at_ms = row
    return Numbered(bucket_id, key, version, bytes(meta) if meta is not None else None, created_at_ms)
