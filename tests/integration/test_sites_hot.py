"""What of a body is read follows under a `hot` rule, the rest comes when it is read there. Real processes."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from tests.integration.test_sites import Site
from tests.kit.cluster import cluster, wait_until
from tierstore.wire.sites import SEGMENT_BYTES

READS = 20


def _here(site: Site) -> int:
    """Bytes of the film that are at a site that did not write it."""
    return int(site.http.get(f"{site.url}/v1/explain/films/film").json()["remote"]["bytes_here"])


@pytest.mark.slow
def test_of_a_film_whose_beginning_is_read_the_beginning_follows(tmp_path: Path) -> None:
    """The other site is to have what is read before its own readers ask, and its disks are not for the rest."""
    with cluster(tmp_path, "--sites", "2", "--servers", "2") as c:
        with httpx.Client(headers={"authorization": f"Bearer {c.token}"}, timeout=180) as http:
            a, b = (Site(site["name"], site["gateway"], http) for site in c.ready["sites"])
            assert a.http.put(f"{a.url}/v1/buckets/films").status_code == 201
            a.rules("films", b.name, bodies="hot")
            film = os.urandom(5 * SEGMENT_BYTES + 1000)
            assert a.put("film", film, "films").status_code == 200
            wait_until(
                lambda: b.http.head(f"{b.url}/v1/objects/films/film").status_code == 200, seconds=60, what="the name"
            )
            assert _here(b) == 0
            for _ in range(READS):
                assert a.get("film", "films", range=f"bytes=0-{SEGMENT_BYTES - 1}").content == film[:SEGMENT_BYTES]
            wait_until(lambda: _here(b) > 0, seconds=120, what="the beginning at the other site", every=0.5)
            a.drained()
            assert _here(b) == SEGMENT_BYTES
            near = b.get("film", "films", range="bytes=0-999")
            assert (near.headers["x-tierstore-site"], near.content) == (b.name, film[:1000])
            far = b.get("film", "films", range=f"bytes={5 * SEGMENT_BYTES}-")
            assert (far.headers["x-tierstore-site"], far.content) == (a.name, film[5 * SEGMENT_BYTES :])
            assert b.get("film", "films").content == film
            a.rules("films", b.name, bodies="all")
            wait_until(
                lambda: b.http.get(f"{b.url}/v1/explain/films/film").json()["remote"] is None,
                seconds=120, what="the film is the other site's own", every=0.5,
            )
            assert b.get("film", "films").content == film
