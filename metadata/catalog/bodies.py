"""Bodies that are not inline: `extents` (which bytes are which chunk) and `chunks` (with a count of the extents that
name them). Also the garbage: chunks that lost their last reference.

Invariant: chunks.refcount = number of extents rows that name the chunk; a chunk whose count reaches zero leaves
`chunks` for `garbage` in the same transaction; an inline chunk has no row here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import sqlalchemy as sa

from metadata.catalog import schema
from metadata.catalog.among import among
from metadata.catalog.packed import PackedChunk, pack, unpack_replicas
from metadata.catalog.packed import pack_replicas as _pack_replicas
from metadata.catalog.session import BulkRead, BulkWrite, Session

INSERT_EXTENTS: Final = BulkWrite(
    "insert", schema.extents, ("body_id", "start", "chunk_id", "chunk_offset", "length")
)
INSERT_CHUNKS: Final = BulkWrite(
    "insert", schema.chunks, ("id", "chunk_bytes", "crc32c", "redundancy", "refcount", "replicas")
)
INSERT_GARBAGE: Final = BulkWrite("insert", schema.garbage, ("at_ms", "body"))
CHUNKS: Final = BulkRead(schema.chunks, ("id", "chunk_bytes", "crc32c", "redundancy", "refcount", "replicas"), ("id",))
CHUNKS_LOCKED: Final = BulkRead(CHUNKS.table, CHUNKS.columns, CHUNKS.by, lock="UPDATE")
_SET_COUNT: Final = BulkWrite("update", schema.chunks, ("id", "refcount"), by=("id",))
_DELETE_CHUNKS: Final = BulkWrite("delete", schema.chunks, ("id",), by=("id",))

#: Rows of one statement when a body of many chunks is copied or released.
PAGE_ROWS: Final = 2000


class Extent(NamedTuple):
    """Bytes [chunk_offset, chunk_offset + length) of the chunk stand at `start` of the body."""

    start: int
    chunk_id: bytes
    chunk_offset: int
    length: int


def extents_from(connection: sa.Connection, body_id: int, first: int, limit: int) -> list[Extent]:
    """Up to `limit` extents in order, beginning with the one that holds byte `first`: two index seeks, whatever the
    size of the body."""
    t = schema.extents.c
    held = connection.execute(
        sa.select(sa.func.max(t.start)).where(t.body_id == body_id, t.start <= first)
    ).scalar()
    rows = connection.execute(
        sa.select(t.start, t.chunk_id, t.chunk_offset, t.length)
        .where(t.body_id == body_id, t.start >= (held or 0))
        .order_by(t.start)
        .limit(limit)
    )
    return [Extent(*row) for row in rows]


def covered(connection: sa.Connection, body_id: int, start: int, stop: int) -> tuple[int, bool]:
    """(bytes of the body that have an extent, whether some of start..stop have)."""
    t = schema.extents.c
    overlaps = sa.select(t.start).where(t.body_id == body_id, t.start < stop, t.start + t.length > start).limit(1)
    total = sa.select(sa.func.coalesce(sa.func.sum(t.length), 0)).where(t.body_id == body_id)
    return int(connection.execute(total).scalar_one()), connection.execute(overlaps).first() is not None


def held(connection: sa.Connection, body_id: int) -> tuple[int, int]:
    """(different chunks, bytes) of a body that are at this site: one pass over its extents."""
    t = schema.extents.c
    counts = sa.select(sa.func.count(t.chunk_id.distinct()), sa.func.coalesce(sa.func.sum(t.length), 0))
    chunks, length = connection.execute(counts.where(t.body_id == body_id)).one()
    return int(chunks), int(length)


def chunks_of(connection: sa.Connection, ids: Iterable[bytes]) -> dict[bytes, PackedChunk]:
    """The rows of these chunks, by id; length is the whole chunk."""
    t, wanted = schema.chunks.c, sorted(set(ids))
    found: dict[bytes, PackedChunk] = {}
    for at in range(0, len(wanted), 500):
        query = sa.select(t.id, t.chunk_bytes, t.crc32c, t.redundancy, t.replicas)
        rows = connection.execute(query.where(among(t.id, wanted[at : at + 500])))
        for i, chunk_bytes, crc, redundancy, replicas in rows:
            found[i] = PackedChunk(i, chunk_bytes, chunk_bytes, crc, redundancy, unpack_replicas(replicas))
    return found


def first_chunks(connection: sa.Connection, body_ids: Iterable[int]) -> dict[int, PackedChunk]:
    """The first chunk of each of these bodies."""
    e, wanted = schema.extents.c, sorted(set(body_ids))
    firsts: dict[int, bytes] = {}
    for at in range(0, len(wanted), 500):
        query = sa.select(e.body_id, e.chunk_id).where(among(e.body_id, wanted[at : at + 500]), e.start == 0)
        firsts.update((int(body), bytes(chunk)) for body, chunk in connection.execute(query))
    chunks = chunks_of(connection, firsts.values())
    return {body: chunks[chunk] for body, chunk in firsts.items() if chunk in chunks}


def all_extents(connection: sa.Connection, body_id: int) -> Iterable[list[Extent]]:
    """All extents of a body in pages of PAGE_ROWS."""
    first = 0
    while True:
        page = extents_from(connection, body_id, first, PAGE_ROWS)
        if page and page[0].start < first:      # the page before ended within its last extent: cannot overlap
            page = page[1:]
        if not page:
            return
        yield page
        first = page[-1].start + max(1, page[-1].length)


def make_rows(
    body_id: int, chunks: Sequence[PackedChunk]
) -> tuple[list[tuple[int, int, bytes, int, int]], list[tuple[bytes, int, int, int, int, bytes]]]:
    """(extents rows, chunks rows) of a body made of these chunks in order, each referenced once."""
    extents, rows, start = [], [], 0
    for c in chunks:
        extents.append((body_id, start, c.id, 0, c.length))
        rows.append((c.id, c.chunk_bytes, c.crc32c, c.redundancy, 1, _pack_replicas(c.replicas)))
        start += c.length
    return extents, rows


def share(session: Session, body_id: int, copy_id: int) -> None:
    """A second body with the same extents: every chunk's count rises by the number of times it is named."""
    for page in all_extents(session.connection, body_id):
        session.write(INSERT_EXTENTS, [(copy_id, *extent) for extent in page])
        _add(session, page, +1)


def release(session: Session, body_id: int, *, at_ms: int) -> None:
    """Drop a body: its extents go, chunks that nobody names any more go to the garbage."""
    connection, t = session.connection, schema.extents.c
    for page in all_extents(connection, body_id):
        gone = _add(session, page, -1)
        if gone:
            session.write(INSERT_GARBAGE, [(at_ms, pack(gone))])
    connection.execute(sa.delete(schema.extents).where(t.body_id == body_id))


def forget_extents(connection: sa.Connection, body_id: int) -> None:
    """The extents of a body that another one took over, with their references."""
    connection.execute(sa.delete(schema.extents).where(schema.extents.c.body_id == body_id))


def _add(session: Session, page: Sequence[Extent], sign: int) -> list[PackedChunk]:
    """Change the counts of the chunks of some extents; the chunks that reached zero, which left the table."""
    times: dict[bytes, int] = {}
    for extent in page:
        times[extent.chunk_id] = times.get(extent.chunk_id, 0) + sign
    changed, gone = [], []
    for chunk_id, chunk_bytes, crc, redundancy, refcount, replicas in session.fetch(
        CHUNKS_LOCKED, [(chunk,) for chunk in sorted(times)]
    ):
        left = refcount + times[chunk_id]
        assert left >= 0, f"chunk {chunk_id.hex()} is named by more extents than it counts"
        if left:
            changed.append((chunk_id, left))
        else:
            gone.append(PackedChunk(chunk_id, chunk_bytes, chunk_bytes, crc, redundancy, unpack_replicas(replicas)))
    session.write(_SET_COUNT, changed)
    session.write(_DELETE_CHUNKS, [(c.id,) for c in gone])
    return gone
