"""Where the promoter finds the chunks that were read, on both engines."""

from __future__ import annotations

import pytest

from metadata.catalog import buckets, tiering
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.kit.names_world import ADMIN, NamesWorld

__all__ = ["postgres", "run", "url_of"]


def test_chunks_are_found_in_latest_and_older_versions_and_in_rows_of_their_own(run: Run) -> None:
    """A chunk that is not found has no owner, so no rule holds for it and it is never promoted."""

    async def check(w: NamesWorld) -> None:
        made = {name: w.chunk(size) for size, name in enumerate(("old", "new", "moved", "shared", "gone"), 1000)}
        await w.put("before", chunks=[made["moved"]])
        await w.copy("before", "after", rename=True)
        await w.buckets.configure("bbb", ADMIN, versioning="enabled")
        old = await w.put("k", chunks=[made["old"]])
        new = await w.put("k", chunks=[made["new"]])
        await w.put("one", chunks=[made["shared"]])
        await w.copy("one", "two")
        gone = await w.put("gone", chunks=[made["gone"]])
        await w.indexer.catch_up()
        await w.delete("gone", version=gone.version)
        await w.indexer.catch_up()

        wanted = {chunk.id: [10, 11, 20] for chunk in made.values()} | {bytes(16): [10]}
        names = await w.database.read(buckets.names)
        found = await w.database.scan(lambda c: tiering.find(c, wanted, names))
        where = {name: found[chunk.id] for name, chunk in made.items() if chunk.id in found}
        assert set(where) == {"old", "new", "moved", "shared"} and len(found) == 4
        owners = {name: one.owner[1:] for name, one in where.items() if one.owner is not None}
        assert (owners["old"], owners["new"]) == (("k", old.version), ("k", new.version))
        assert (where["moved"].bucket, where["moved"].size, owners["moved"][0]) == ("bbb", 1002, "after")
        assert "shared" not in owners and where["shared"].chunk.chunk_bytes == 1003
        nowhere = {chunk.id: [30] for chunk in made.values()}
        assert await w.database.scan(lambda c: tiering.find(c, nowhere, names)) == {}

    run(check)


def test_more_chunks_than_one_statement_takes_are_all_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick asks for thousands at once."""
    monkeypatch.setattr(tiering, "_IN_MAX", 50)

    async def check(w: NamesWorld) -> None:
        made = {f"k{n:04}": w.chunk(100 + n) for n in range(140)}
        for key, chunk in made.items():
            await w.put(key, chunks=[chunk])
        await w.indexer.catch_up()
        wanted = {chunk.id: [10, 20] for chunk in made.values()}
        found = await w.database.scan(lambda c: tiering.find(c, wanted, {1: "bbb"}))
        assert {f.owner[1]: f.chunk.id for f in found.values() if f.owner} == {k: c.id for k, c in made.items()}

    run(check)
