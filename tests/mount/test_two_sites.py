"""A mount at a site that has the names, while the bytes are still at the other one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import httpx
import pytest

from tests.kit.cluster import cluster, wait_until
from tests.kit.mount import Mounted, require_fuse

ARRIVAL_SECONDS = 90.0


@pytest.mark.slow
def test_bytes_of_the_other_site_are_read_and_edited_through_the_mount(tmp_path: Path) -> None:
    """Two real sites, bodies on demand: a whole read, a read in the middle, an edit, a rename and a link of files whose
    bytes are not here bring them; a directory that holds one is moved file by file, as `mv` does after EXDEV."""
    require_fuse()
    rng_bytes = {name: os.urandom(size) for name, size in [
        ("whole", 3_000_000), ("middle", 20_000_000), ("edited", 100_000), ("renamed", 5_000), ("linked", 5_000),
        ("moved", 5_000), ("small", 10),
    ]}  # fmt: skip
    with cluster(tmp_path / "sites", "--sites", "2", "--servers", "2") as c:
        headers = {"Authorization": f"Bearer {c.token}"}
        first, second = (site["gateway"] for site in c.ready["sites"])
        with httpx.Client(headers=headers, timeout=60) as http:
            assert http.put(f"{first}/v1/buckets/files").status_code == 201
            rule = {"prefix": "", "target": c.ready["sites"][1]["name"], "mode": "async", "bodies": "on-demand"}
            assert http.put(f"{first}/v1/buckets/files/replication", json={"rules": [rule]}).status_code == 200
            for name, body in rng_bytes.items():
                assert http.put(f"{first}/v1/objects/files/d/{name}", content=body).status_code == 200

            def arrived() -> bool:
                page = http.get(f"{second}/v1/objects/files?limit=100")
                return page.status_code == 200 and len(page.json()["objects"]) == len(rng_bytes)

            wait_until(arrived, seconds=ARRIVAL_SECONDS, what="the names at the other site", every=0.3)
            mount = Mounted(c, "files", tmp_path / "there", gateway=second).start()
            try:
                _use(mount.path, rng_bytes)
            finally:
                assert mount.stop() == 0


def _use(root: Path, bodies: dict[str, bytes]) -> None:
    place = root / "d"
    assert {path.name: path.stat().st_size for path in place.iterdir()} == {n: len(b) for n, b in bodies.items()}
    assert (place / "whole").read_bytes() == bodies["whole"]
    with open(place / "middle", "rb") as file:
        assert os.pread(file.fileno(), 70_000, 9_000_000) == bodies["middle"][9_000_000:9_070_000]
    with open(place / "edited", "r+b") as file:
        os.pwrite(file.fileno(), b"here", 50_000)
        os.fsync(file.fileno())
    expected = bytearray(bodies["edited"])
    expected[50_000:50_004] = b"here"
    assert (place / "edited").read_bytes() == expected
    with pytest.raises(OSError, match="cross-device") as caught:
        place.rename(root / "elsewhere")
    assert caught.value.errno == errno.EXDEV, "some of its files are not here yet"
    (place / "renamed").rename(place / "new name")
    assert (place / "new name").read_bytes() == bodies["renamed"]
    os.link(place / "linked", place / "second name")
    assert (place / "second name").read_bytes() == bodies["linked"]
    (root / "other").mkdir()
    (place / "moved").rename(root / "other" / "moved")
    assert (root / "other" / "moved").read_bytes() == bodies["moved"]
    assert (place / "small").read_bytes() == bodies["small"]
