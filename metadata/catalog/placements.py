"""The reverse table (device -> chunks), written lazily from the feed and the garbage, in batches.

It carries the feed's sequence up to which it is complete (setting `placements_sequence`), written in the same
transaction as the rows, so a question about (chunk, device) can be answered once that mark has passed the moment of
the question (rule 2). Rows of chunks that became garbage go as soon as the garbage row is seen; the garbage itself
says from then on that the chunk is spoken for.

Invariants: with the mark at the head, every replica of every referenced chunk has its row; a row may outlive its
replica for a moment, never the other way round. A row says what was true when it was written: who moves a row under
another name moves its placements in the same transaction (`move`).

Cost: about 10 us per change on SQLite, in pieces of PIECE_CHANGES so that the loop is not held.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import sqlalchemy as sa

from metadata.catalog import bodies, feed, schema
from metadata.catalog.among import filled
from metadata.catalog.objects import LATEST, VERSION, ObjectRow
from metadata.catalog.packed import PackedChunk, placed, places, unpack
from metadata.catalog.session import BulkWrite, Session
from metadata.catalog.statement import Statement

MARK_SETTING: Final = "placements_sequence"
GARBAGE_SETTING: Final = "placements_garbage_id"
#: Changes, and garbage rows, of one transaction.
PIECE_CHANGES: Final = 128
#: Up to so many devices, rows of dropped replicas are looked for on all others; beyond, they go with the chunk.
DEVICES_SEARCHED_MAX: Final = 512
#: Chunks in one statement: SQLite takes 32,766 variables, devices and chunks together.
CHUNKS_PER_DELETE: Final = 256

_COLUMNS: Final = ("device_id", "chunk_id", "bucket_id", "key", "version", "chunk_bytes")
UPSERT: Final = BulkWrite("upsert", schema.placements, _COLUMNS, by=("device_id", "chunk_id"))
_DELETE: Final = BulkWrite(
    "delete", schema.placements, ("device_id", "chunk_id"), by=("device_id", "chunk_id"), exact=False
)
#: Changes after which the chunks of a version may stand elsewhere, or under another owner.
_PLACING: Final = frozenset({schema.CHANGE_PUT, schema.CHANGE_REPLICAS, schema.CHANGE_SHARED})

_VALUE_OF: Final = sa.select(schema.settings.c.value).where(schema.settings.c.name == sa.bindparam("setting"))
_VALUE: Final = Statement(_VALUE_OF)
_VALUE_LOCKED: Final = Statement(_VALUE_OF.with_for_update())
_SET_VALUE: Final = Statement(
    sa.update(schema.settings)
    .where(schema.settings.c.name == sa.bindparam("setting"))
    .values(value=sa.bindparam("text"))
)
_GARBAGE_AFTER: Final = Statement(
    sa.select(schema.garbage.c.id, schema.garbage.c.body)
    .where(schema.garbage.c.id > sa.bindparam("seen"))
    .order_by(schema.garbage.c.id)
    .limit(sa.literal_column(str(PIECE_CHANGES)))
)

Owner = tuple[int, str, int] | None
PlacementRow = tuple[int, bytes, int | None, str | None, int | None, int]


class Indexed(NamedTuple):
    """What one piece did. mark: complete up to here. more: there was more to do."""

    done: int
    mark: int
    more: bool


def index_piece(session: Session) -> Indexed:
    """Bring the reverse table forward by one piece of the feed and of the garbage."""
    connection = session.connection
    mark = _setting(connection, MARK_SETTING, lock=True)
    changes = feed.read(connection, mark, PIECE_CHANGES)
    rows: dict[tuple[int, bytes], PlacementRow] = {}
    dropped: list[tuple[int, bytes]] = []
    _index_versions(session, changes, rows, dropped)
    _index_chunks(session, changes, rows, dropped)
    session.write(UPSERT, list(rows.values()))
    session.write(_DELETE, [pair for pair in dropped if pair not in rows])
    garbage_seen = _forget_garbage(session)
    if changes:
        mark = changes[-1].sequence
        _set(connection, MARK_SETTING, mark)
    return Indexed(len(changes), mark, len(changes) == PIECE_CHANGES or garbage_seen == PIECE_CHANGES)


def _index_versions(
    session: Session, changes: Sequence[feed.Change], rows: dict[tuple[int, bytes], PlacementRow],
    dropped: list[tuple[int, bytes]],
) -> None:  # fmt: skip
    named = {(c.bucket_id, c.key, c.version): c.kind for c in changes if c.kind in _PLACING}
    found = [ObjectRow._make(r) for r in session.fetch(LATEST, sorted({(b, k) for b, k, _ in named}))]
    versions = {(r.bucket_id, r.key, r.version): r for r in found}
    # Those that are not the latest any more are older versions, or gone.
    missing = sorted(name for name in named if name not in versions)
    versions.update({(r[0], r[1], r[2]): ObjectRow._make(r) for r in session.fetch(VERSION, missing)})
    searched: list[PackedChunk] = []
    for name, kind in named.items():
        row = versions.get(name)
        if row is None:
            continue
        if row.kind == schema.KIND_INLINE and row.body:
            for device, chunk, chunk_bytes in placed(row.body):
                rows[device, chunk] = (device, chunk, *name, chunk_bytes)
            if kind == schema.CHANGE_REPLICAS:
                searched += unpack(row.body)
        elif row.kind in (schema.KIND_ROWS, schema.KIND_REMOTE) and row.ref is not None:
            for page in bodies.all_extents(session.connection, row.ref):
                found_chunks = bodies.chunks_of(session.connection, (e.chunk_id for e in page))
                _add_shared(rows, found_chunks.values())
    dropped += _elsewhere(session.connection, searched)


def _index_chunks(
    session: Session, changes: Sequence[feed.Change], rows: dict[tuple[int, bytes], PlacementRow],
    dropped: list[tuple[int, bytes]],
) -> None:  # fmt: skip
    ids = {bytes.fromhex(c.key) for c in changes if c.kind == schema.CHANGE_CHUNK}
    if ids:
        found = list(bodies.chunks_of(session.connection, ids).values())
        _add_shared(rows, found)
        dropped += _elsewhere(session.connection, found)


def _add_shared(rows: dict[tuple[int, bytes], PlacementRow], chunks: Iterable[PackedChunk]) -> None:
    for chunk in chunks:
        for replica in chunk.replicas:
            pair = (replica.device, chunk.id)
            rows[pair] = (replica.device, chunk.id, None, None, None, chunk.chunk_bytes)


def _elsewhere(connection: sa.Connection, chunks: Sequence[PackedChunk]) -> list[tuple[int, bytes]]:
    """Where these chunks have no replica (any more): rows that may have to go."""
    if not chunks:
        return []
    devices = [int(row[0]) for row in _DEVICES.rows(connection)]
    if len(devices) > DEVICES_SEARCHED_MAX:
        return []
    pairs = []
    for chunk in chunks:
        here = {replica.device for replica in chunk.replicas}
        pairs += [(device, chunk.id) for device in devices if device not in here]
    return pairs


def _forget_garbage(session: Session) -> int:
    """Drop the rows of chunks in garbage that was not looked at yet; how many garbage rows."""
    connection = session.connection
    seen = _setting(connection, GARBAGE_SETTING, lock=False)
    found = _GARBAGE_AFTER.rows(connection, seen=seen)
    if not found:
        return 0
    forget(connection, {(device, chunk) for _, body in found for device, chunk, _ in placed(body)})
    _set(connection, GARBAGE_SETTING, int(found[-1][0]))
    return len(found)


def forget(connection: sa.Connection, pairs: Iterable[tuple[int, bytes]]) -> None:
    """Drop the rows of chunks that are garbage: of these (device, chunk) and of every other device, also where there
    are none. The garbage names the copies of the end; one that moved just before, from a device whose row was not read
    again, left its row there, and a row that nothing names would hide the chunk from every inventory (rule 2)."""
    wanted = set(pairs)
    chunks = sorted({chunk for _, chunk in wanted})
    devices = sorted({int(row[0]) for row in _DEVICES.rows(connection)} | {device for device, _ in wanted})
    if len(devices) > DEVICES_SEARCHED_MAX:
        connection.execute(_FORGET, [{"of_device": device, "of_chunk": chunk} for device, chunk in sorted(wanted)])
        return
    for at in range(0, len(chunks), CHUNKS_PER_DELETE):
        some = chunks[at : at + CHUNKS_PER_DELETE]
        connection.execute(_FORGET_EVERYWHERE, {"of_devices": filled(devices), "of_chunks": filled(some)})


def move(session: Session, chunks: Iterable[PackedChunk], owner: Owner) -> None:
    """Give the placements of these chunks another owner, where they are known already. In the transaction that moves
    the row: between it and the feed's reader nobody may take the chunks for unreferenced."""
    bucket_id, key, version = owner or (None, None, None)
    pairs = {(replica.device, chunk.id) for chunk in chunks for replica in chunk.replicas}
    session.write(_MOVE, [(device, chunk, bucket_id, key, version) for device, chunk in sorted(pairs)])


def move_bodies(session: Session, moves: Iterable[tuple[bytes, tuple[int, str, int]]]) -> None:
    """The same for many inline bodies at once: (packed chunks, new owner) of each."""
    rows = {pair: owner for body, owner in moves for pair in places(body)}
    session.write(_MOVE, [(*pair, *rows[pair]) for pair in sorted(rows)])


_FORGET: Final = sa.delete(schema.placements).where(
    schema.placements.c.device_id == sa.bindparam("of_device"), schema.placements.c.chunk_id == sa.bindparam("of_chunk")
)
_FORGET_EVERYWHERE: Final = sa.delete(schema.placements).where(
    schema.placements.c.device_id.in_(sa.bindparam("of_devices", expanding=True)),
    schema.placements.c.chunk_id.in_(sa.bindparam("of_chunks", expanding=True)),
)
_DEVICES: Final = Statement(sa.select(schema.devices.c.id))
_MOVE: Final = BulkWrite(
    "update", schema.placements, ("device_id", "chunk_id", "bucket_id", "key", "version"),
    by=("device_id", "chunk_id"), exact=False,
)  # fmt: skip


def _setting(connection: sa.Connection, name: str, *, lock: bool) -> int:
    row = (_VALUE_LOCKED if lock else _VALUE).first(connection, setting=name)
    return int(row[0]) if row is not None else 0


def _set(connection: sa.Connection, name: str, value: int) -> None:
    if not _SET_VALUE.run(connection, setting=name, text=str(value)):
        connection.execute(sa.insert(schema.settings).values(name=name, value=str(value)))


def mark(connection: sa.Connection) -> int:
    """The feed's sequence up to which the reverse table is complete."""
    return _setting(connection, MARK_SETTING, lock=False)
