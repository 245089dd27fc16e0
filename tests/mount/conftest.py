"""One cluster and one mount for all tests of this folder; each test gets a directory of its own in it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.kit.cluster import Cluster, cluster
from tests.kit.mount import Mounted, mounted, require_fuse


@pytest.fixture(scope="session")
def files_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require_fuse()
    with cluster(tmp_path_factory.mktemp("files")) as running:
        yield running


@pytest.fixture(scope="session")
def rest(files_cluster: Cluster) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {files_cluster.token}"}
    with httpx.Client(base_url=files_cluster.gateway, headers=headers, timeout=180) as client:
        assert client.put("/v1/buckets/files").status_code == 201
        yield client


@pytest.fixture(scope="session")
def mount(files_cluster: Cluster, rest: httpx.Client) -> Iterator[Mounted]:
    """Where every user can go: pytest's own directories are closed to others."""
    with tempfile.TemporaryDirectory(prefix="tierstore-mounts-") as root:
        Path(root).chmod(0o755)
        with mounted(files_cluster, "files", Path(root) / "one") as running:
            yield running


@pytest.fixture
def place(mount: Mounted, request: pytest.FixtureRequest) -> Path:
    """A fresh directory on the mount."""
    path = mount.path / request.node.name.translate(str.maketrans("[]/ ", "____"))[:100]
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def other(files_cluster: Cluster, mount: Mounted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A second mount of the same bucket."""
    with mounted(files_cluster, "files", tmp_path_factory.mktemp("other") / "mount") as running:
        yield running


@pytest.fixture
def there(place: Path, mount: Mounted, other: Mounted) -> Path:
    """The test's directory, by the other mount."""
    return other.path / place.relative_to(mount.path)
