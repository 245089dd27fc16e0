"""The queue as a picture: what is open for a chunk, a device or a reason, and how much of everything there is.

Reads rows of `jobs` and locks and changes none; catalog.jobs does.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from metadata.catalog import schema
from metadata.catalog.among import among
from metadata.catalog.jobs import COLUMNS, OPEN, JobRow, row_of

_jobs = schema.jobs
_class = _jobs.c["class"]


@dataclass(frozen=True, slots=True)
class JobCount:
    kind: str
    why: str
    state: str
    jobs: int
    bytes: int
    oldest_at_ms: int


def open_kinds_of(connection: sa.Connection, chunks: Collection[bytes]) -> dict[bytes, list[tuple[str, int]]]:
    """Open jobs of each chunk: [(kind, device)], so that one chunk is never copied twice at the same time."""
    found: dict[bytes, list[tuple[str, int]]] = {}
    if chunks:
        query = sa.select(_jobs.c.chunk_id, _jobs.c.kind, _jobs.c.device_id).where(
            among(_jobs.c.chunk_id, set(chunks)), _jobs.c.state.in_(OPEN)
        )
        for row in connection.execute(query):
            found.setdefault(bytes(row.chunk_id), []).append((row.kind, int(row.device_id)))
    return found


def counts(connection: sa.Connection) -> list[JobCount]:
    """How much of what is queued."""
    query = sa.select(
        _jobs.c.kind, _jobs.c.why, _jobs.c.state, sa.func.count(), sa.func.coalesce(sa.func.sum(_jobs.c.bytes), 0),
        sa.func.min(_jobs.c.created_at_ms),
    ).group_by(_jobs.c.kind, _jobs.c.why, _jobs.c.state)  # fmt: skip
    return [JobCount(r[0], r[1], r[2], int(r[3]), int(r[4]), int(r[5])) for r in connection.execute(query)]


def open_count(connection: sa.Connection, why: str) -> int:
    """Open jobs of one reason: how far a duty's queue is filled."""
    query = sa.select(sa.func.count()).where(_jobs.c.why == why, _jobs.c.state.in_(OPEN))
    return int(connection.execute(query).scalar_one())


def open_on_device(connection: sa.Connection, device_id: int, kinds: Collection[str], *, why: str = "") -> int:
    """Open jobs of these kinds on a device; why: only those of that reason."""
    query = sa.select(sa.func.count()).where(
        _jobs.c.device_id == device_id, _jobs.c.kind.in_(kinds), _jobs.c.state.in_(OPEN)
    )
    if why:
        query = query.where(_jobs.c.why == why)
    return int(connection.execute(query).scalar_one())


def listing(connection: sa.Connection, *, state: str = "", why: str = "", limit: int = 100) -> list[JobRow]:
    """Jobs in the queue's order, for people."""
    query = sa.select(*COLUMNS).order_by(_class, _jobs.c.heat.desc(), _jobs.c.id).limit(limit)
    if state:
        query = query.where(_jobs.c.state == state)
    if why:
        query = query.where(_jobs.c.why == why)
    return [row_of(row) for row in connection.execute(query)]


def batches_on(connection: sa.Connection, device_id: int, *, limit: int) -> list[bytes]:
    """Payloads of open jobs on a device that delete many chunks at once."""
    query = (
        sa.select(_jobs.c.payload)
        .where(
            _jobs.c.device_id == device_id, _jobs.c.kind == "delete", _jobs.c.state.in_(OPEN),
            _jobs.c.chunk_id == b"",
        )
        .limit(limit)
    )  # fmt: skip
    return [bytes(row[0]) for row in connection.execute(query)]
