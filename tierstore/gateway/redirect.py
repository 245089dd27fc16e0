"""307 to a gateway of the site whose networks hold the client's address, when it is asked for.

Native requests ask by the header `x-tierstore-near: redirect`; S3 requests get it when `[s3] redirect_near` is on (off
by default: a signature covers the host, so only clients that sign again can follow). Latency decides nothing here:
what is near to this gateway need not be near to the client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tierstore.gateway.sites import route_of
from tierstore.serving.exchange import Exchange
from tierstore.wire.sites import Peers

NEAR_HEADER: Final = b"x-tierstore-near"
REDIRECT: Final = b"redirect"
Handler = Callable[[Exchange], None]


class Redirects:
    """One per gateway process. peers: what metadata said last."""

    def __init__(self, peers: Callable[[], Peers]) -> None:
        self._peers = peers
        self.sent = 0

    def location(self, exchange: Exchange) -> str:
        """Where this client should ask instead; "" when it is at the right place, or nothing says so."""
        peers = self._peers()
        route = route_of(exchange.peer, [], peers)
        if not route.is_by_network or route.site == peers.site or not route.gateways:
            return ""
        return route.gateways[0] + exchange.target.decode("latin-1")

    def native(self, handler: Handler) -> Handler:
        """The handler, behind the answer 307 for those who ask for it."""

        def handle(exchange: Exchange) -> None:
            if exchange.header(NEAR_HEADER) == REDIRECT and (location := self.location(exchange)):
                self.sent += 1
                exchange.reply(307, b"", location_line(location))
            else:
                handler(exchange)

        return handle


def location_line(location: str) -> bytes:
    return b"location: %b\r\n" % location.encode("latin-1")
