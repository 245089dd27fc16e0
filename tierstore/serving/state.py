"""What all connections of one serving process share: limits, routes, the second's Date line, and the sweep.

Owns the registry of connections by address and one timer that runs once a second while there are connections. Every
deadline towards a client is a count of these ticks, so a request pays an attribute store instead of a timer.
Invariant: each live connection is in exactly one address's row, in the order in which it came.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from email.utils import formatdate
from typing import Final, Protocol

from tierstore.serving.known_heads import KnownHeads
from tierstore.serving.limits import Limits
from tierstore.serving.table import RouteTable

SWEEP_SECONDS: Final = 1.0
#: Body bytes are received into one buffer per process: a piece is consumed before the next read.
RECEIVE_BYTES: Final = 256 * 1024
#: How many of an address's oldest connections are looked at to make room for a new one.
EVICTION_SCAN: Final = 128


class Connection(Protocol):
    """What the registry needs of a connection."""

    since: int

    def sweep(self, tick: int) -> None: ...

    def is_idle(self) -> bool: ...

    def close_idle(self) -> None: ...


class ServingState:
    """Shared by the connections of one listening process (one event loop)."""

    def __init__(self, table: RouteTable, limits: Limits) -> None:
        self.table = table
        self.limits = limits
        self.heads = KnownHeads()
        self.tick = 0
        self.is_draining = False            # answers carry connection: close
        self.request_prefix = secrets.token_hex(4).encode("ascii") + b"-"
        self.request_number = 0
        self.date_line = b""
        self.receive_view = memoryview(bytearray(RECEIVE_BYTES))
        self.by_address: dict[str, dict[Connection, None]] = {}
        self.connection_count = 0
        self.refused_total = 0              # connections turned away or evicted for room
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- registry ---------------------------------------------------------------------------------------------
    def admit(self, connection: Connection, address: str, loop: asyncio.AbstractEventLoop) -> bool:
        """Note a new connection. False: there is no room, not even by closing an idle one."""
        row = self.by_address.get(address)
        limits = self.limits
        if row is not None and len(row) >= limits.connections_per_address and not self._evict(row):
            self.refused_total += 1
            return False
        if self.connection_count >= limits.connections_max:
            largest = max(self.by_address.values(), key=len)
            if not self._evict(largest):
                self.refused_total += 1
                return False
        self.by_address.setdefault(address, {})[connection] = None
        self.connection_count += 1
        if self._timer is None:
            self._loop = loop
            self._refresh_date()
            self._timer = loop.call_later(SWEEP_SECONDS, self._sweep)
        return True

    def forget(self, connection: Connection, address: str) -> None:
        row = self.by_address.get(address)
        if row is not None and connection in row:
            del row[connection]
            self.connection_count -= 1
            if not row:
                del self.by_address[address]

    def _evict(self, row: dict[Connection, None]) -> bool:
        """Close the longest idle of the oldest few connections: somebody waiting now outranks a kept-alive one."""
        best: Connection | None = None
        for seen, connection in enumerate(row):
            if seen >= EVICTION_SCAN:
                break
            if connection.is_idle() and (best is None or connection.since < best.since):
                best = connection
        if best is None:
            return False
        self.refused_total += 1
        best.close_idle()
        return True

    # -- time -------------------------------------------------------------------------------------------------
    def _refresh_date(self) -> None:
        # the Date header is wall time for people; nothing is ordered or expired by it
        self.date_line = b"date: " + formatdate(time.time(), usegmt=True).encode("ascii") + b"\r\n"

    def _sweep(self) -> None:
        self._timer = None
        self.tick += 1
        self._refresh_date()
        for row in list(self.by_address.values()):
            for connection in list(row):
                connection.sweep(self.tick)
        if self.connection_count and self._loop is not None:
            self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
