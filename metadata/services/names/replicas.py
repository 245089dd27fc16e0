"""Which copy to read first: the order of a chunk's replicas for a client, with a read ticket for each.

Order: server up before suspect, fast tier first (but no fast device that is slower than a slow one), lightly loaded
first; dead servers come last but are offered, because liveness is only what we know. Among equals, cache copies
take turns by chance, so that a hot chunk's reads spread over them; home copies keep an order of their own per chunk, so
that a chunk is kept in the RAM of one server and not of all. Copies that are being deleted or are known to be bad are
offered only when nothing else is left: the reader checks every block.

Cost: about 4 us a replica, nearly all of it the ticket's MAC and text.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable
from typing import Final

from metadata.catalog.packed import LIVE, PackedChunk, Replica
from metadata.services.cluster.speeds import grey_devices
from metadata.services.cluster.view import READ_RANK, ClusterView
from tierstore.names import TIERS, ChunkId, DeviceId, ServerId
from tierstore.ticket import ROLE_CACHE, TICKET_SECONDS_MAX, ReadTicket, mint_read
from tierstore.wire.names import ChunkView, ReplicaView

_TIER_PLACE: Final[dict[str, int]] = {tier: place for place, tier in enumerate(TIERS)}
_GONE: Final = 9
#: How long a judgement of the devices' speeds is used.
GREY_MS: Final = 1000
#: A server that is so much busier than the mean of the site comes after others. Not for less, and not because all are
#: busy: a reader who goes elsewhere finds the chunk in nobody's RAM, and waits for a disk.
BUSY_ABOVE: Final = 0.35


class ReplicaOrder:
    """Orders replicas and mints their tickets. One per process."""

    def __init__(self, view: ClusterView, rng: random.Random) -> None:
        self._view = view
        self._rng = rng
        self._grey: frozenset[int] = frozenset()
        self._load = 0.0              # mean of the object servers that are up, of the same moment
        self._grey_at_ms = 0

    @property
    def revision(self) -> int:
        """Of the view that orders go by."""
        return self._view.revision

    def chunk_view(
        self, chunk: PackedChunk, *, start: int, chunk_offset: int, length: int, now_ms: int, flags: int = 0
    ) -> ChunkView:
        return ChunkView(
            chunk.id, start, chunk_offset, length, chunk.chunk_bytes, chunk.crc32c,
            self.readable(chunk, now_ms=now_ms, flags=flags),
        )  # fmt: skip

    def readable(self, chunk: PackedChunk, *, now_ms: int, flags: int = 0) -> list[ReplicaView]:
        """Best first, at most one per device; empty when no server's key is known."""
        live = [r for r in chunk.replicas if r.state == LIVE] or list(chunk.replicas)
        if len(live) > 1:
            if not 0 <= now_ms - self._grey_at_ms < GREY_MS:
                self._judge(now_ms)
            live.sort(key=lambda replica: self._rank(chunk.id, replica))
        expires_at = now_ms // 1000 + TICKET_SECONDS_MAX
        views = []
        for replica in live:
            made = self._view_of(chunk, replica, expires_at, flags)
            if made is not None:
                views.append(made)
        return views

    def _judge(self, now_ms: int) -> None:
        """Take a look at speeds and loads."""
        self._grey, self._grey_at_ms = grey_devices(self._view), now_ms
        loads = [s.load for s in self._view.servers.values() if s.role == "objectd" and s.state == "up"]
        self._load = sum(loads) / len(loads) if loads else 0.0

    def _rank(self, chunk: bytes, replica: Replica) -> tuple[int, int, int, float]:
        device = self._view.devices.get(replica.device)
        server = self._view.servers.get(device.server) if device is not None else None
        if device is None or server is None:
            return (_GONE, 0, 0, 0.0)
        state = _GONE if device.health == "failed" else READ_RANK.get(server.state, _GONE)
        place = _GONE if device.id in self._grey else _TIER_PLACE.get(device.tier, _GONE)
        # In coarse steps: a hair's difference must not send everybody to one server, nor a chunk away from its RAM.
        busy = int(server.load - self._load >= BUSY_ABOVE) + int(device.queue / 4)
        is_extra = replica.role == ROLE_CACHE
        turn = self._rng.random() if is_extra else zlib.crc32(chunk, replica.device & 0xFFFFFFFF) / 2**32
        return (state, place, busy, turn)

    def _view_of(self, chunk: PackedChunk, replica: Replica, expires_at: int, flags: int) -> ReplicaView | None:
        device = self._view.devices.get(replica.device)
        if device is None:
            return None
        signing = self._view.signing_key(device.server)
        if signing is None:
            return None
        ticket = mint_read(
            ReadTicket(
                ServerId(device.server), DeviceId(replica.device), ChunkId(chunk.id), replica.segment, replica.offset,
                chunk.chunk_bytes, expires_at, flags,
            ),
            key_id=signing[0], key=signing[1],
        )  # fmt: skip
        return ReplicaView(device.server, replica.device, device.tier, replica.role, ticket)

    def tier_of(self, devices: Iterable[int]) -> str:
        """The fastest tier among some devices; "" when none is known."""
        best, place = "", _GONE
        for device_id in devices:
            device = self._view.devices.get(device_id)
            if device is not None and _TIER_PLACE.get(device.tier, _GONE) < place:
                best, place = device.tier, _TIER_PLACE[device.tier]
        return best
