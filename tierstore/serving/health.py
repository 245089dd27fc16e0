"""The two health pages as hot routes: the supervisor and load balancers ask for them all the time, and a process that
answers them needs no framework for it. serving.pages declares the same in FastAPI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from tierstore.serving.exchange import Exchange
from tierstore.serving.table import Route

_JSON: Final = b"content-type: application/json\r\n"


def health_routes(reasons_not_ready: Callable[[], list[str]]) -> list[Route]:
    """healthz: the process answers at all. readyz: it takes work now, else 503 with the reasons, texts for people."""

    def healthz(exchange: Exchange) -> None:
        exchange.reply(200, b'{"status":"ok"}', _JSON)

    def readyz(exchange: Exchange) -> None:
        reasons = reasons_not_ready()
        if reasons:
            exchange.reply(503, msgspec.json.encode({"status": "not-ready", "reasons": reasons}), _JSON)
        else:
            exchange.reply(200, b'{"status":"ready"}', _JSON)

    return [Route(b"GET", b"/-/healthz", healthz), Route(b"GET", b"/-/readyz", readyz)]
