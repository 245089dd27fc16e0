"""The fast and slow devices as the policy sees them: speeds, fill, load, and how much of them is the promoter's.

Owns what was served (per tier, told by heartbeats as sums since a server's start) and the translation of the cluster's
view into the policy's devices. No I/O.

Invariant: a device that cannot be read now is not among them; its cache copies count as gone until it is back and
the walk over its chunks found them again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Final

from metadata.services.cluster.speeds import speed_of
from metadata.services.cluster.view import ClusterView
from tierstore.policy.shelf import Device

#: Above this load of the object servers' event loops the promoter's rate falls, ...
BUSY_LOAD: Final = 0.5
#: ... down to this share of it at full load: never to nothing, because moving what is hot is what takes the load away.
RATE_SHARE_MIN: Final = 0.1


def devices(
    view: ClusterView, *, resident_bytes: Callable[[int], int], leaving_bytes: Mapping[int, int]
) -> list[Device]:
    """Today's devices. resident_bytes: of cache copies on a device, made ones only; leaving_bytes: of copies that are
    let go but not deleted yet. Trash and dead bytes are left out: they make room by themselves."""
    found = []
    for info in sorted(view.devices.values(), key=lambda d: d.id):
        server = view.servers.get(info.server)
        if server is None or not view.can_read(info.id) or info.capacity_bytes <= 0:
            continue
        speed = speed_of(info)
        extra = resident_bytes(info.id) + leaving_bytes.get(info.id, 0) + info.trash_bytes + info.garbage_bytes
        found.append(
            Device(
                id=info.id, server=info.server, tier=info.tier, capacity_bytes=info.capacity_bytes,
                seconds=speed.seconds, bytes_per_second=speed.bytes_per_second,
                other_bytes=max(0, info.used_bytes - extra), load=server.load,
                is_usable=server.state == "up" and info.state == "ok" and info.health == "ok",
            )
        )  # fmt: skip
    return found


def rate_share(view: ClusterView) -> float:
    """The share of its rate that the promoter may use while clients keep the object servers busy."""
    loads = [s.load for s in view.servers.values() if s.role == "objectd" and s.state == "up"]
    load = sum(loads) / len(loads) if loads else 0.0
    if load <= BUSY_LOAD:
        return 1.0
    return max(RATE_SHARE_MIN, 1.0 - (load - BUSY_LOAD) / (1.0 - BUSY_LOAD))


class Served:
    """Client reads per tier, from the sums in heartbeats. A sum that fell is of a new life of its server."""

    def __init__(self) -> None:
        self.reads: dict[str, int] = defaultdict(int)
        self.bytes: dict[str, int] = defaultdict(int)
        self.mem: dict[int, tuple[int, int]] = {}     # server -> (used, capacity) of its RAM cache
        self._last: dict[int, tuple[int, dict[str, tuple[int, int]]]] = {}
        self._reads_of: dict[int, int] = defaultdict(int)
        self._taken_bytes = 0
        self._taken_reads: dict[int, int] = {}

    def note(self, server: int, incarnation: int, served: Mapping[str, tuple[int, int]]) -> None:
        """Take the sums of one heartbeat."""
        before = self._last.get(server)
        known = before[1] if before is not None and before[0] == incarnation else {}
        if before is None and any(reads for reads, _ in served.values()):
            known = dict(served)    # this process began to listen in the middle of that server's life
        for tier, (reads, size) in served.items():
            last_reads, last_bytes = known.get(tier, (0, 0))
            self.reads[tier] += max(0, reads - last_reads)
            self.bytes[tier] += max(0, size - last_bytes)
            self._reads_of[server] += max(0, reads - last_reads)
        self._last[server] = (incarnation, dict(served))

    def take(self) -> tuple[int, dict[int, int]]:
        """(bytes served, reads of each server) since the last call."""
        total = sum(self.bytes.values())
        size, self._taken_bytes = total - self._taken_bytes, total
        reads = {s: n - self._taken_reads.get(s, 0) for s, n in self._reads_of.items()}
        self._taken_reads = dict(self._reads_of)
        return size, reads
