"""Who this object server is in the cluster: its id, its life, its ticket keys, and the catalog's time.

Owns what routes and jobs need to judge a ticket and to sign a receipt. Changed only by the agent, from answers of
metadata or from what it kept on disk. Invariant: `keys` are never empty once `is_known`; receipts are signed with the
newest key; `incarnation` is that of this process and never changes.
"""

from __future__ import annotations

from collections.abc import Iterable

from tierstore.clock import Clock
from tierstore.errors import UnavailableError
from tierstore.names import ChunkId, DeviceId, ServerId
from tierstore.ticket import Receipt, sign_receipt
from tierstore.wire.cluster import TicketKey


class Standing:
    """The server's identity, and the clock corrected to the catalog's time. Event loop only."""

    def __init__(self, clock: Clock, *, incarnation: int) -> None:
        self._clock = clock
        self.incarnation = incarnation
        self.server = ServerId(0)
        self.keys: dict[int, bytes] = {}
        self.cluster_id = ""
        #: The highest commit sequence the catalog showed in this life.
        self.sequence = 0
        self._signing_key_id = 0
        self._offset_ms = 0

    @property
    def is_known(self) -> bool:
        """Registered once, in this life or an earlier one: tickets can be judged."""
        return self.server > 0 and bool(self.keys)

    def set_keys(self, keys: Iterable[TicketKey]) -> None:
        """Replace the ticket keys, oldest first (two are valid while they rotate)."""
        self.keys = {key.id: key.key for key in keys}
        self._signing_key_id = next(reversed(self.keys), 0)

    def ticket_keys(self) -> list[TicketKey]:
        """The same, to be kept on disk."""
        return [TicketKey(id, key) for id, key in self.keys.items()]

    def set_catalog_time(self, now_ms: int) -> None:
        """Follow the catalog's time: expiries and leases are in it. An answer's way back makes this late by a few
        milliseconds, which only shortens what was granted."""
        self._offset_ms = now_ms - self._clock.now_ms()

    def now_ms(self) -> int:
        """Catalog time, ms since 1970, as well as it is known here."""
        return self._clock.now_ms() + self._offset_ms

    def now_seconds(self) -> float:
        return (self._clock.now_ms() + self._offset_ms) / 1000

    def sign(
        self, *, device: DeviceId, chunk: ChunkId, segment: int, offset: int, chunk_bytes: int, crc32c: int
    ) -> bytes:
        """A receipt: this chunk is durable there. Raises UnavailableError before the first registration."""
        if not self.is_known:
            raise UnavailableError("this object server has not joined a cluster yet", code="not-registered")
        receipt = Receipt(self.server, device, chunk, segment, offset, chunk_bytes, crc32c, self.incarnation)
        return sign_receipt(receipt, key_id=self._signing_key_id, key=self.keys[self._signing_key_id])
