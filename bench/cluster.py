"""A cluster of `tierstore up` for a bench: three object servers, two copies, a bucket; in a directory of its own."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench.processes import pinned
from tests.kit.cluster import Cluster
from tests.kit.ports import free_port_base

BUCKET = "bench"


@dataclass(frozen=True)
class Running:
    """up: the process that all others descend from."""

    cluster: Cluster
    up: int
    ready_seconds: float

    @property
    def gateway_port(self) -> int:
        port = urlsplit(self.cluster.gateway).port
        assert port is not None
        return port

    @property
    def metadata_port(self) -> int:
        port = urlsplit(self.cluster.processes("metadata")[0].url).port
        assert port is not None
        return port

    @property
    def authorization(self) -> str:
        return f"Bearer {self.cluster.token}"

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """One request at the gateway; raises for an error answer."""
        request = urllib.request.Request(
            self.cluster.gateway + path, data=body, method=method, headers={"Authorization": self.authorization}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())


@contextmanager
def running(
    directory: Path, *, servers: int = 3, cpu: int | None = None, env: dict[str, str] | None = None,
    flags: tuple[str, ...] = (),
) -> Iterator[Running]:  # fmt: skip
    """Start, make the bucket, and stop at the end."""
    cluster = Cluster(directory, ["--servers", str(servers), *flags], env or {}, free_port_base())
    began = time.monotonic()
    with pinned(cpu):
        cluster.start()
    took = time.monotonic() - began
    try:
        assert cluster.up is not None
        made = Running(cluster, cluster.up.pid, took)
        made.request("PUT", f"/v1/buckets/{BUCKET}")
        yield made
    finally:
        cluster.stop()
