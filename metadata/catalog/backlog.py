"""What waits for another site, counted: a range of its queue at a time, so that nobody scans a long one again and again
(services/sites/backlog keeps the sums)."""

from __future__ import annotations

from typing import Final, NamedTuple

import sqlalchemy as sa

from metadata.catalog import schema
from metadata.catalog.among import among

_q: Final = schema.replication_queue.c
#: Bytes that a row's body has to travel.
_BYTES: Final = sa.case((_q.kind == schema.CHANGE_PUT, _q.size), else_=0)


class Backlog(NamedTuple):
    """What a target still has to get. oldest_ms: when its oldest row was written, 0 without one. names: rows that it
    has not heard of."""

    objects: int
    bytes: int
    oldest_ms: int
    names: int


class Span(NamedTuple):
    """Rows of a queue up to a sequence. unsent: those behind the mark of names; is_all: none follows."""

    through: int
    objects: int
    bytes: int
    unsent: int
    is_all: bool


def count(connection: sa.Connection, target: str, *, after: int, names_through: int, limit: int) -> Span:
    """The first `limit` rows behind a sequence."""
    page = (
        sa.select(_q.sequence, _BYTES.label("bytes"))
        .where(_q.target == target, _q.sequence > after)
        .order_by(_q.sequence)
        .limit(limit)
        .subquery()
    )
    unsent = sa.case((page.c.sequence > names_through, 1), else_=0)
    row = connection.execute(
        sa.select(
            sa.func.coalesce(sa.func.max(page.c.sequence), after), sa.func.count(),
            sa.func.coalesce(sa.func.sum(page.c.bytes), 0), sa.func.coalesce(sa.func.sum(unsent), 0),
        )
    ).one()  # fmt: skip
    through, objects, size, waiting = (int(value) for value in row)
    return Span(through, objects, size, waiting, objects < limit)


def oldest_ms(connection: sa.Connection, target: str) -> int | None:
    """When the first row of a queue was written; None: nothing waits."""
    query = sa.select(_q.at_ms).where(_q.target == target).order_by(_q.sequence).limit(1)
    found = connection.execute(query).scalar()
    return None if found is None else int(found)


class Gone(NamedTuple):
    """A row that was finished."""

    sequence: int
    bytes: int


def finish(connection: sa.Connection, target: str, sequences: list[int]) -> list[Gone]:
    """Rows that need nothing more; those of them that were there."""
    gone: list[Gone] = []
    for at in range(0, len(sequences), 500):
        some = sequences[at : at + 500]
        rows = connection.execute(
            sa.delete(schema.replication_queue)
            .where(_q.target == target, among(_q.sequence, some))
            .returning(_q.sequence, _BYTES.label("bytes"))
        )
        gone += [Gone(int(sequence), int(size)) for sequence, size in rows]
    return gone
