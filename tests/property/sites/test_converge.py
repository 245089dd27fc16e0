"""Two sites that write the same keys, with clocks apart, and exchange names late, twice and out of order: both end
with the same objects, each the one with the largest id."""

from __future__ import annotations

import asyncio
import random

import pytest

from metadata.catalog import schema
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.clock import ManualClock
from tierstore.wire.sites import NAME_MARKER, NAME_PUT, NameBatch, NameRecord

KEYS = ("a", "b", "c", "d")
STEPS = 60


async def _records(w: NamesWorld) -> dict[str, NameRecord]:
    """What the site would say of each key now."""
    return {
        row.key: NameRecord(
            "bbb", row.key, NAME_MARKER if row.kind == schema.KIND_MARKER else NAME_PUT, row.version, row.size,
            row.etag, row.created_at_ms, bool(row.is_null),
        )
        for row in await w.rows(schema.objects)
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_both_sites_end_with_the_last_write_of_each_key(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        skew_ms = rng.choice((0, 1000, -300_000, 600_000))
        clocks = [ManualClock(), ManualClock(now_ms=ManualClock().now_ms() + skew_ms)]
        both = [
            await NamesWorld.open("sqlite://", threads=False, seed=seed + i, clock=clocks[i], site=i + 1)
            for i in range(2)
        ]
        try:
            for i, w in enumerate(both):
                await w.buckets.create("bbb", ADMIN)
                await w.buckets.set_replication("bbb", [{"target": f"site{2 - i}"}], ADMIN)
            newest: dict[str, int] = {}
            in_flight: list[tuple[int, list[NameRecord]]] = []
            for _ in range(STEPS):
                at = rng.randrange(2)
                w = both[at]
                for clock in clocks:
                    clock.advance(rng.choice((0, 0.001, 0.5)))
                key = rng.choice(KEYS)
                act = rng.random()
                if act < 0.45:
                    before = (await _records(w)).get(key)
                    made = (await w.put(key, chunks=[])).version
                    # of one site's client, the later write is the larger, whatever it had seen from elsewhere
                    assert before is None or made > before.version
                    newest[key] = max(newest.get(key, 0), made)
                elif act < 0.6:
                    gone = await w.delete(key)
                    if gone.existed:
                        newest[key] = max(newest.get(key, 0), gone.version)
                elif act < 0.8:
                    in_flight.append((1 - at, list((await _records(w)).values())))
                elif in_flight:
                    to, records = in_flight[rng.randrange(len(in_flight))]     # may be sent again later
                    await both[to].taker.take(NameBatch(f"site{2 - to}", records, {"bbb": ""}), f"site{2 - to}")
            for at in (0, 1):
                records = list((await _records(both[at])).values())
                await both[1 - at].taker.take(NameBatch(f"site{at + 1}", records, {"bbb": ""}), f"site{at + 1}")
            left, right = await _records(both[0]), await _records(both[1])
            assert left == right
            assert {key: record.version for key, record in left.items()} == newest
        finally:
            for w in both:
                await w.close()

    asyncio.run(main())
