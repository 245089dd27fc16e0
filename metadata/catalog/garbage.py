"""What may go: chunks that lost their last reference, uploads that will never be committed, rows past their keep.

Here stand the statements; when anything may be deleted is services.collect's to decide. Deleting rows is always
bounded by `limit`, so that no transaction grows with the catalog.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from metadata.catalog import schema
from metadata.catalog.among import among
from metadata.catalog.packed import PackedChunk, pack, unpack

_garbage = schema.garbage
_condemned = schema.condemned_uploads
_leases = schema.upload_leases
_placements = schema.placements

#: Ids in one IN list: SQLite takes 32,766 variables, PostgreSQL's planner likes fewer.
IN_MAX = 500


@dataclass(frozen=True, slots=True)
class GarbageRow:
    id: int
    at_ms: int
    chunks: list[PackedChunk]


def _slices(ids: Collection[bytes]) -> Iterable[list[bytes]]:
    ordered = sorted(ids)
    for at in range(0, len(ordered), IN_MAX):
        yield ordered[at : at + IN_MAX]


def collectable(connection: sa.Connection, *, before_ms: int, limit: int) -> list[GarbageRow]:
    """The oldest garbage rows written before that time."""
    query = (
        sa.select(_garbage.c.id, _garbage.c.at_ms, _garbage.c.body)
        .where(_garbage.c.at_ms <= before_ms)
        .order_by(_garbage.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [GarbageRow(row.id, row.at_ms, unpack(row.body)) for row in connection.execute(query)]


def remove(connection: sa.Connection, ids: Collection[int]) -> None:
    """Forget garbage rows whose deletion is queued."""
    if ids:
        connection.execute(sa.delete(_garbage).where(among(_garbage.c.id, ids)))


def keep_only(connection: sa.Connection, garbage_id: int, chunks: Collection[PackedChunk]) -> None:
    """Leave only these chunks (they are being read) in a garbage row."""
    connection.execute(sa.update(_garbage).where(_garbage.c.id == garbage_id).values(body=pack(chunks)))


def add(connection: sa.Connection, chunks: Collection[PackedChunk], *, at_ms: int) -> None:
    """Queue chunks for collection."""
    if chunks:
        connection.execute(sa.insert(_garbage).values(at_ms=at_ms, body=pack(chunks)))


def waiting(connection: sa.Connection) -> tuple[int, int]:
    """(rows, time of the oldest in ms or 0) of garbage that waits."""
    row = connection.execute(sa.select(sa.func.count(), sa.func.min(_garbage.c.at_ms))).one()
    return int(row[0]), int(row[1] or 0)


def in_garbage(
    connection: sa.Connection, chunks: Collection[bytes], *, since_ms: int, rows_max: int
) -> set[bytes] | None:
    """Those chunks that became garbage since then; None when there are more than rows_max such rows to look at."""
    wanted = set(chunks)
    found: set[bytes] = set()
    query = sa.select(_garbage.c.at_ms, _garbage.c.body).order_by(_garbage.c.id.desc()).limit(rows_max + 1)
    for number, row in enumerate(connection.execute(query)):
        if row.at_ms < since_ms:
            return found
        if number == rows_max:
            return None
        found.update(chunk.id for chunk in unpack(row.body) if chunk.id in wanted)
    return found


def leased(connection: sa.Connection, uploads: Collection[bytes], *, now_ms: int) -> set[bytes]:
    """Those uploads whose lease runs, and multipart uploads that are not ended: they may still be committed."""
    found: set[bytes] = set()
    for some in _slices(uploads):
        query = sa.select(_leases.c.upload_id).where(among(_leases.c.upload_id, some), _leases.c.until_ms > now_ms)
        found.update(bytes(row[0]) for row in connection.execute(query))
        parts = sa.select(schema.multipart_uploads.c.id).where(among(schema.multipart_uploads.c.id, some))
        found.update(bytes(row[0]) for row in connection.execute(parts))
    return found


def placed(connection: sa.Connection, chunks: Collection[bytes], devices: Collection[int]) -> dict[bytes, list[int]]:
    """On which of the devices the reverse table has each chunk; chunks that it has nowhere are left out."""
    found: dict[bytes, list[int]] = {}
    for some in _slices(chunks):
        query = sa.select(_placements.c.chunk_id, _placements.c.device_id).where(
            among(_placements.c.device_id, devices), among(_placements.c.chunk_id, some)
        )
        for row in connection.execute(query):
            found.setdefault(bytes(row.chunk_id), []).append(int(row.device_id))
    return found


def placed_between(
    connection: sa.Connection, device: int, *, after: bytes, last: bytes | None, limit: int
) -> list[tuple[bytes, int]]:
    """(chunk, bytes) that the reverse table has on a device, with after < id <= last (None: to the end), in order."""
    query = (
        sa.select(_placements.c.chunk_id, _placements.c.chunk_bytes)
        .where(_placements.c.device_id == device, _placements.c.chunk_id > after)
        .order_by(_placements.c.chunk_id)
        .limit(limit)
    )
    if last is not None:
        query = query.where(_placements.c.chunk_id <= last)
    return [(bytes(row.chunk_id), int(row.chunk_bytes)) for row in connection.execute(query)]


def count_on_device(connection: sa.Connection, device: int) -> tuple[int, int]:
    """(chunks, bytes) that the reverse table has on a device. Reads all its rows: for a drain's progress, not hot."""
    query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(_placements.c.chunk_bytes), 0)).where(
        _placements.c.device_id == device
    )
    row = connection.execute(query).one()
    return int(row[0]), int(row[1])


def count_after(connection: sa.Connection, device: int, *, after: bytes) -> int:
    """Chunks that the reverse table has on a device behind an id."""
    query = sa.select(sa.func.count()).where(_placements.c.device_id == device, _placements.c.chunk_id > after)
    return int(connection.execute(query).scalar_one())


def _delete_some(connection: sa.Connection, table: sa.Table, key: sa.Column[object], where: object, limit: int) -> int:
    victims = sa.select(key).where(where).order_by(key).limit(limit)  # type: ignore[arg-type]
    return int(connection.execute(sa.delete(table).where(key.in_(victims))).rowcount)


def trim_condemned(connection: sa.Connection, *, before_ms: int, limit: int) -> int:
    """Forget uploads condemned before that time: by then their age alone refuses them."""
    return _delete_some(connection, _condemned, _condemned.c.upload_id, _condemned.c.at_ms < before_ms, limit)


def last_change_before(connection: sa.Connection, *, at_ms: int, through: int) -> int:
    """The newest feed sequence up to `through` that was written before that time; 0 for none."""
    c = schema.changes.c
    first = connection.execute(sa.select(c.sequence, c.at_ms).order_by(c.sequence).limit(1)).first()
    if first is None or first.at_ms >= at_ms or first.sequence > through:
        return 0
    low, high = int(first.sequence), through
    # Times rise with sequences (nearly: commits of a batch share one), so a search by halves needs no index on time.
    while low < high:
        middle = (low + high + 1) // 2
        row = connection.execute(sa.select(c.at_ms).where(c.sequence >= middle).order_by(c.sequence).limit(1)).first()
        if row is not None and row.at_ms < at_ms:
            low = middle
        else:
            high = middle - 1
    return low
