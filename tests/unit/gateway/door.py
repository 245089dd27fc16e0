"""A gateway over the in-process cluster, and a way to send it requests as a client would."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from tests.unit.sdk.fake_cluster import METADATA_URL, TOKEN, FakeCluster
from tierstore.clock import SystemClock
from tierstore.config.sections import Membership
from tierstore.gateway.app import Gateway
from tierstore.gateway.config import GatewayConfig
from tierstore.serving.inprocess import InProcessServer

GATEWAY_URL = "http://gateway:1"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The problem's code."""
        assert self.headers["content-type"] == "application/problem+json", self
        return str(self.json["code"])

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Door:
    """Requests go through the ASGI adapter to the same handlers that the protocol class drives."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        config = GatewayConfig(membership=Membership(metadata=(METADATA_URL,)))
        self.gateway = Gateway(
            config, clock=SystemClock(), transport=cluster.network.transport("gateway"), rng=random.Random(2),
            membership_kept=False,
        )  # fmt: skip
        self.server = InProcessServer(self.gateway.routes, self.gateway.app)

    async def send(
        self, method: str, target: str | bytes, body: bytes | Iterable[bytes] | None = None, *,
        token: str | None = TOKEN, headers: Iterable[tuple[str, str | bytes]] = (),
    ) -> Answer:  # fmt: skip
        """body: bytes have a Content-Length, an iterable comes chunked."""
        lines = [(b"host", b"gateway:1")]
        if token is not None:
            lines.append((b"authorization", b"Bearer " + token.encode()))
        lines += [(n.encode(), v if isinstance(v, bytes) else v.encode()) for n, v in headers]
        length: int | None = None
        if isinstance(body, bytes):
            length = len(body)
        elif body is not None:
            lines.append((b"transfer-encoding", b"chunked"))
        raw = target.encode() if isinstance(target, str) else target
        call = self.server.begin(method.encode(), raw, lines, length=length, peer="127.0.0.1")
        for piece in [body] if isinstance(body, bytes) else body or ():
            await call.writable()
            if call.has_answer:
                break
            call.feed(piece)
        call.end()
        status, got = await call.head()
        out = bytearray()
        while piece := await call.read():
            out += piece
        return Answer(status, {n.decode(): v.decode("latin-1") for n, v in got}, bytes(out))

    async def cut(self, target: str, body: bytes, *, length: int) -> None:
        """A PUT whose client goes away after `body`, before the `length` bytes it announced."""
        lines = [(b"host", b"gateway:1"), (b"authorization", b"Bearer " + TOKEN.encode())]
        call = self.server.begin(b"PUT", target.encode(), lines, length=length, peer="127.0.0.1")
        if body:
            call.feed(body)
        await asyncio.sleep(0)
        call.disconnect()
        with contextlib.suppress(ConnectionError):
            await call.head()


def run(work: Callable[[Door], Awaitable[None]], *, chunk_bytes: int = 1 << 20, seconds: float = 240) -> None:
    """Build cluster and gateway, run a test, take all down."""

    async def main() -> None:
        cluster = FakeCluster(chunk_bytes=chunk_bytes)
        door = Door(cluster)
        async with asyncio.timeout(seconds):
            await door.gateway.start(GATEWAY_URL)
            try:
                await work(door)
            finally:
                await door.gateway.stop()
                await door.server.close()
                await cluster.close()

    asyncio.run(main())
