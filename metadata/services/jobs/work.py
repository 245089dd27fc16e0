"""What jobs carry in their rows, their classes, and the seam to where chunks lie. Pure data, no I/O.

The order of the queue: class first (endangered chunks by their live homes, then drain, collection, tiering, scrub),
then heat, then age. `ReplicaBook` is what duties need of the catalog's bodies; all of it runs inside one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

import msgspec

from metadata.catalog.book import Located
from metadata.catalog.feed import NewChange
from metadata.catalog.leases import Connection
from metadata.catalog.packed import LIVE, Replica
from metadata.services.cluster.view import ClusterView
from tierstore.ticket import ROLE_HOME

#: Classes (`jobs.class`). 1..9: that many live homes are left; inventories decide what counts, so they go first.
CLASS_INVENTORY: Final = 0
CLASS_ENDANGERED_MAX: Final = 9
CLASS_CHECK: Final = 10       # a reader's suspicion: verify soon
CLASS_DRAIN: Final = 20
CLASS_COLLECT: Final = 25
CLASS_TIER: Final = 30
CLASS_SCRUB: Final = 40
#: The server of jobs that metadata does itself.
INTERNAL: Final = 0


class CopyWork(msgspec.Struct, array_like=True, frozen=True):
    """Payload of a copy job. via: a device on which the reverse table has the chunk (how its row is found again);
    drop: the device whose replica goes when the copy is there, 0 for none; keep: it stays there as a cache copy."""

    via: int
    role: int = ROLE_HOME
    drop: int = 0
    keep: bool = False


class BatchWork(msgspec.Struct, array_like=True, frozen=True):
    """Payload of a delete or undelete job over many chunks: ids back to back. Nothing refers to them any more."""

    ids: bytes


class DropWork(msgspec.Struct, array_like=True, frozen=True):
    """Payload of a delete job for one replica that is marked as deleting: its entry goes when the job is done.
    via as in CopyWork; generation: of the marked replica; discard: it was a cache copy, nobody wants it back."""

    via: int
    generation: int
    discard: bool = False


class VerifyWork(msgspec.Struct, array_like=True, frozen=True):
    """Payload of a verify job."""

    chunk_bytes: int
    crc32c: int


class MendWork(msgspec.Struct, array_like=True, frozen=True):
    """Payload of an internal job: this copy is bad or missing. asked_at: the feed's sequence when it was reported."""

    why: str
    asked_at: int


class InventoryWork(msgspec.Struct, array_like=True, frozen=True):
    """Payload of an inventory job: the life of the server whose devices are to be reconciled. since_ms: > 0: only
    headers of chunks stored since (a rebuild asks)."""

    incarnation: int
    since_ms: int = 0


class ReplicaBook(Protocol):
    """Where chunks lie, inside the caller's transaction."""

    def locate(self, connection: Connection, device: int, chunk: bytes) -> Located | None:
        """The chunk that the reverse table has on the device, its row locked; None when nothing refers to it there."""
        ...

    def forget(self, connection: Connection, device: int, chunk: bytes) -> bool:
        """Drop the reverse table's row of a copy that nothing names there; False: it is right, or not there."""
        ...

    def rewrite(self, connection: Connection, located: Located, replicas: Iterable[Replica], *, at_ms: int) -> None:
        """Give the chunk these replicas; writes the change to the feed, so that the reverse table follows."""
        ...

    def put_replicas(self, connection: Connection, located: Located, replicas: Iterable[Replica]) -> NewChange:
        """The same without the feed: its entry, for a caller that appends many at the end of the transaction."""
        ...

    def mark(self, connection: Connection) -> int:
        """The sequence up to which the reverse table is complete (rule 2)."""
        ...


def endangered(live_homes: int) -> int:
    """The class of a chunk with so many live homes left: fewest first."""
    return max(1, min(live_homes, CLASS_ENDANGERED_MAX))


def is_alive(view: ClusterView, device_id: int) -> bool:
    """Whether the device can be asked to do something now."""
    device = view.devices.get(device_id)
    if device is None or device.health == "failed" or device.state == "removed":
        return False
    server = view.servers.get(device.server)
    return server is not None and server.state in ("up", "suspect", "draining", "drained")


def can_delete(view: ClusterView, device_id: int) -> bool:
    """Whether a copy on the device can be taken away now: a file system that became read-only still serves reads."""
    return is_alive(view, device_id) and view.devices[device_id].health != "read-only"


def unwritable(view: ClusterView) -> list[int]:
    """Devices on which jobs that write or delete would only fail."""
    return [d.id for d in view.devices.values() if d.health in ("failed", "read-only")]


def counts(view: ClusterView, replica: Replica) -> bool:
    """Whether a replica counts for N+1: a live home on a device that stays, of a server that is not dead, and whose
    inventory was reconciled since it came back (rule 16)."""
    if replica.role != ROLE_HOME or replica.state != LIVE:
        return False
    device = view.devices.get(replica.device)
    if device is None or device.state != "ok" or device.health == "failed" or not device.counts_for_copies:
        return False
    server = view.servers.get(device.server)
    return server is not None and server.state not in ("dead", "removed", "drained")


def home_servers(view: ClusterView, replicas: Iterable[Replica], *, without: int = 0) -> set[int]:
    """The different servers on which live homes count, leaving one device out. Two homes on one server are one."""
    return {view.devices[r.device].server for r in replicas if r.device != without and counts(view, r)}


def readable(view: ClusterView, replicas: Iterable[Replica]) -> list[Replica]:
    """Live copies that can be read now, those of servers that are up first."""
    found = [r for r in replicas if r.state == LIVE and view.can_read(r.device)]
    found.sort(key=lambda r: view.servers[view.devices[r.device].server].state != "up")
    return found
