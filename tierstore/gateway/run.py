"""One gateway in this process: joins, serves, leaves. Owns its order; the command line is __main__'s."""

from __future__ import annotations

import random

from tierstore.clock import SystemClock
from tierstore.gateway.app import Gateway
from tierstore.gateway.config import GatewayConfig
from tierstore.serving.daemon import settle
from tierstore.serving.limits import limits_of
from tierstore.serving.run import Serving, serve
from tierstore.transport.handovers import Handovers
from tierstore.transport.loans import Borrower
from tierstore.transport.pool import PooledTransport, PoolLimits
from tierstore.transport.tls import client_context


def run(config: GatewayConfig) -> None:
    """Join, serve, leave. Blocks."""
    transport = PooledTransport(
        PoolLimits(connections_per_peer=config.limits.peer_connections_max), tls=client_context(config.tls.ca_file)
    )
    gateway = Gateway(
        config, clock=SystemClock(), transport=transport, rng=random.Random(), borrower=Borrower(),
        handovers=Handovers(),
    )  # fmt: skip
    scheme = "https" if config.tls.certificate else "http"

    async def on_start(serving: Serving) -> None:
        await gateway.start(config.listen.advertise.rstrip("/") or f"{scheme}://{config.listen.host}:{serving.port}")
        settle()

    listen = config.listen
    edge = limits_of(
        config.limits, config.timers, connections_per_address=config.limits.connections_per_address_max
    )
    serve(
        gateway.app, gateway.routes, host=listen.host, port=listen.port, fd=listen.fd if listen.fd >= 0 else None,
        limits=edge, drain=gateway.drain, on_start=on_start, on_stop=gateway.stop,
        tls_certificate=config.tls.certificate or None, tls_key=config.tls.key or None,
    )  # fmt: skip
