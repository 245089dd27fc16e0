"""What explain asks the catalog about one object, on both engines."""

from __future__ import annotations

import pytest

from metadata.catalog import tiering
from metadata.catalog.tiering import Explained
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.kit.names_world import ADMIN, NamesWorld

__all__ = ["postgres", "run", "url_of"]


async def explained(w: NamesWorld, key: str, version: int = 0) -> Explained:
    found = await w.database.scan(lambda c: tiering.object_named(c, 1, key, version))
    assert found is not None
    return found


def test_all_chunks_of_a_very_large_object_are_counted_though_only_the_first_are_brought(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator who is told 4,096 chunks of an object that has 40,000 looks for the rest in vain."""
    monkeypatch.setattr(tiering, "OBJECT_CHUNKS_MAX", 50)

    async def check(w: NamesWorld) -> None:
        upload = w.upload()
        chunks = [w.chunk(1000, upload=upload, index=i) for i in range(120)]
        await w.put("big", chunks=chunks)
        big = await explained(w, "big")
        assert [c.id for c in big.named.chunks] == [c.id for c in chunks[:50]]
        assert (big.chunks_total, big.bytes_here, big.named.size) == (120, 120_000, 120_000)
        await w.copy("big", "twin")
        assert (await explained(w, "twin"))[1:] == (120, 120_000), "the other name of the same chunks"
        await w.put("small", chunks=[w.chunk(70)])
        assert (await explained(w, "small"))[1:] == (1, 70)
        await w.put("empty", chunks=[])
        assert (await explained(w, "empty"))[1:] == (0, 0)

    run(check)


def test_older_versions_are_explained_and_markers_are_not(run: Run) -> None:
    """The heat report shows an object hot and on ssd, and explain knew its latest version alone, which nobody reads."""

    async def check(w: NamesWorld) -> None:
        await w.buckets.configure("bbb", ADMIN, versioning="enabled")
        chunks = [w.chunk(70), w.chunk(80)]
        older = (await w.put("k", chunks=chunks[:1])).version
        newer = (await w.put("k", chunks=chunks[1:])).version
        for version, chunk in ((0, chunks[1]), (newer, chunks[1]), (older, chunks[0])):
            found = await explained(w, "k", version)
            assert [c.id for c in found.named.chunks] == [chunk.id] and found.bytes_here == chunk.chunk_bytes
        marker = (await w.delete("k")).version
        for gone in (0, marker, 1):
            assert await w.database.scan(lambda c, v=gone: tiering.object_named(c, 1, "k", v)) is None
        assert (await explained(w, "k", newer)).named.version == newer

    run(check)
