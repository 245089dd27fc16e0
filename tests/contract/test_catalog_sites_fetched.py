"""Bodies fetched from another site for a reader: kept while there is room, the coldest let go of, on every engine."""

from __future__ import annotations

import sqlalchemy as sa

from metadata.catalog import leases, schema
from metadata.services.cluster.duties import PROMOTER
from metadata.services.sites.fetched import FetchedBodies
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.contract.test_catalog_sites import fill, take, version
from tests.kit.names_world import NamesWorld
from tierstore.wire.names import CommitResult, Fill
from tierstore.wire.sites import NAME_PUT, NameRecord

__all__ = ["postgres", "run", "url_of"]


async def read_there(w: NamesWorld, key: str, of: int, start: int, size: int) -> bytes:
    """What a gateway commits after it fetched bytes for a reader; the chunk."""
    chunk = w.chunk(size)
    result = (await w.commit(Fill("bbb", key, of, start, [chunk], is_cached=True)))[0]
    assert not result.code, result
    return bytes(chunk.id)


async def own(w: NamesWorld, key: str, of: int) -> CommitResult:
    """What it commits when replication asks for bytes that are here."""
    return (await w.commit(Fill("bbb", key, of, 0, [])))[0]


async def named(w: NamesWorld, *keys: str, size: int = 100) -> int:
    v = version(w)
    await take(w, *(NameRecord("bbb", key, NAME_PUT, v, size, "e", 5) for key in keys))
    return v


async def duty(w: NamesWorld, *, capacity: int, heats: dict[bytes, float]) -> FetchedBodies:
    def lead(c: sa.Connection) -> None:
        row = {"name": PROMOTER, "holder": "here", "url": "", "epoch": 1, "until_ms": 1 << 60}
        leases.upsert(c, schema.leases, ["name"], row)

    await w.database.write(lead)
    return FetchedBodies(
        w.database, w.clock, heat_of=lambda chunk: heats.get(chunk, 0.0), capacity=lambda: capacity, copies=lambda: 2,
        share=0.5,
    )  # fmt: skip


def test_the_coldest_bodies_go_once_they_take_more_than_their_share_and_their_names_stay(run: Run) -> None:
    """A site under an on-demand rule must not fill up with what its readers once read."""

    async def check(w: NamesWorld) -> None:
        keys = [f"k{i:02}" for i in range(20)]
        v = await named(w, *keys)
        chunks = {key: await read_there(w, key, v, 0, 100) for key in keys}
        found = await w.look("k00")
        assert found.is_remote and sum(chunk.length for chunk in found.chunks) == 100
        hot = {chunks[key]: 9.0 for key in keys[:4]}
        work = await duty(w, capacity=8_000, heats=hot)     # of which half, for two copies of 2,000 bytes
        assert await work.step(1) == (0, False) and work.kept_bytes == 2_000
        work = await duty(w, capacity=6_000, heats=hot)
        while (await work.step(1))[1]:
            pass
        assert work.kept_bytes <= 1_500 * 0.9
        left = {key for key in keys if (await w.look(key)).chunks}
        assert left >= set(keys[:4]) and len(left) * 100 == work.kept_bytes
        away = next(key for key in keys if key not in left)
        gone = await w.look(away)
        assert gone.is_remote and gone.version == v and not gone.chunks
        assert {chunks[key] for key in keys if key not in left} == set(await w.garbage())
        assert not (await fill(w, away, v, 0, [100])).code     # it may come again
        assert not (await w.look(away)).is_remote

    run(check)


def test_what_replication_brings_or_owns_is_never_let_go_of(run: Run) -> None:
    """Under a rule with all bodies a reader may have been first; half of a large body must not travel twice."""

    async def check(w: NamesWorld) -> None:
        v = await named(w, "read-first", "half", "both", size=200)
        await read_there(w, "read-first", v, 0, 200)
        assert not (await own(w, "read-first", v)).code
        assert not (await w.look("read-first")).is_remote
        assert (await own(w, "read-first", v)).code == "already-here"
        await fill(w, "half", v, 0, [100])                      # replication's, then a reader comes
        await read_there(w, "half", v, 100, 100)
        await read_there(w, "both", v, 0, 100)                  # a reader's, then replication goes on
        await fill(w, "both", v, 100, [100])
        work = await duty(w, capacity=0, heats={})
        assert await work.step(1) == (0, False)
        assert not await w.rows(schema.fetched_bodies)
        assert len((await w.look("half")).chunks) == 2
        assert not (await w.look("both")).is_remote
        assert not (await own(w, "half", v)).code
        assert not (await w.look("half")).is_remote and not await w.garbage()

    run(check)


def test_a_fetched_body_that_was_replaced_is_only_forgotten(run: Run) -> None:
    async def check(w: NamesWorld) -> None:
        v = await named(w, "k")
        chunk = await read_there(w, "k", v, 0, 100)
        w.clock.advance(1.0)
        newer = await named(w, "k")
        assert newer > v and await w.garbage() == [chunk]
        work = await duty(w, capacity=0, heats={})
        assert (await work.step(1))[0] == 0
        assert not await w.rows(schema.fetched_bodies) and await w.garbage() == [chunk]

    run(check)
