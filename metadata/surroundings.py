"""What a metadata process gets from outside, and the time that it goes by."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from metadata.services.cluster.membership import Cluster
from tierstore.clock import Clock
from tierstore.transport.peer import PeerTransport

RandomBytes = Callable[[int], bytes]


class CatalogClock:
    """Catalog time for everything that judges ages and deadlines: this machine's clock plus the measured difference to
    the database's, as the cluster keeps it."""

    def __init__(self, clock: Clock, cluster_of: Callable[[], Cluster | None]) -> None:
        self._clock = clock
        self._cluster_of = cluster_of

    def now_ms(self) -> int:
        known = self._cluster_of()
        return known.now_ms() if known is not None else self._clock.now_ms()

    def monotonic(self) -> float:
        return self._clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a metadata process gets from outside (the simulation passes its own)."""

    clock: Clock
    rng: random.Random
    random_bytes: RandomBytes
    advertise: str
    instance: str            # names this process in leases; unique per start
    transport: PeerTransport
