"""Stopping without breaking a request: what a process tells its clients before and while it goes.

Order: announce (readiness false, still accepting: whoever routes by readiness goes elsewhere) -> stop (no more
accepts; the listening socket belongs to the supervisor and stays open for the successor) -> each connection's next
answer says `connection: close` -> idle ones are closed after a moment (at once where nobody comes after) -> what still
runs is bounded by drain_seconds.
Invariant: a request whose bytes have arrived is answered, unless it outlives drain_seconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from tierstore.serving.state import ServingState

_POLL_SECONDS: Final = 0.02
_log = logging.getLogger(__name__)


class Drain:
    """The standing of one process: serving, announced, stopping. Asked by /-/readyz and by heartbeats."""

    def __init__(self) -> None:
        self.is_announced = False
        self.is_stopping = False
        #: Nobody serves here after us: who is connected and asks nothing need not be left time to notice.
        self.is_final = False
        self._listeners: list[Callable[[], None]] = []

    def announce(self) -> None:
        """Readiness turns false; everything is still served. Safe to repeat."""
        if not self.is_announced:
            self.is_announced = True
            for listener in self._listeners:
                listener()

    def withdraw(self) -> None:
        """The restart is off: ready again. No effect once stopping."""
        if not self.is_stopping:
            self.is_announced = False

    def on_announce(self, listener: Callable[[], None]) -> None:
        """Call when a restart is announced (a daemon tells metadata with its next heartbeat)."""
        self._listeners.append(listener)


class Drainable(Protocol):
    """What the drain needs of a connection."""

    def shutdown(self) -> None: ...

    def drop(self) -> None: ...


async def drain_connections(
    state: ServingState, connections: set[Drainable], tasks: set[asyncio.Task[None]], *, is_forced: Callable[[], bool],
    is_final: bool = False,
) -> None:  # fmt: skip
    """Let what runs finish and close what is idle: after limits.drain_idle_seconds, or at once when nobody comes after
    (is_final). Nothing is accepted any more. Bounded by limits.drain_seconds."""
    loop = asyncio.get_running_loop()
    limits = state.limits
    state.is_draining = True
    begun_at = loop.time()
    idle_until = begun_at + (0.0 if is_final else limits.drain_idle_seconds)
    until = begun_at + limits.drain_seconds
    while connections or tasks:
        now = loop.time()
        if now >= until or is_forced():
            break
        if now >= idle_until:
            for connection in list(connections):
                connection.shutdown()
        await asyncio.sleep(_POLL_SECONDS)
    if connections or tasks:
        _log.warning("drain ends with %d connections and %d tasks still busy", len(connections), len(tasks))
    running = list(tasks)
    for task in running:
        task.cancel()
    for connection in list(connections):
        connection.drop()
    if running:
        await asyncio.wait(running, timeout=limits.drain_idle_seconds + 1)
