"""What explain asks the catalog about one object, on both engines."""

from __future__ import annotations

import pytest

from metadata.catalog import tiering
from metadata.catalog.tiering import Explained
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.kit.names_world import NamesWorld

__all__ = ["postgres", "run", "url_of"]


async def explained(w: NamesWorld, key: str) -> Explained:
    found = await w.database.scan(lambda c: tiering.object_named(c, 1, key))
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
