"""The commands that the README and the how-to pages show are run as they stand, top to bottom, by a new user."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.cluster import Cluster, cluster

ROOT = Path(__file__).parents[2]
_SECONDS = 300
_BLOCK = re.compile(r"^( *)```(sh|python|toml)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("walk")) as started:
        yield started


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory like a checkout's, and a home with pictures."""
    pictures = tmp_path / "Pictures"
    pictures.mkdir()
    for name, size in (("cat.jpg", 300_000), ("dog.jpg", 5_000)):
        (pictures / name).write_bytes(os.urandom(size))
    (tmp_path / "cat.jpg").write_bytes((pictures / "cat.jpg").read_bytes())
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def blocks(page: str, first: str = "", last: str = "") -> list[tuple[str, str]]:
    """(language, text) of the code blocks of a page, from heading `first` up to heading `last`."""
    text = (ROOT / page).read_text()
    start = text.index(first) if first else 0
    end = text.index(last, start) if last else len(text)
    found = [(m[2], re.sub(rf"^{m[1]}", "", m[3], flags=re.MULTILINE)) for m in _BLOCK.finditer(text[start:end])]
    assert found, f"{page} has no commands there"
    return found


def walk(parts: list[tuple[str, str]], c: Cluster, home: Path, **extra: str) -> str:
    """Run the blocks in one shell that stops at the first error; what it printed. TOML blocks become wanted.toml."""
    lines = ["set -e"]
    for number, (language, text) in enumerate(parts):
        if language == "toml":
            (home / "wanted.toml").write_text(text)
        elif language == "python":
            (home / f"block{number}.py").write_text(text)
            lines.append(f"{sys.executable} block{number}.py")
        else:
            lines.append(text)
    environment = {
        "HOME": str(home), "PATH": f"{sys.prefix}/bin:{sys.prefix}/clients/bin:{os.environ['PATH']}",
        "TIERSTORE_ENDPOINT": c.gateway, "TIERSTORE_TOKEN": c.token, "AWS_EC2_METADATA_DISABLED": "true", **extra,
    }
    done = subprocess.run(
        ["bash", "-x", "-c", "\n".join(lines)], cwd=home, env=environment, capture_output=True, text=True,
        timeout=_SECONDS,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_the_readme(running: Cluster, home: Path) -> None:
    keys = {
        "AWS_ACCESS_KEY_ID": running.ready["access_key"], "AWS_SECRET_ACCESS_KEY": running.ready["secret_key"],
        "AWS_ENDPOINT_URL": running.gateway, "AWS_DEFAULT_REGION": "us-east-1",
    }
    printed = walk(blocks("README.md", "## Use it", "## Mount it"), running, home, **keys)
    assert "2026/cat.jpg" in printed and "hello" in printed
    assert (home / "cat.jpg").read_bytes() == (home / "Pictures/cat.jpg").read_bytes()


def test_the_quickstart(running: Cluster, home: Path) -> None:
    walk([("sh", "tierstore rb --force ts://photos || true"), *blocks("docs/quickstart/README.md")], running, home)


def test_tuning_of_tiers(running: Cluster, home: Path) -> None:
    prepare = "tierstore mb ts://photos || true\ntierstore cp cat.jpg ts://photos/cat.jpg"
    page = "docs/howto/tune-tiering.md"
    printed = walk([("sh", prepare), *blocks(page)], running, home)
    assert "ssd" in printed and (home / "heat.parquet").exists() and (home / "curve.svg").exists()


def test_stock_s3_clients(running: Cluster, home: Path) -> None:
    printed = walk(blocks("docs/howto/s3.md"), running, home)
    assert "cat.jpg" in printed and "300000" in printed
