"""A catalog of the release before, with names in it, is brought up to date while a process of that release writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import sqlalchemy as sa

from metadata.catalog import leases, schema
from metadata.catalog import postgres as postgresql
from metadata.catalog.database import Database, open_database
from metadata.catalog.migrate import APPLICATION, FLOOR, HEAD, upgrade
from tests.contract.catalog_subjects import postgres, url_of
from tests.kit.names_world import ADMIN, NamesWorld
from tests.kit.waits import until
from tierstore.clock import SystemClock
from tierstore.wire.names import Put

__all__ = ["postgres", "url_of"]

#: The schema of the release before, and what this one has added to it.
BEFORE = "0003"
ADDED = ("fetched_bodies",)
WRITERS = 4


def _to_before(c: sa.Connection) -> None:
    """The catalog as that release left it."""
    for table in ADDED:
        c.execute(sa.text(f"DROP TABLE {table}"))
    c.execute(sa.text("UPDATE alembic_version SET version_num = :before"), {"before": BEFORE})
    leases.set_setting(c, FLOOR, BEFORE)


async def _fill(world: NamesWorld) -> dict[str, int]:
    """Names of every shape: inline, of many chunks, overwritten, with older versions, deleted; name -> version."""
    await world.buckets.create("bbb", ADMIN)
    await world.buckets.create("old", ADMIN)
    await world.buckets.configure("old", ADMIN, versioning="enabled")
    kept: dict[str, int] = {}
    for number in range(40):
        kept[f"k{number}"] = (await world.put(f"k{number}")).version
    chunks = [world.chunk(100, upload=upload, index=i) for upload in [world.upload()] for i in range(40)]
    [large] = await world.commits.commit([(world.item(Put("bbb", "large", 4000, "", chunks)), ADMIN)])
    assert not large.code, large
    kept["large"] = large.version
    for number in range(10):
        kept[f"k{number}"] = (await world.put(f"k{number}", etag="again")).version
        assert not (await world.delete(f"k{number + 20}")).code
        del kept[f"k{number + 20}"]
        await world.put("versions", bucket="old", etag=str(number))
    return kept


async def _counts(database: Database) -> dict[str, int]:
    tables = (schema.objects, schema.versions, schema.extents, schema.chunks, schema.changes, schema.operations)
    return await database.read(
        lambda c: {t.name: c.execute(sa.select(sa.func.count()).select_from(t)).scalar_one() for t in tables}
    )


@pytest.mark.parametrize("url_of", ["sqlite", "postgresql"], indirect=True)
def test_the_release_before_goes_on_writing_while_its_catalog_is_brought_up_to_date(
    url_of: Callable[[], Awaitable[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration that only adds needs no stop (ADR 0210): no write of the old process fails in it, none is lost, its
    code works on the catalog after it, and the new process reads all that both have written."""

    async def main() -> None:
        url = await url_of()
        settings = {**postgresql._SERVER_SETTINGS, "application_name": APPLICATION + BEFORE}
        with monkeypatch.context() as patch:
            patch.setattr(postgresql, "_SERVER_SETTINGS", settings)
            old = await NamesWorld.open(url, clock=SystemClock())
            kept = await _fill(old)
            await old.database.write(_to_before)
            before = await _counts(old.database)
            floors: list[str] = []

            async def writer(name: int) -> None:
                number = 0
                while len(floors) < 2:
                    result = await old.put(f"w{name}/{number}")
                    assert not result.code, result
                    kept[f"w{name}/{number}"] = result.version
                    assert (await old.look(f"w{name}/{number}")).version == result.version
                    number += 1

            writing = [asyncio.ensure_future(writer(name)) for name in range(WRITERS)]
            await asyncio.gather(*(old.put(f"first{n}") for n in range(8)))     # they are under way
        newer = await open_database(url)
        try:
            await newer.write(upgrade)
            floors.append(await newer.read(lambda c: leases.setting(c, FLOOR)))
            after = await _counts(newer)
            assert all(after[table] >= count for table, count in before.items()), (before, after)
        finally:
            await newer.close()
        written = len(kept)
        await until(lambda: len(kept) >= written + 20)     # the old process writes on, on the new schema
        floors.append("enough")
        await asyncio.gather(*writing)
        world = await NamesWorld.open(url, seed=2, clock=SystemClock())
        try:
            revision = sa.text("SELECT version_num FROM alembic_version")
            assert await world.database.read(lambda c: c.execute(revision).scalar()) == HEAD
            for key, version in kept.items():
                assert (await world.look(key)).version == version, key
            assert len(await world.rows(schema.versions)) == before["versions"] == 9
            assert not (await world.put("of the new one")).code
            assert (await old.look("of the new one")).version
        finally:
            await world.close()
            await old.close()
        assert floors[0] == BEFORE

    asyncio.run(main())
