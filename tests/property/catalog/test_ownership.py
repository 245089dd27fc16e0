"""Whatever is done to names, each committed chunk is named by exactly the rows that count it, or is garbage."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from metadata.catalog import schema
from metadata.catalog.packed import unpack
from metadata.services.names.steps import NULL_VERSION
from tests.kit.names_world import ADMIN, NamesWorld

KEYS = ("a", "b", "c", "d/e")
STEPS = 60


class Model:
    """Latest versions (and all versions, where they are kept) as dicts of chunk id lists."""

    def __init__(self) -> None:
        self.latest: dict[str, list[bytes] | None] = {}
        self.versions: dict[tuple[str, int], list[bytes]] = {}
        self.made: set[bytes] = set()


async def step(w: NamesWorld, m: Model, rng: random.Random, *, versioned: bool) -> None:
    key, other = rng.sample(KEYS, 2)
    match rng.choice(["put", "put", "put", "big", "delete", "copy", "copy", "rename", "version", "self", "index"]):
        case "put" | "big" as act:
            upload = w.upload()
            count = rng.randint(17, 20) if act == "big" else rng.randint(0, 3)
            chunks = [w.chunk(7, upload=upload, index=i) for i in range(count)]
            done = await w.put(key, chunks=chunks)
            assert not done.code
            m.made |= {c.id for c in chunks}
            m.latest[key] = m.versions[key, done.version] = [c.id for c in chunks]
        case "delete":
            assert not (await w.delete(key)).code
            m.latest.pop(key, None)
        case "copy" | "rename" | "self" as act:
            target = key if act == "self" else other
            done = await w.copy(key, target, rename=act == "rename")
            assert bool(done.code) == (key not in m.latest), done
            if not done.code:
                m.latest[target] = m.versions[target, done.version] = m.latest[key]  # type: ignore[assignment]
                if act == "rename":
                    m.latest.pop(key)
        case "version" if versioned and m.versions:
            name, version = rng.choice(sorted(m.versions))
            assert not (await w.delete(name, version=rng.choice([version, version, NULL_VERSION]))).code
            await resync(w, m)
        case "index":
            await w.indexer.catch_up()


async def resync(w: NamesWorld, m: Model) -> None:
    """After a version is gone for good the model takes over which one is the latest: that is another test's matter."""
    for key in KEYS:
        found = await w.look(key)
        if found.code:
            m.latest.pop(key, None)
        else:
            m.latest[key] = [c.id for c in found.chunks]


async def check(w: NamesWorld, m: Model) -> None:
    for key in KEYS:
        found = await w.look(key)
        assert (None if found.code else [c.id for c in found.chunks]) == m.latest.get(key), key
    inline: Counter[bytes] = Counter()
    bodies = set()
    for table in (schema.objects, schema.versions):
        for row in await w.rows(table):
            if row.kind == schema.KIND_INLINE:
                inline.update(chunk.id for chunk in unpack(row.body))
            elif row.kind == schema.KIND_ROWS:
                bodies.add(row.ref)
    extents = await w.rows(schema.extents)
    assert {e.body_id for e in extents} == bodies, "a body without a row, or a row without a body"
    assert set(inline.values()) <= {1}, "an inline chunk with two owners"
    counted = Counter(bytes(e.chunk_id) for e in extents)
    assert counted == Counter(await w.refcounts())
    garbage = await w.garbage()
    assert len(garbage) == len(set(garbage)), "collected twice"
    owned = set(inline) | set(counted)
    assert not set(inline) & set(counted) and not owned & set(garbage), "garbage that is still named"
    assert owned | set(garbage) == m.made, "a chunk that nobody will ever collect"
    await w.indexer.catch_up()
    assert {(device, chunk) for device, chunk, _ in await w.placed()} == {(d, c) for c in owned for d in (10, 20)}


@pytest.mark.parametrize("versioning", ["", "enabled", "suspended"])
@pytest.mark.parametrize("seed", range(12))
def test_every_chunk_is_owned_or_garbage(seed: int, versioning: str) -> None:
    """A chunk with no owner and no garbage row is a leak; garbage with an owner is lost data (promises 1 and 4)."""

    async def main() -> None:
        rng = random.Random(seed)
        w = await NamesWorld.open("sqlite://", threads=False, seed=seed)
        await w.buckets.create("bbb", ADMIN)
        m = Model()
        for at in range(STEPS):
            if versioning and at == STEPS // 4:
                await w.buckets.configure("bbb", ADMIN, versioning="enabled")
            if versioning == "suspended" and at == STEPS // 2:
                await w.buckets.configure("bbb", ADMIN, versioning="suspended")
            await step(w, m, rng, versioned=bool(versioning))
            w.clock.advance(rng.random())
            if at % 6 == 5:
                await check(w, m)
        await check(w, m)
        await w.close()

    asyncio.run(main())
