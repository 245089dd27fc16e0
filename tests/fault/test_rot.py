"""Silent damage in many places of a running cluster (R7): nothing wrong is served, one scrub finds and mends it all."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.kit import admin
from tests.kit.cluster import Cluster, cluster, wait_until
from tests.kit.http import Client
from tests.kit.inventory import compare
from tests.kit.load import body_of
from tests.kit.rot import Rot, copies_of, quarantined

SIZES = (1, 100, 4096, 4096, 70_000, 150_000, 300_000, 300_000, 1_200_000)


async def _store(c: Cluster, count: int) -> None:
    client = Client(c.gateway, token=c.token)
    assert (await client.request("PUT", "/v1/buckets/rot")).status == 201
    for i in range(count):
        answer = await client.request("PUT", f"/v1/objects/rot/k{i}", body_of(i, SIZES[i % len(SIZES)]))
        assert answer.status == 200, answer
    client.close()


async def _read(c: Cluster, numbers: list[int]) -> None:
    client = Client(c.gateway, token=c.token)
    for i in numbers:
        answer = await client.request("GET", f"/v1/objects/rot/k{i}")
        assert answer.status == 200 and answer.body == body_of(i, SIZES[i % len(SIZES)]), (i, answer.status)
    client.close()


@pytest.mark.parametrize("places", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_damage_is_never_served_and_one_scrub_mends_all_of_it(tmp_path: Path, places: int) -> None:
    """Bit flips in data, sums and headers, swapped blocks, cut files, a copy that holds another chunk's bytes."""
    objects = places * 3 // 2
    rot = Rot(random.Random(places))
    with cluster(tmp_path, "--servers", "3") as c:
        asyncio.run(_store(c, objects))
        rot.spread(list(copies_of(c)), places)
        print(f"{len(rot.chunks)} copies damaged of {objects} objects: {dict(rot.done)}")
        assert len(rot.chunks) >= places and len(rot.done) >= 9
        asyncio.run(_read(c, list(range(0, objects, 2))))       # the other half is found by the scrub alone
        admin.call(c, "POST", "/v1/admin/scrub", {"start": True})
        wait_until(
            lambda: (answer := admin.ask(c, "/v1/admin/scrub")) and not answer["is_running"] and answer["checked"],
            seconds=60 + places / 5, what="the pass over all copies",
        )  # fmt: skip
        print(admin.ask(c, "/v1/admin/scrub"))
        admin.wait_settled(c, seconds=60 + places / 10)
        aside = {str(entry["chunk"]) for entry in quarantined(c)}
        lost_track = [chunk.hex() for chunk in rot.chunks if chunk.hex() not in aside]
        asyncio.run(_read(c, list(range(objects))))
        assert c.stop() == 0
        after = compare(c, with_bytes=True)
        print(f"{after}; {len(after.rotten)} rotten, {len(aside)} in quarantine, {len(lost_track)} damaged ones not")
        left = [f"{what} {chunk.hex()}" for chunk, what in rot.chunks.items() if chunk.hex() in lost_track]
        assert not after.rotten and not after.missing and not after.thin, (after, left)
        assert not lost_track, lost_track[:5]
