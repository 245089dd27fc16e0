"""A client behind a firewall that lets one port through: SDK and command line work through the gateway's REST."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.cluster import Cluster, cluster
from tierstore.errors import ConfigError, NotFound, PreconditionFailed, RangeNotSatisfiable, UnavailableError
from tierstore.sdk import SyncStore
from tierstore.sdk.connect import connect
from tierstore.sdk.through import GatewayStore
from tierstore.transport.pool import PooledTransport
from tierstore.wire.names import Condition

#: What the firewall does, in the process of the command line.
_WALL = """
import sys
from tierstore.errors import UnavailableError
from tierstore.transport.pool import PooledTransport
for name in ("call", "open", "upload"):
    def walled(self, url, *args, _real=getattr(PooledTransport, name), **kw):
        if url != {gateway!r}:
            raise UnavailableError("refused", code="unreachable")
        return _real(self, url, *args, **kw)
    setattr(PooledTransport, name, walled)
from tierstore.cli.main import run
run()
"""


class Walled(PooledTransport):
    """Only one address can be reached."""

    gateway = ""

    def _check(self, url: str) -> None:
        if url != self.gateway:
            raise UnavailableError(f"{url}: connection refused", code="unreachable")

    async def call(self, url: str, *args: Any, **how: Any) -> Any:
        self._check(url)
        return await super().call(url, *args, **how)

    async def open(self, url: str, *args: Any, **how: Any) -> Any:
        self._check(url)
        return await super().open(url, *args, **how)

    async def upload(self, url: str, *args: Any, **how: Any) -> Any:
        self._check(url)
        return await super().upload(url, *args, **how)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("wall")) as started:
        with SyncStore(started.gateway, started.token) as store:
            store.create_bucket("wall")
            assert not isinstance(store.store, GatewayStore), "whoever can goes straight to the object servers"
        yield started


def test_every_call_of_the_sdk_works_through_the_gateway_alone(running: Cluster) -> None:
    """Bodies of every size there and back, ranges, conditions, meta, listing, rename, copy, delete."""

    async def main() -> None:
        transport = Walled()
        transport.gateway = running.gateway
        store = await connect(running.gateway, running.token, transport=transport)
        assert isinstance(store, GatewayStore)
        rng = random.Random(5)
        for size in (0, 1, 70_000, 9_000_000):
            key, body = f"dir/ä {size}", rng.randbytes(size)
            made = await store.put("wall", key, body, content_type="text/plain", user_meta={"a": "b"})
            info = await store.head("wall", key)
            assert (info.size, info.etag, info.version) == (size, made.etag, made.version)
            assert (info.content_type, info.user_meta) == ("text/plain", {"a": "b"}) and info.created_at_ms > 10**12
            async with await store.get("wall", key) as reader:
                assert await reader.read() == body
            if size > 1:
                async with await store.get("wall", key, first=size // 2, length=1000) as reader:
                    assert await reader.read() == body[size // 2 : size // 2 + 1000]

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(30):
                yield b"p" * 100_000

        assert (await store.put("wall", "streamed", pieces())).size == 3_000_000
        assert (await store.put("wall", "streamed", pieces(), size=3_000_000)).size == 3_000_000
        with pytest.raises(PreconditionFailed):
            await store.put("wall", "streamed", b"x", condition=Condition(if_none_match=["*"]))
        with pytest.raises(RangeNotSatisfiable):
            await store.get("wall", "streamed", first=3_000_001)
        with pytest.raises(NotFound):
            await store.head("wall", "nothing")
        await store.rename("wall", "streamed", "renamed")
        await store.copy("wall", "renamed", "wall", "copied")
        page = await store.list_page("wall", prefix="", delimiter="/")
        assert ([e.key for e in page.objects], page.prefixes) == (["copied", "renamed"], ["dir/"])
        assert (await store.delete("wall", "copied")).existed and not (await store.delete("wall", "copied")).existed
        assert [entry.size async for entry in store.list("wall", page=1)] == [0, 1, 70_000, 9_000_000, 3_000_000]
        with pytest.raises(ConfigError, match="only the gateway"):
            await store.find("wall", "renamed")
        await store.close()
        await transport.close()

    asyncio.run(main())


def test_the_command_line_copies_both_ways_through_the_gateway_alone(running: Cluster, tmp_path: Path) -> None:
    """An operator's laptop sees one port; `tierstore cp` must not need more."""
    environment = {**os.environ, "TIERSTORE_ENDPOINT": running.gateway, "TIERSTORE_TOKEN": running.token}

    def tierstore(*arguments: str, given: bytes = b"") -> bytes:
        done = subprocess.run(
            [sys.executable, "-c", _WALL.format(gateway=running.gateway), *arguments], input=given, timeout=180,
            capture_output=True, env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    body = random.Random(6).randbytes(2_000_000)
    (tmp_path / "f").write_bytes(body)
    tierstore("cp", str(tmp_path / "f"), "ts://wall/cli/f")
    tierstore("cp", "-", "ts://wall/cli/stdin", given=body[:1000])
    assert b"cli/stdin" in tierstore("ls", "ts://wall/cli/")
    tierstore("cp", "ts://wall/cli/f", str(tmp_path / "g"))
    assert (tmp_path / "g").read_bytes() == body
    assert tierstore("cat", "ts://wall/cli/stdin") == body[:1000]
    tierstore("rm", "-r", "ts://wall/cli/")
    assert b"cli/" not in tierstore("ls", "ts://wall/")
