"""Bodies for other sites give way to clients, and clients are sent to their site."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from metadata.catalog.sites import SiteRow
from metadata.services.sites.bodies import BUSY_PER_SECOND, YIELD_SECONDS_MAX, BodySender
from metadata.services.sites.target import Target
from tests.kit import virtual_time
from tierstore.clock import LoopClock
from tierstore.errors import ConfigError
from tierstore.gateway.redirect import Redirects
from tierstore.transport.tls import client_context
from tierstore.wire.sites import Peer, Peers

PARCEL_SECONDS = 1.0
SECONDS = 60.0


def _deliveries(share: float, per_second: float) -> int:
    """Parcels that one stream brings in SECONDS while clients ask so often."""

    async def main() -> int:
        clock = LoopClock()
        row = SiteRow(2, "b", [], [], {"share": share})
        parts: Any = SimpleNamespace(
            clock=clock, heats_of=lambda chunks: [0.0] * len(chunks), known=SimpleNamespace(get=lambda _: row),
            database=None, epoch=lambda: 1, lost_devices=tuple, foreground=lambda: int(clock.monotonic() * per_second),
        )  # fmt: skip
        sender = BodySender(Target(parts, "b"))
        count = 0

        async def bring(rows: list[Any]) -> None:
            nonlocal count
            count += 1
            await clock.sleep(PARCEL_SECONDS)

        sender._bring = bring  # type: ignore[method-assign]
        async with asyncio.timeout(SECONDS * 2):
            while clock.monotonic() < SECONDS:
                await sender._deliver([])
        return count

    return virtual_time.run(1, lambda _: main(), simulation=True)


def test_bodies_leave_busy_clients_their_share() -> None:
    """A backlog must not take the whole machine from those who read and write here."""
    alone = _deliveries(0.25, 0)
    busy = _deliveries(0.25, BUSY_PER_SECOND * 10)
    assert alone >= SECONDS / PARCEL_SECONDS - 1
    assert busy * PARCEL_SECONDS <= SECONDS * 0.25 + YIELD_SECONDS_MAX
    assert _deliveries(1.0, BUSY_PER_SECOND * 10) == alone


def test_a_client_that_asks_is_sent_to_its_networks_site() -> None:
    """And nobody else: a redirect that was not asked for breaks signatures."""
    peers = Peers("a", [Peer("b", 2, ["http://b:7480"], "", ["10.0.0.0/8"])], ["192.168.0.0/16"])
    answered: list[tuple[int, bytes]] = []

    def ask(address: str, asks: bytes | None) -> None:
        exchange: Any = SimpleNamespace(
            peer=address, target=b"/v1/objects/bbb/k?version=1",
            header=lambda name: asks if name == b"x-tierstore-near" else None,
            reply=lambda status, body, lines: answered.append((status, lines)),
        )  # fmt: skip
        Redirects(lambda: peers).native(lambda _: answered.append((200, b"")))(exchange)

    ask("10.1.2.3", b"redirect")
    ask("10.1.2.3", None)
    ask("192.168.1.1", b"redirect")
    ask("172.16.0.1", b"redirect")
    assert answered == [(307, b"location: http://b:7480/v1/objects/bbb/k?version=1\r\n")] + [(200, b"")] * 3


def test_a_ca_file_that_is_none_is_named(tmp_path: Any) -> None:
    """A typing error in a path must not end as "unreachable"."""
    (tmp_path / "ca.pem").write_text("no certificate")
    for name in ("ca.pem", "missing.pem"):
        with pytest.raises(ConfigError, match=name):
            client_context(str(tmp_path / name))
    assert client_context("") is None
