"""One copy more of a chunk, or one copy less: where to, how urgent, and the job for it.

Deterministic given the passed-in random. Writes nothing but the jobs that it is told to queue.
"""

from __future__ import annotations

import random
from collections.abc import Collection

import msgspec

from metadata.catalog.book import Located
from metadata.catalog.jobs import NewJob
from metadata.catalog.leases import Connection
from metadata.catalog.packed import LIVE, Replica
from metadata.services.cluster.view import ClusterView, DeviceInfo
from metadata.services.jobs.queue import JobQueue
from metadata.services.jobs.work import CLASS_DRAIN, CopyWork, endangered, home_servers, is_alive
from tierstore.policy.placement import HEADROOM_BYTES
from tierstore.ticket import ROLE_HOME


class Planner:
    """Plans single copies for repair, drain and audit."""

    def __init__(self, view: ClusterView, queue: JobQueue, rng: random.Random) -> None:
        self.view = view
        self.queue = queue
        self._rng = rng

    def plan(self, located: Located, *, why: str, drop: int = 0) -> NewJob | None:
        """A copy job for one more home of the chunk, replacing the one on `drop`; None when no device can take it."""
        chunk = located.chunk
        homes = home_servers(self.view, chunk.replicas, without=drop)
        old = self.view.devices.get(drop) if drop else None
        tier = old.tier if old else next(
            (self.view.devices[r.device].tier for r in chunk.replicas if r.device in self.view.devices), ""
        )  # fmt: skip
        # A readable home on a server keeps others of that server out, also one that does not count (not reconciled
        # yet, draining): else two homes would share it as soon as it counts again.
        taken = homes | {
            self.view.devices[r.device].server
            for r in chunk.replicas
            if r.state == LIVE and r.role == ROLE_HOME and r.device != drop and r.device in self.view.devices
        }
        target = self.choose(chunk.chunk_bytes, tier, exclude_servers=taken)
        if target is None:
            return None
        live = len(homes) + (1 if old is not None and why == "drain" and is_alive(self.view, drop) else 0)
        rank = CLASS_DRAIN if live >= self.queue.replicas.copies_of(located) else endangered(len(homes))
        via = next((r.device for r in chunk.replicas if r.device != drop), drop)
        return NewJob(
            "copy", why, rank, target.server, target.id, chunk=chunk.id, bytes=chunk.chunk_bytes,
            payload=msgspec.msgpack.encode(CopyWork(via, ROLE_HOME, drop)), heat=self.queue.heat_of(chunk.id),
        )  # fmt: skip

    def choose(self, size: int, tier: str, *, exclude_servers: Collection[int]) -> DeviceInfo | None:
        """A device for one home copy: of the wished tier if there is room, weighted by free space and load."""
        fit = [
            d for d in self.view.devices.values()
            if self.view.can_place(d) and d.counts_for_copies and d.server not in exclude_servers
            and d.free_bytes > size + HEADROOM_BYTES
        ]  # fmt: skip
        if not fit:
            return None
        same = [d for d in fit if d.tier == tier] or fit
        weights = [d.free_bytes * max(0.1, 1.0 - self.view.servers[d.server].load) / (1.0 + d.queue) for d in same]
        return self._rng.choices(same, weights)[0]

    def requeue_drop(self, c: Connection, located: Located, victim: Replica, *, now_ms: int) -> bool:
        """Queue the deletion of a copy that is marked for it, unless it is missed by now; whether it may go."""
        if not self.queue.replicas.may_be_deleted(located, victim.device, victim.generation):
            return False
        via = next((r.device for r in located.chunk.replicas if r.device != victim.device), victim.device)
        self.queue.replicas.queue_drop(
            c, located.chunk.id, victim.device, via=via, generation=victim.generation, now_ms=now_ms
        )
        return True
