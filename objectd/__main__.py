"""`python -m objectd --config FILE [--fd N]`: one object server in this process.

Owns the process: settings, logs, signals (through serving), exit code.
"""

from __future__ import annotations

import gc
import random
import secrets
import sys
from concurrent.futures import ThreadPoolExecutor

from objectd.app import ObjectServer, executor_runner, open_disks, open_state
from objectd.config import ObjectdConfig
from tierstore.clock import SystemClock
from tierstore.config.arguments import parse
from tierstore.errors import TierstoreError
from tierstore.serving.limits import Limits
from tierstore.serving.run import Serving, serve
from tierstore.serving.turn import wait_for_turn
from tierstore.telemetry.log import configure, get_logger
from tierstore.transport.pool import PooledTransport

log = get_logger("objectd")


def main() -> None:
    """Serve until SIGTERM or SIGINT. Exit code of the error when the start fails."""
    config = parse(ObjectdConfig, "objectd", "A tierstore object server: stores and serves chunks.")
    configure(level=config.log.level, form=config.log.format, role="objectd")
    try:
        run(config)
    except TierstoreError as error:
        sys.stderr.write(f"objectd: {error.detail or error.code}\n")
        raise SystemExit(error.exit_code) from None


def run(config: ObjectdConfig) -> None:
    """Open, serve, close. Blocks."""
    wait_for_turn()
    clock = SystemClock()
    identity = random.SystemRandom()
    state, state_file = open_state(config, identity)
    executor = ThreadPoolExecutor(config.limits.executor_threads_max, thread_name_prefix="objectd")
    started: list[ObjectServer] = []

    async def on_start(serving: Serving) -> None:
        advertise = config.listen.advertise.rstrip("/") or f"http://{config.listen.host}:{serving.port}"
        server.advertise(advertise)
        await server.start()
        started.append(server)
        # what was built at start lives as long as the process: full collections need not look at it (15 ms each)
        gc.collect()
        gc.freeze()
        log.info("serving", url=advertise, devices=len(server.slots), incarnation=state.incarnation)

    async def on_stop() -> None:
        for begun in started:
            await begun.stop()

    server = ObjectServer(
        config, clock=clock, transport=PooledTransport(), open_devices=open_disks, state=state,
        state_file=state_file, run_blocking=executor_runner(executor), rng=random.Random(secrets.randbits(64)),
        advertise=config.listen.url,
    )  # fmt: skip
    serve(
        server.app, server.routes, host=config.listen.host, port=config.listen.port,
        fd=config.listen.fd if config.listen.fd >= 0 else None, limits=limits_of(config), drain=server.drain,
        on_start=on_start, on_stop=on_stop,
    )  # fmt: skip
    executor.shutdown(wait=False, cancel_futures=True)


def limits_of(config: ObjectdConfig) -> Limits:
    """The bounds of the HTTP edge from the shared settings."""
    return Limits(
        header_bytes_max=config.limits.header_bytes_max,
        header_seconds=int(config.timers.header),
        idle_seconds=int(config.timers.idle),
        body_seconds=int(config.timers.body_stall),
        connections_max=config.limits.connections_max,
        # peers are few and trusted with many connections: gateways pool up to peer_connections_max each
        connections_per_address=config.limits.connections_max,
        drain_seconds=int(config.timers.drain),
    )


if __name__ == "__main__":
    main()
