"""Listings against a model, on every engine."""

from __future__ import annotations

import asyncio
import random
import string
import time
from pathlib import Path

import pytest

from metadata.catalog.objects import INSERT_LATEST
from metadata.catalog.session import Session
from metadata.services.names import listing
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.errors import RequestError

__all__ = ["postgres", "run", "url_of"]


async def fill(w: NamesWorld, keys: list[str]) -> None:
    bucket = await w.names.get("bbb")
    rows = [(bucket.id, key, i + 1, 0, 1, len(key), "e", 5, b"", None, None) for i, key in enumerate(keys)]

    def write(session: Session) -> None:
        session.write(INSERT_LATEST, rows)

    await w.database.batch(write)


def model(keys: list[str], prefix: str, delimiter: str) -> list[tuple[str, bool]]:
    """(name, is a common prefix) of the whole listing, in order."""
    found: dict[str, bool] = {}
    for key in sorted(keys, key=str.encode):
        if key.startswith(prefix):
            at = key.find(delimiter, len(prefix)) if delimiter else -1
            found[key if at < 0 else key[: at + len(delimiter)]] = at >= 0
    return list(found.items())


async def whole(w: NamesWorld, prefix: str, delimiter: str, limit: int) -> list[tuple[str, bool]]:
    found: list[tuple[str, bool]] = []
    start_after: str | None = ""
    while start_after is not None:
        page = await w.page(prefix=prefix, delimiter=delimiter, start_after=start_after, limit=limit)
        entries = [(e.key, False) for e in page.objects] + [(p, True) for p in page.prefixes]
        assert len(entries) <= limit
        found += sorted(entries, key=lambda entry: entry[0].encode())
        start_after = page.next_start_after
        assert start_after is None or len(entries) == limit
    return found


@pytest.mark.parametrize("seed", range(6))
def test_pages_add_up_to_the_model(run: Run, seed: int) -> None:
    """A key missed at the seam of two pages is a file that a backup does not have."""
    rng = random.Random(seed)
    alphabet = rng.choice(["ab/", "a/", string.ascii_lowercase + "/", "a/\u00e9\ud7ff\ue000\U0010ffff"])
    keys = sorted({"".join(rng.choices(alphabet, k=rng.randint(1, 6))) for _ in range(300)})

    async def check(w: NamesWorld) -> None:
        await fill(w, keys)
        for _ in range(12):
            prefix = rng.choice(["", rng.choice(keys)[: rng.randint(1, 3)]])
            delimiter = rng.choice(["", "/", "a/"])
            limit = rng.choice([1, 2, 7, 50, 1000])
            expected = model(keys, prefix, delimiter)
            assert await whole(w, prefix, delimiter, limit) == expected, (prefix, delimiter, limit)

    run(check)


def test_a_common_prefix_over_many_keys_costs_few_rows(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of a million files must not be read to show its name."""
    rows_read = 0
    step = listing.ListingService.step

    async def counted(self: listing.ListingService, *args: object, **kwargs: object) -> object:
        nonlocal rows_read
        found = await step(self, *args, **kwargs)  # type: ignore[arg-type]
        rows_read += len(found[0])
        return found

    monkeypatch.setattr(listing.ListingService, "step", counted)

    async def check(w: NamesWorld) -> None:
        await fill(w, [f"{d}/{i:05}" for d in "abc" for i in range(3000)] + ["d"])
        page = await w.page(delimiter="/")
        assert page.prefixes == ["a/", "b/", "c/"] and [e.key for e in page.objects] == ["d"]
        assert rows_read <= 4 * listing.STEP_ROWS_MIN

    run(check)


@pytest.mark.slow
def test_a_page_of_common_prefixes_reads_the_same_rows_of_a_million_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One seek per common prefix, whatever lies below it: of a thousand keys as of a million."""
    rows_read = 0
    step = listing.ListingService.step

    async def counted(self: listing.ListingService, *args: object, **kwargs: object) -> object:
        nonlocal rows_read
        found = await step(self, *args, **kwargs)  # type: ignore[arg-type]
        rows_read += len(found[0])
        return found

    monkeypatch.setattr(listing.ListingService, "step", counted)

    async def pages(keys: int) -> tuple[int, float]:
        """(rows read, least CPU seconds) of a page that shows ten prefixes."""
        nonlocal rows_read
        w = await NamesWorld.open(f"sqlite:///{tmp_path}/{keys}.db")
        try:
            await w.buckets.create("bbb", ADMIN)
            for d in range(10):
                await fill(w, [f"{d}/{i:07}" for i in range(keys // 10)])
            seconds = []
            for _ in range(9):
                rows_read = 0
                began = time.process_time()
                page = await w.page(delimiter="/")
                seconds.append(time.process_time() - began)
                assert page.prefixes == [f"{d}/" for d in range(10)] and not page.objects
            return rows_read, min(seconds)
        finally:
            await w.close()

    few, few_seconds = asyncio.run(pages(1_000))
    many, many_seconds = asyncio.run(pages(1_000_000))
    print(f"a page over 1,000 keys {few_seconds * 1e3:.2f} ms of CPU, over 1,000,000 {many_seconds * 1e3:.2f} ms")
    assert many <= few + listing.STEP_ROWS_MIN
    assert many <= 10 * listing.STEP_ROWS_MIN


def test_a_full_page_is_read_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row that says whether there are more comes with the page: a second step would read as much again."""
    steps: list[int] = []
    step = listing.ListingService.step

    async def counted(self: listing.ListingService, *args: object, **kwargs: object) -> object:
        found = await step(self, *args, **kwargs)  # type: ignore[arg-type]
        steps.append(len(found[0]))
        return found

    monkeypatch.setattr(listing.ListingService, "step", counted)

    async def check(w: NamesWorld) -> None:
        await fill(w, [f"{i:05}" for i in range(2500)])
        page = await w.page()
        assert (len(page.objects), page.next_start_after, steps) == (1000, "00999", [1001])
        steps.clear()
        page = await w.page(start_after="01499")
        assert (len(page.objects), page.next_start_after, steps) == (1000, None, [1000])
        steps.clear()
        page = await w.page(limit=2400)
        assert (len(page.objects), page.next_start_after, steps) == (2400, "02399", [1001, 1001, 399])

    run(check)


def test_tier_and_heat_stand_beside_each_object(run: Run) -> None:
    """The listing of the REST interface shows them."""

    async def check(w: NamesWorld) -> None:
        await w.put("fast", chunks=[w.chunk(devices=(10, 21))])
        await w.put("slow")
        upload = w.upload()
        await w.put("big", chunks=[w.chunk(5, upload=upload, index=i, devices=(11, 20)) for i in range(20)])
        await w.put("empty", chunks=[])
        upload = w.upload()
        await w.put("two", chunks=[w.chunk(5, upload=upload, index=i, devices=(10, 20, 31)) for i in range(2)])
        found = {e.key: (e.tier, e.heat_per_hour) for e in (await w.page()).objects}
        assert found == {"fast": ("ssd", 1.0), "slow": ("hdd", 1.0), "big": ("ssd", 1.0), "empty": ("", 0.0),
                         "two": ("ssd", 2.0)}  # fmt: skip

    run(check)


def test_bad_questions_are_refused_by_name(run: Run) -> None:
    """Promise 9."""

    async def check(w: NamesWorld) -> None:
        for limit in (0, -1, 10_001):
            with pytest.raises(RequestError, match="limit"):
                await w.page(limit=limit)
        with pytest.raises(RequestError, match="prefix"):
            await w.page(prefix="a\x00")

    run(check)
