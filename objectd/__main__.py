"""`python -m objectd --config FILE [--fd N]`: one object server in this process.

Owns the process: settings, logs, signals (through serving), exit code.
"""

from __future__ import annotations

import random
import secrets
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from objectd.app import ObjectServer, executor_runner, open_disks, open_state
from objectd.config import ObjectdConfig
from tierstore.clock import SystemClock
from tierstore.serving.daemon import settle, start
from tierstore.serving.lazy import LazyApplication
from tierstore.serving.limits import limits_of
from tierstore.serving.run import Serving, serve
from tierstore.serving.turn import wait_for_turn
from tierstore.telemetry.log import get_logger
from tierstore.transport.pool import PooledTransport, PoolLimits

log = get_logger("objectd")


def main() -> None:
    """Serve until SIGTERM or SIGINT. Exit code of the error when the start fails."""
    start(ObjectdConfig, "objectd", "A tierstore object server: stores and serves chunks.", run)


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
        if urlsplit(advertise).port == serving.port:
            server.lend(advertise)      # under another port somebody stands in between on purpose
        settle()
        log.info("serving", url=advertise, devices=len(server.slots), incarnation=state.incarnation)

    async def on_stop() -> None:
        for begun in started:
            await begun.stop()

    transport = PooledTransport(PoolLimits(connections_per_peer=config.limits.peer_connections_max))
    server = ObjectServer(
        config, clock=clock, transport=transport, open_devices=open_disks, state=state,
        state_file=state_file, run_blocking=executor_runner(executor), rng=random.Random(secrets.randbits(64)),
        advertise=config.listen.url,
    )  # fmt: skip
    serve(
        LazyApplication(lambda: server.app), server.routes, host=config.listen.host, port=config.listen.port,
        fd=config.listen.fd if config.listen.fd >= 0 else None, limits=limits_of(config.limits, config.timers),
        drain=server.drain, on_start=on_start, on_stop=on_stop,
    )  # fmt: skip
    executor.shutdown(wait=False, cancel_futures=True)


if __name__ == "__main__":
    main()
