"""`python -m tierstore.gateway --config FILE [--fd N]`: one gateway in this process.

Owns the process: settings, logs, signals (through serving), exit code.
"""

from __future__ import annotations

import random
import sys

from tierstore.clock import SystemClock
from tierstore.config.arguments import parse
from tierstore.errors import TierstoreError
from tierstore.gateway.app import Gateway
from tierstore.gateway.config import GatewayConfig
from tierstore.serving.limits import Limits
from tierstore.serving.run import Serving, serve
from tierstore.telemetry.log import configure
from tierstore.transport.pool import PooledTransport
from tierstore.transport.tls import client_context


def main() -> None:
    """Serve until SIGTERM or SIGINT. Exit code of the error when the start fails."""
    config = parse(GatewayConfig, "gateway", "A tierstore gateway: the door for clients.")
    configure(level=config.log.level, form=config.log.format, role="gateway")
    try:
        run(config)
    except TierstoreError as error:
        sys.stderr.write(f"gateway: {error.detail or error.code}\n")
        raise SystemExit(error.exit_code) from None


def run(config: GatewayConfig) -> None:
    """Join, serve, leave. Blocks."""
    transport = PooledTransport(tls=client_context(config.tls.ca_file))
    gateway = Gateway(config, clock=SystemClock(), transport=transport, rng=random.Random())
    scheme = "https" if config.tls.certificate else "http"

    async def on_start(serving: Serving) -> None:
        await gateway.start(config.listen.advertise.rstrip("/") or f"{scheme}://{config.listen.host}:{serving.port}")

    listen = config.listen
    serve(
        gateway.app, gateway.routes, host=listen.host, port=listen.port, fd=listen.fd if listen.fd >= 0 else None,
        limits=limits_of(config), drain=gateway.drain, on_start=on_start, on_stop=gateway.stop,
        tls_certificate=config.tls.certificate or None, tls_key=config.tls.key or None,
    )  # fmt: skip


def limits_of(config: GatewayConfig) -> Limits:
    """The bounds of the HTTP edge from the shared settings."""
    return Limits(
        header_bytes_max=config.limits.header_bytes_max,
        header_seconds=int(config.timers.header),
        idle_seconds=int(config.timers.idle),
        body_seconds=int(config.timers.body_stall),
        connections_max=config.limits.connections_max,
        connections_per_address=config.limits.connections_per_address_max,
        drain_seconds=int(config.timers.drain),
    )


if __name__ == "__main__":
    main()
