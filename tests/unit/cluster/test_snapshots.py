"""The catalog's dump and journal: what is loaded from them is what was there."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from metadata.catalog import feed, schema, snapshot_load, snapshots
from metadata.catalog.packed import LIVE, PackedChunk, Replica, pack, pack_replicas
from metadata.services.upkeep.snapshot_ids import chunk_for, is_reserved, parse
from tests.unit.cluster.cluster_kit import new_cluster, new_database
from tierstore.errors import IntegrityError

_LEFT_OUT = {"placements", "jobs", "leases", "pins", "changes", "settings"}


def rows_of(c: sa.Connection) -> dict[str, list[tuple[object, ...]]]:
    return {
        table.name: sorted((tuple(row) for row in c.execute(sa.select(table))), key=repr)
        for table in schema.tables.sorted_tables
        if table.name not in _LEFT_OUT
    }


def places_of(c: sa.Connection) -> list[tuple[object, ...]]:
    return sorted((tuple(row) for row in c.execute(sa.select(schema.placements))), key=repr)


async def test_a_dump_loads_into_the_same_catalog() -> None:
    """A backup that lost a column or a row would be noticed on the day it is needed."""
    c = await new_cluster("a", "b", "c")
    for i in range(50):
        await c.put(f"k{i}", "a", "b")
    await c.put("shared", "b", "c", shared=True)
    await c.delete("k7")
    data = b"".join(await c.world.database.scan(lambda k: list(snapshots.dump(k, at_ms=c.world.clock.now_ms()))))
    other = await new_database()
    loaded = await other.write(lambda k: snapshot_load.load(k, data))
    assert loaded.sequence == 52 and loaded.rows["objects"] == 49 and (1, "k7") in loaded.tombstones
    assert await other.read(rows_of) == await c.world.database.read(rows_of)
    await other.write(snapshot_load.reindex)
    assert await other.read(places_of) == await c.world.database.read(places_of)


async def test_a_torn_or_changed_dump_is_refused() -> None:
    """Half a catalog loaded in silence would turn the other half into garbage."""
    c = await new_cluster("a", "b")
    await c.put("k", "a", "b")
    data = b"".join(await c.world.database.scan(lambda k: list(snapshots.dump(k, at_ms=0))))
    other = await new_database()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    for bad in (data[:-1], data[: len(data) // 2], bytes(flipped), b"nonsense", data + data[8:]):
        with pytest.raises(IntegrityError) as caught:
            await other.write(lambda k, bad=bad: snapshot_load.load(k, bad))  # type: ignore[misc]
        assert caught.value.code == "bad-snapshot"
    assert await other.read(snapshot_load.is_empty)


def insert(c: sa.Connection, table: sa.Table, key: str, version: int, **fields: object) -> None:
    values: dict[str, object] = {
        "kind": schema.KIND_INLINE, "is_null": 0, "size": 5, "etag": "e", "created_at_ms": 0,
        "body": pack([PackedChunk(version.to_bytes(16, "big"), 5, 5, 7, 0, (Replica(1, 0, LIVE, 0, 0, 0),))]), **fields,
    }  # fmt: skip
    c.execute(sa.insert(table).values(bucket_id=1, key=key, version=version, **values))


async def test_a_journal_brings_a_snapshot_up_to_date() -> None:
    """Puts, overwrites that keep versions, deletes, shared chunks and buckets behind the snapshot are all in it."""
    c = await new_cluster("a", "b")
    for key in ("stays", "overwritten", "deleted", "restored"):
        await c.put(key, "a", "b")
    at_ms = c.world.clock.now_ms()
    dump = b"".join(await c.world.database.scan(lambda k: list(snapshots.dump(k, at_ms=at_ms))))

    def change(k: sa.Connection) -> None:
        # as a commit does: the old latest moves to versions, twice
        old = k.execute(sa.select(schema.objects).where(schema.objects.c.key == "overwritten")).one()
        k.execute(sa.insert(schema.versions).values(**old._mapping))
        k.execute(sa.delete(schema.objects).where(schema.objects.c.key == "overwritten"))
        insert(k, schema.versions, "overwritten", 100)
        insert(k, schema.objects, "overwritten", 101)
        k.execute(sa.delete(schema.objects).where(schema.objects.c.key == "deleted"))
        insert(k, schema.objects, "new", 102)
        insert(k, schema.objects, "big", 103, kind=schema.KIND_ROWS, body=None, ref=9)
        k.execute(sa.insert(schema.extents).values(body_id=9, start=0, chunk_id=b"c" * 16, chunk_offset=0, length=5))
        replicas = pack_replicas([Replica(2, 0, LIVE, 0, 0, 0)])
        k.execute(sa.insert(schema.chunks).values(id=b"c" * 16, chunk_bytes=5, crc32c=7, refcount=1, replicas=replicas))
        k.execute(sa.insert(schema.buckets).values(id=1, name="photos", created_at_ms=1))
        entries = [
            feed.NewChange(schema.CHANGE_PUT, 1, "overwritten", 100),
            feed.NewChange(schema.CHANGE_PUT, 1, "overwritten", 101),
            feed.NewChange(schema.CHANGE_DELETE, 1, "deleted", 3),
            feed.NewChange(schema.CHANGE_PUT, 1, "new", 102),
            feed.NewChange(schema.CHANGE_PUT, 1, "big", 103),
            feed.NewChange(schema.CHANGE_BUCKET, 1, "photos", 0),
        ]
        feed.append(k, entries, at_ms=at_ms)

    await c.world.database.write(change)
    pieces: list[bytes] = []
    after, more = 4, True
    while more:
        def read(k: sa.Connection, after: int = after) -> tuple[int, bool, bytes]:
            reached, more, frames = snapshots.journal(k, after=after, limit=2, at_ms=at_ms, with_small=False)
            return reached, more, b"".join(frames)

        after, more, piece = await c.world.database.scan(read)
        pieces.append(piece)
    assert after == 10
    other = await new_database()

    def restore(k: sa.Connection) -> None:
        snapshot_load.load(k, dump)
        for piece in pieces + pieces[-1:]:      # a piece may be applied twice
            snapshot_load.apply(k, piece)
        snapshot_load.settle(k, sequence=10, version=0)

    await other.write(restore)
    mine, theirs = await other.read(rows_of), await c.world.database.read(rows_of)
    for name in ("objects", "versions", "extents", "chunks", "buckets"):
        assert mine[name] == theirs[name], name
    assert await other.read(lambda k: feed.head(k)[0]) == 10


def test_catalog_chunks_are_found_by_their_ids_alone() -> None:
    """With the catalog gone, a listing of a device is all there is."""
    chunk = chunk_for("snapshot", 123456, 7, 3)
    assert is_reserved(chunk) and not is_reserved(bytes(16))
    found = parse(chunk)
    assert found is not None and (found.kind, found.sequence, found.epoch, found.part) == ("snapshot", 123456, 7, 3)
    assert chunk_for("journal", 2, 1, 0) < chunk_for("journal", 10, 1, 0) and parse(bytes(16)) is None
