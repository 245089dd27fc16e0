"""The queue of background work: rows of `jobs`. Only what is waiting, leased or given up is kept; a job that
succeeded leaves no row (its effect is in the catalog), so the table is as large as the work that is left.

A job is leased to one object server until `lease_ms` under a token that rises with every lease (rule 4). The queue's
order is class, then heat, then age; `age_waiting` lets no class starve another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import sqlalchemy as sa

from metadata.catalog import schema
from metadata.catalog.among import among
from metadata.catalog.statement import Statement

_jobs = schema.jobs
_class = _jobs.c["class"]

WAITING: Final = "waiting"
LEASED: Final = "leased"
FAILED: Final = "failed"
OPEN: Final = (WAITING, LEASED)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be queued. payload: MessagePack of services.jobs' work structs; chunk empty for batches."""

    kind: str
    why: str
    rank: int             # the row's class: smaller goes first
    server_id: int
    device_id: int
    chunk: bytes = b""
    payload: bytes = b""
    bytes: int = 0
    heat: float = 0.0
    not_before_ms: int = 0


class JobRow(NamedTuple):
    """A row of the queue, in the order of COLUMNS."""

    id: int
    kind: str
    why: str
    state: str
    rank: int
    heat: float
    server_id: int
    device_id: int
    chunk: bytes
    payload: bytes
    bytes: int
    token: int
    lease_ms: int
    attempts: int
    not_before_ms: int
    created_at_ms: int
    progress: float
    code: str
    detail: str


COLUMNS = [
    _jobs.c.id, _jobs.c.kind, _jobs.c.why, _jobs.c.state, _class, _jobs.c.heat, _jobs.c.server_id,
    _jobs.c.device_id, _jobs.c.chunk_id, _jobs.c.payload, _jobs.c.bytes, _jobs.c.token, _jobs.c.lease_ms,
    _jobs.c.attempts, _jobs.c.not_before_ms, _jobs.c.created_at_ms, _jobs.c.progress, _jobs.c.code, _jobs.c.detail,
]  # fmt: skip


# Built once, as in book.py: heartbeats and the results of jobs run them by the dozen.
_WAITING_SERVERS: Final = Statement(
    sa.select(_jobs.c.server_id)
    .where(_jobs.c.state == WAITING, _jobs.c.not_before_ms <= sa.bindparam("now_ms"))
    .distinct()
)  # fmt: skip
_WAITING_OF: Final = (
    sa.select(*COLUMNS)
    .where(
        _jobs.c.server_id == sa.bindparam("of_server"), _jobs.c.state == WAITING,
        _jobs.c.not_before_ms <= sa.bindparam("now_ms"),
    )
    .order_by(_class, _jobs.c.heat.desc(), _jobs.c.id)
    .limit(sa.bindparam("at_most"))
    .with_for_update(skip_locked=True)
)  # fmt: skip
_WAITING_OF_ALL_KINDS: Final = Statement(_WAITING_OF)
_IS_HELD: Final = sa.and_(
    _jobs.c.id == sa.bindparam("job_id"), _jobs.c.token == sa.bindparam("under"), _jobs.c.state == LEASED
)
_HELD: Final = Statement(sa.select(*COLUMNS).where(_IS_HELD).with_for_update())
_EXTEND: Final = Statement(
    sa.update(_jobs).where(_IS_HELD).values(progress=sa.bindparam("done"), lease_ms=sa.bindparam("until_ms"))
)
_LEASE: Final = Statement(
    sa.update(_jobs)
    .where(_jobs.c.id == sa.bindparam("job_id"))
    .values(
        state=LEASED, token=_jobs.c.token + 1, lease_ms=sa.bindparam("until_ms"), attempts=_jobs.c.attempts + 1,
        progress=0.0,
    )
)  # fmt: skip
_REMOVE: Final = Statement(sa.delete(_jobs).where(_jobs.c.id == sa.bindparam("job_id")))
_BUSY: Final = Statement(
    sa.select(_jobs.c.device_id, _jobs.c.kind).where(
        _jobs.c.chunk_id == sa.bindparam("of_chunk"), _jobs.c.state.in_([sa.literal(state) for state in OPEN])
    )
)
_INSERTED: Final = (
    "kind", "why", "state", "class", "heat", "server_id", "device_id", "chunk_id", "payload", "bytes",
    "not_before_ms", "created_at_ms",
)  # fmt: skip
_INSERT: Final = Statement(sa.insert(_jobs), columns=_INSERTED)


def row_of(values: Sequence[object]) -> JobRow:
    """The row of a statement that selects COLUMNS."""
    row = JobRow._make(values)
    return row if row.payload is not None else row._replace(payload=b"")


def busy_chunks(
    connection: sa.Connection, pairs: Collection[tuple[bytes, int]], *, kind: str = ""
) -> set[tuple[bytes, int]]:
    """Those (chunk, device) that have an open job: at most one piece of work may concern them at a time. kind: count
    only jobs of that kind."""
    found: set[tuple[bytes, int]] = set()
    chunks = sorted({chunk for chunk, _ in pairs})
    if len(chunks) == 1:
        open_ = _BUSY.rows(connection, of_chunk=chunks[0])
        return {(chunks[0], int(device)) for device, of_kind in open_ if kind in ("", of_kind)} & set(pairs)
    for at in range(0, len(chunks), 500):
        query = sa.select(_jobs.c.chunk_id, _jobs.c.device_id).where(
            among(_jobs.c.chunk_id, chunks[at : at + 500]), _jobs.c.state.in_(OPEN)
        )
        if kind:
            query = query.where(_jobs.c.kind == kind)
        found.update((bytes(row.chunk_id), int(row.device_id)) for row in connection.execute(query))
    return found & set(pairs)


def add(connection: sa.Connection, jobs: Iterable[NewJob], *, now_ms: int) -> int:
    """Queue jobs, leaving out those whose (chunk, device) is busy already; how many were queued."""
    wanted = list(jobs)
    return _insert(connection, wanted, busy_chunks(connection, _pairs(wanted)), now_ms)


def add_internal(connection: sa.Connection, jobs: Iterable[NewJob], *, kind: str, now_ms: int) -> int:
    """Queue jobs of one kind that metadata does itself, also where an object server works on the same copy just now:
    the verify job that finds a copy bad is still leased when the copy is reported. How many were queued."""
    wanted = list(jobs)
    assert all(job.kind == kind for job in wanted)
    return _insert(connection, wanted, busy_chunks(connection, _pairs(wanted), kind=kind), now_ms)


def _pairs(jobs: Iterable[NewJob]) -> set[tuple[bytes, int]]:
    return {(job.chunk, job.device_id) for job in jobs if job.chunk}


def _insert(connection: sa.Connection, wanted: list[NewJob], busy: set[tuple[bytes, int]], now_ms: int) -> int:
    rows: list[dict[str, object]] = []
    for job in wanted:
        if job.chunk and (job.chunk, job.device_id) in busy:
            continue
        if job.chunk:
            busy.add((job.chunk, job.device_id))
        values = (
            job.kind, job.why, WAITING, job.rank, job.heat, job.server_id, job.device_id, job.chunk, job.payload,
            job.bytes, job.not_before_ms, now_ms,
        )  # fmt: skip
        rows.append(dict(zip(_INSERTED, values, strict=True)))
    _INSERT.run_many(connection, rows)
    return len(rows)


def waiting(
    connection: sa.Connection, server_id: int, *, limit: int, now_ms: int,
    without: Collection[str] = (), only_reads_on: Collection[int] = (),
) -> list[JobRow]:  # fmt: skip
    """The first waiting jobs of a server in the queue's order, their rows locked; without paused kinds and reasons,
    and all but checks on devices that take no writes now: they would fail, and wait ever longer when it is back."""
    asked = {"of_server": server_id, "now_ms": now_ms, "at_most": limit}
    if not without and not only_reads_on:
        return [row_of(row) for row in _WAITING_OF_ALL_KINDS.rows(connection, **asked)]
    query = _WAITING_OF
    if without:
        query = query.where(_jobs.c.kind.not_in(without), _jobs.c.why.not_in(without))
    if only_reads_on:
        query = query.where(sa.or_(_jobs.c.device_id.not_in(only_reads_on), _jobs.c.kind == "verify"))
    return [row_of(row) for row in connection.execute(query, asked)]


def lease(connection: sa.Connection, rows: Sequence[JobRow], *, until_ms: int) -> list[JobRow]:
    """Lease waiting jobs, each under its next token. The rows as they are then."""
    _LEASE.run_many(connection, [{"job_id": row.id, "until_ms": until_ms} for row in rows])
    return [
        r._replace(state=LEASED, token=r.token + 1, lease_ms=until_ms, attempts=r.attempts + 1, progress=0.0)
        for r in rows
    ]


def held(connection: sa.Connection, job_id: int, token: int) -> JobRow | None:
    """The job if it is still leased under that token, its row locked; None when the result comes too late."""
    row = _HELD.first(connection, job_id=job_id, under=token)
    return row_of(row) if row else None


def extend(connection: sa.Connection, job_id: int, token: int, *, progress: float, until_ms: int) -> bool:
    """Note progress and renew the lease; False when it is no longer held."""
    return _EXTEND.run(connection, job_id=job_id, under=token, done=progress, until_ms=until_ms) > 0


def remove(connection: sa.Connection, job_ids: Collection[int]) -> None:
    """Forget jobs: they succeeded, or there is no more reason for them."""
    _REMOVE.run_many(connection, [{"job_id": job_id} for job_id in job_ids])


def put_back(
    connection: sa.Connection, job_id: int, *, code: str, detail: str, not_before_ms: int, is_begun: bool = True
) -> None:
    """Let a failed job wait again until not_before_ms. is_begun False: nobody tried it, so it was no attempt."""
    connection.execute(
        sa.update(_jobs)
        .where(_jobs.c.id == job_id)
        .values(
            state=WAITING, code=code, detail=detail[:500], not_before_ms=not_before_ms, lease_ms=0,
            attempts=_jobs.c.attempts - int(not is_begun),
        )
    )  # fmt: skip


def give_up(connection: sa.Connection, job_id: int, *, code: str, detail: str, now_ms: int) -> None:
    """Keep a job as failed, for people to see; it is not tried again by itself."""
    connection.execute(
        sa.update(_jobs)
        .where(_jobs.c.id == job_id)
        .values(state=FAILED, code=code, detail=detail[:500], finished_at_ms=now_ms, lease_ms=0)
    )


def lapse(connection: sa.Connection, *, now_ms: int, not_before_ms: int, limit: int) -> list[JobRow]:
    """Take back jobs whose lease ran out; they wait until not_before_ms. The rows as they were."""
    query = (
        sa.select(*COLUMNS)
        .where(_jobs.c.state == LEASED, _jobs.c.lease_ms < now_ms)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = [row_of(row) for row in connection.execute(query)]
    if rows:
        connection.execute(
            sa.update(_jobs)
            .where(among(_jobs.c.id, [row.id for row in rows]))
            .values(state=WAITING, not_before_ms=not_before_ms, lease_ms=0, code="lease-lapsed")
        )
    return rows


def age_waiting(connection: sa.Connection, *, older_than_ms: int, floor: int) -> int:
    """Move jobs queued before that time one class forward, but never into the classes up to `floor`."""
    result = connection.execute(
        sa.update(_jobs)
        .where(_jobs.c.state == WAITING, _jobs.c.created_at_ms < older_than_ms, _class > floor + 1)
        .values({"class": _class - 1})
    )
    return int(result.rowcount)


def waiting_servers(connection: sa.Connection, now_ms: int) -> set[int]:
    """Servers for which something waits that may go now: so that an idle heartbeat asks nothing."""
    return {int(row[0]) for row in _WAITING_SERVERS.rows(connection, now_ms=now_ms)}


def retry_failed(connection: sa.Connection, why: str = "") -> int:
    """Queue jobs again that were given up; how many."""
    change = sa.update(_jobs).where(_jobs.c.state == FAILED).values(state=WAITING, attempts=0, not_before_ms=0)
    if why:
        change = change.where(_jobs.c.why == why)
    return int(connection.execute(change).rowcount)


def remove_open_of_device(connection: sa.Connection, device_id: int, kinds: Collection[str]) -> int:
    """Drop open jobs of these kinds on a device that is gone or will be reconciled anyway."""
    change = sa.delete(_jobs).where(
        _jobs.c.device_id == device_id, _jobs.c.kind.in_(kinds), _jobs.c.state.in_(OPEN)
    )
    return int(connection.execute(change).rowcount)


def forget_failed(connection: sa.Connection, *, before_ms: int) -> int:
    """Forget jobs given up before that time."""
    change = sa.delete(_jobs).where(_jobs.c.state == FAILED, _jobs.c.finished_at_ms < before_ms)
    return int(connection.execute(change).rowcount)


def remove_checks(connection: sa.Connection, chunks: Collection[bytes]) -> None:
    """Drop waiting checks of chunks about which more is known now."""
    ordered = sorted(set(chunks))
    for at in range(0, len(ordered), 500):
        connection.execute(
            sa.delete(_jobs).where(
                among(_jobs.c.chunk_id, ordered[at : at + 500]), _jobs.c.kind == "verify", _jobs.c.state == WAITING
            )
        )


def internal(connection: sa.Connection, *, limit: int, now_ms: int) -> list[JobRow]:
    """The first waiting jobs that metadata does itself, their rows locked."""
    query = (
        sa.select(*COLUMNS)
        .where(_jobs.c.server_id == 0, _jobs.c.state == WAITING, _jobs.c.not_before_ms <= now_ms)
        .order_by(_class, _jobs.c.heat.desc(), _jobs.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [row_of(row) for row in connection.execute(query)]


def remove_waiting(connection: sa.Connection, why: str) -> int:
    """Drop what waits for one reason: the reason is gone."""
    change = sa.delete(_jobs).where(_jobs.c.why == why, _jobs.c.state == WAITING)
    return int(connection.execute(change).rowcount)


def remove_waiting_on(connection: sa.Connection, device_id: int, why: str) -> int:
    """The same on one device only."""
    change = sa.delete(_jobs).where(_jobs.c.device_id == device_id, _jobs.c.why == why, _jobs.c.state == WAITING)
    return int(connection.execute(change).rowcount)
