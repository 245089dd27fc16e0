"""Silent damage in many places of a running cluster (R7): nothing wrong is served, one scrub finds and mends it all."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.kit import admin
from tests.kit.cluster import Cluster, cluster, wait_until
from tests.kit.http import Client
from tests.kit.inventory import compare, copies_told, counted_copies, thin_now
from tests.kit.load import body_of
from tests.kit.rot import Rot, copies_of, quarantined

#: Six kinds of damage to copies in files, five to copies in segments (which cannot end early).
KINDS = 11
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
        assert len(rot.chunks) == places and len(rot.done) == KINDS, rot.done
        asyncio.run(_read(c, list(range(0, objects, 2))))       # the other half is found by the scrub alone
        admin.call(c, "POST", "/v1/admin/scrub", {"start": True})
        wait_until(
            lambda: (answer := admin.ask(c, "/v1/admin/scrub")) and not answer["is_running"] and answer["checked"],
            seconds=600, what=lambda: f"the pass over all copies: {admin.told(c)}",
        )  # fmt: skip
        admin.wait_settled(c, seconds=600)
        wait_until(
            lambda: not thin_now(c, rot.chunks), seconds=600, every=0.5,
            what=lambda: f"copies mended: {thin_now(c, rot.chunks)[:5]}, {admin.told(c)}",
        )  # fmt: skip
        asyncio.run(_read(c, list(range(objects))))
        aside = {str(entry["chunk"]) for entry in quarantined(c)}
        counted, told = counted_copies(c), admin.told(c)
        not_aside = [chunk for chunk in rot.chunks if chunk.hex() not in aside]
        # what the catalog let go of meanwhile (a fast copy of what is no longer hot) nobody had to look at
        unseen = [chunk for chunk in not_aside if (rot.copies[chunk].device, chunk) in counted]
        unseen_told = [f"{rot.chunks[chunk]}, {rot.copies[chunk]}: {copies_told(c, chunk)}" for chunk in unseen]
        assert c.stop() == 0
        after = compare(c, with_bytes=True)
        print(f"{after}; {len(after.rotten)} rotten, {len(aside)} in quarantine, {len(not_aside)} damaged ones not")
        assert not after.rotten and not after.missing and not after.thin, (
            after.rotten, after.missing, after.thin, unseen_told, told,
        )  # fmt: skip
        assert not unseen, (unseen_told, told)
        assert len(not_aside) <= places // 10, ([rot.chunks[chunk] for chunk in not_aside], told)
