"""What a reader and writer knows of the object servers: addresses, who failed a moment ago, how fast first bytes come.

Owns no connection. Judgements are local and short-lived: a server that failed is asked last for `suspect_seconds`;
metadata's liveness stays the authority. The first-byte estimate follows the 95th percentile by stochastic steps
(up by 0.95 of a step when a sample is above it, down by 0.05 when below), so it needs no history.
"""

from __future__ import annotations

import asyncio

from tierstore.clock import Clock
from tierstore.errors import UnavailableError
from tierstore.sdk.limits import StoreLimits
from tierstore.transport.metadata_client import MetadataClient
from tierstore.wire.cluster import ClusterMap


class ServerBook:
    """One per Store."""

    def __init__(self, client: MetadataClient, clock: Clock, limits: StoreLimits) -> None:
        self._client = client
        self._clock = clock
        self._limits = limits
        self._urls: dict[int, str] = {}
        self._not_up: frozenset[int] = frozenset()
        self._suspects: dict[int, float] = {}
        self._first_byte_seconds = limits.hedge_seconds_min
        #: What did not go the straight way, for metrics: copies that failed a read, servers that failed a chunk, first
        #: bytes for which a second replica was asked.
        self.read_failures_total = 0
        self.write_failures_total = 0
        self.extra_copies_failed_total = 0
        self.hedges_total = 0
        #: Reads by the tier that served the first byte.
        self.served: dict[str, int] = {}
        client.on_map_change.append(self._learn)
        if client.map is not None:
            self._learn(client.map)

    def _learn(self, fresh: ClusterMap) -> None:
        self._urls = {server.id: server.url for server in fresh.servers}
        self._not_up = frozenset(server.id for server in fresh.servers if server.state != "up")

    def known_url(self, server: int) -> str | None:
        """The address of an object server that stands in the map held."""
        return self._urls.get(server)

    async def url(self, server: int) -> str:
        """The address of an object server; fetches the map again for one that is not known. Raises UnavailableError."""
        found = self._urls.get(server)
        if found is None:
            # shared with others: a caller that is cancelled must not cancel the fetch
            await asyncio.shield(self._client.refresh_map())
            found = self._urls.get(server)
            if found is None:
                raise UnavailableError(f"server {server} is not in the cluster map", code="no-replica")
        return found

    def is_suspect(self, server: int) -> bool:
        """True for a server that failed here a moment ago, or is not up by the map."""
        if server in self._not_up:
            return True
        until = self._suspects.get(server)
        if until is None:
            return False
        if until > self._clock.monotonic():
            return True
        del self._suspects[server]
        return False

    @property
    def has_suspects(self) -> bool:
        return bool(self._suspects or self._not_up)

    def note_failure(self, server: int) -> None:
        self._suspects[server] = self._clock.monotonic() + self._limits.suspect_seconds

    def note_served(self, tier: str) -> None:
        self.served[tier] = self.served.get(tier, 0) + 1

    def note_hedge(self) -> None:
        self.hedges_total += 1

    def note_first_byte(self, seconds: float) -> None:
        estimate = self._first_byte_seconds
        step = estimate * 0.1
        self._first_byte_seconds = estimate + step * (0.95 if seconds > estimate else -0.05)

    @property
    def hedge_seconds(self) -> float:
        """How long a first byte may take before the next replica is asked too."""
        limits = self._limits
        return min(max(self._first_byte_seconds, limits.hedge_seconds_min), limits.hedge_seconds_max)
