"""What makes mutations safe to repeat: results of applied operations and uploads that have committed (rule 12), with
the uploads that may not (rule 3). All three are pruned by the time in their ids.

An upload commits once: its chunks have one owner. That it has is a row of `operations` too, under the id
`names.operation_of(upload)`. A put of one upload usually carries just that id as its own operation, so that one row
says both; else the upload's row stands beside the operation's, with an empty result.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import sqlalchemy as sa

from metadata.catalog import schema
from metadata.catalog.among import among
from metadata.catalog.leases import upsert
from metadata.catalog.session import BulkRead, BulkWrite, lock_out_commits
from metadata.catalog.statement import Statement
from tierstore.names import UploadId, operation_of

RESULTS: Final = BulkRead(schema.operations, ("id", "result"), ("id",))
INSERT_RESULTS: Final = BulkWrite("insert", schema.operations, ("id", "result"))
CONDEMNED: Final = BulkRead(schema.condemned_uploads, ("upload_id",), ("upload_id",))
LEASES: Final = BulkRead(schema.upload_leases, ("upload_id", "until_ms"), ("upload_id",))
DELETE_LEASES: Final = BulkWrite("delete", schema.upload_leases, ("upload_id",), by=("upload_id",), exact=False)

#: An upload may commit for this long after its allocation without a lease, in catalog time.
UPLOAD_LIFE_MS: Final = 600_000
#: A renewed upload or pin lives on for this long.
LEASE_MS: Final = 600_000
PIN_MS: Final = 900_000
#: No operation's deadline may lie further behind its id's time than this; results are kept twice as long.
OPERATION_LIFE_MS: Final = 3_600_000


_ANY_CONDEMNED: Final = Statement(sa.select(schema.condemned_uploads.c.upload_id).limit(sa.literal_column("1")))


def any_condemned(connection: sa.Connection) -> bool:
    """Hardly ever; asking costs a hundredth of looking for each upload of a batch."""
    return _ANY_CONDEMNED.first(connection) is not None


def condemn(connection: sa.Connection, uploads: Iterable[bytes], *, at_ms: int) -> None:
    """From the end of this transaction no commit takes these uploads' chunks. Durable before anyone hears "delete".
    Says nothing of what has committed before: ask who owns a chunk afterwards. Safe to repeat."""
    lock_out_commits(connection)
    t = schema.condemned_uploads
    wanted = sorted(set(uploads))
    for at in range(0, len(wanted), 500):
        part = wanted[at : at + 500]
        known = set(connection.execute(sa.select(t.c.upload_id).where(among(t.c.upload_id, part))).scalars())
        fresh = [{"upload_id": upload, "at_ms": at_ms} for upload in part if upload not in known]
        if fresh:
            connection.execute(sa.insert(t), fresh)


def renew(
    connection: sa.Connection, uploads: Iterable[bytes], pins: Iterable[bytes], *, now_ms: int
) -> tuple[list[bytes], list[bytes]]:
    """Prolong leases of uploads and pins of chunks. (uploads refused: lapsed or condemned, uploads renewed). An upload
    that has committed is neither: a lease would let it commit again once its own row was pruned."""
    refused, renewed = [], []
    c, t, done = schema.condemned_uploads, schema.upload_leases, schema.operations
    for upload in sorted(set(uploads)):
        mark = operation_of(UploadId(upload))
        if connection.execute(sa.select(done.c.id).where(done.c.id == mark)).first() is not None:
            continue
        is_condemned = connection.execute(sa.select(c.c.upload_id).where(c.c.upload_id == upload)).first() is not None
        until = connection.execute(sa.select(t.c.until_ms).where(t.c.upload_id == upload)).scalar()
        age_ms = now_ms - int.from_bytes(upload[:6], "big")
        if is_condemned or (age_ms > UPLOAD_LIFE_MS and (until is None or until < now_ms)):
            refused.append(upload)
            continue
        if until is None:
            connection.execute(sa.insert(t).values(upload_id=upload, until_ms=now_ms + LEASE_MS))
        else:
            connection.execute(sa.update(t).where(t.c.upload_id == upload).values(until_ms=now_ms + LEASE_MS))
        renewed.append(upload)
    p = schema.pins
    for chunk in sorted(set(pins)):
        if not connection.execute(
            sa.update(p).where(p.c.chunk_id == chunk).values(until_ms=now_ms + PIN_MS)
        ).rowcount:
            connection.execute(sa.insert(p).values(chunk_id=chunk, until_ms=now_ms + PIN_MS))
    return refused, renewed


def is_any_leased(connection: sa.Connection, *, begun_ms: int, now_ms: int) -> bool:
    """Whether an upload that was allocated up to that time lives on under a lease."""
    t = schema.upload_leases.c
    last = begun_ms.to_bytes(6, "big") + b"\xff" * 6       # ids begin with the time of their allocation
    return connection.execute(
        sa.select(sa.literal(1)).where(t.upload_id <= last, t.until_ms > now_ms).limit(1)
    ).first() is not None


def lease(connection: sa.Connection, uploads: Iterable[bytes], *, until_ms: int) -> None:
    """Let these uploads commit until then, lapsed or not: for a rebuild, which commits what was acknowledged before."""
    for upload in sorted(set(uploads)):
        upsert(connection, schema.upload_leases, ["upload_id"], {"upload_id": upload, "until_ms": until_ms})


def mark_committed(connection: sa.Connection, uploads: Iterable[bytes]) -> None:
    """These uploads have an owner: no later commit may name their chunks. Safe to repeat."""
    t, wanted = schema.operations, sorted({operation_of(UploadId(upload)) for upload in uploads})
    for at in range(0, len(wanted), 500):
        part = wanted[at : at + 500]
        known = set(connection.execute(sa.select(t.c.id).where(among(t.c.id, part))).scalars())
        fresh = [{"id": mark, "result": b""} for mark in part if mark not in known]
        if fresh:
            connection.execute(sa.insert(t), fresh)


def pinned(connection: sa.Connection, chunks: Iterable[bytes], *, now_ms: int) -> set[bytes]:
    """Which of these chunks are being read under a pin."""
    p, wanted = schema.pins.c, sorted(set(chunks))
    found: set[bytes] = set()
    for at in range(0, len(wanted), 500):
        query = sa.select(p.chunk_id).where(among(p.chunk_id, wanted[at : at + 500]), p.until_ms >= now_ms)
        found.update(connection.execute(query).scalars())
    return found


def prune(connection: sa.Connection, *, now_ms: int) -> int:
    """Forget what can no longer be repeated or renewed; how many rows."""
    old = (now_ms - 2 * OPERATION_LIFE_MS).to_bytes(6, "big")
    # A committed upload can only come again within its life (leases end with the commit), an operation within its own.
    rows = connection.execute(sa.delete(schema.operations).where(schema.operations.c.id < old)).rowcount
    for lease in (schema.upload_leases, schema.pins):
        rows += connection.execute(sa.delete(lease).where(lease.c.until_ms < now_ms - LEASE_MS)).rowcount
    return rows
