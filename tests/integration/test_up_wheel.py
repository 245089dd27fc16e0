"""What users install: a cluster starts from the wheel alone, in an empty directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from tests.kit.cluster import wait_until
from tests.kit.ports import free_port_base

ROOT = Path(__file__).parents[2]


def test_a_cluster_starts_from_the_wheel_in_an_empty_directory(tmp_path: Path) -> None:
    """A module, template or migration that is missing in the wheel shows only here."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check", "--target",
         str(site), str(wheel)],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    empty = tmp_path / "empty"
    empty.mkdir()
    # The wheel comes first on the path, before this checkout that is installed beside it.
    env = {**os.environ, "PYTHONPATH": str(site)}
    where = "import tierstore, metadata, objectd; print(tierstore.__file__, metadata.__file__, objectd.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], env=env, cwd=empty, capture_output=True, text=True, check=True, timeout=180
    ).stdout.split()
    assert all(path.startswith(str(site)) for path in found), found
    options = ["--ready-file", "ready.json", "--port-base", str(free_port_base())]
    up = subprocess.Popen(
        [sys.executable, str(site / "bin/tierstore"), "up", *options],
        env=env, cwd=empty, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        ready_file = empty / "ready.json"
        wait_until(lambda: ready_file.exists() or up.poll() is not None, seconds=60, what="ready")
        assert up.poll() is None, up.stdout.read() if up.stdout else ""
        ready = json.loads(ready_file.read_text())
        with httpx.Client(
            base_url=ready["sites"][0]["gateway"], headers={"authorization": f"Bearer {ready['token']}"}, timeout=180
        ) as http:
            assert http.put("/v1/buckets/wheel").status_code == 201
            assert http.put("/v1/objects/wheel/key", content=b"body").status_code == 200
            assert http.get("/v1/objects/wheel/key").content == b"body"
    finally:
        up.send_signal(signal.SIGTERM)
        output, _ = up.communicate(timeout=180)
    assert up.returncode == 0, output
    assert f"export TIERSTORE_TOKEN={ready['token']}" in output and "tierstore mb ts://photos" in output
