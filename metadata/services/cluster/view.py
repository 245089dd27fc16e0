"""ClusterView: what this process knows of servers and devices right now, in memory.

Filled from registrations and heartbeats (cluster/membership), read by lookups, allocations and commits. Plain data: no
I/O, no clock. States of servers are judged elsewhere; here they are only held.

The event loop alone changes it; transactions walk over it in the catalog's writer thread meanwhile. So a server or
device that comes makes a new dict (`put_server`, `put_device`), and whoever walks goes on over the old one.

Invariants: a device's server is in `servers`; `revision` rises whenever a server or device comes, goes or changes its
state (not with load and usage); `ticket_keys[server]` is in the order of ages, the newest last.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

#: up · suspect (3 s silent) · dead (20 s) · draining (announced restart, or being emptied) · drained · stopping
ServerState = Literal["up", "suspect", "dead", "draining", "drained", "stopping", "removed"]

#: Read from these first, in this order; copies on servers in no list come last but are offered still.
READ_RANK: Final[dict[str, int]] = {"up": 0, "draining": 1, "drained": 1, "suspect": 2, "stopping": 3}


@dataclass(slots=True)
class ServerInfo:
    """One server. accepts_new: placement may choose it (up or suspect: heard of within 5 s). is_returning: it may not,
    but is away for a moment only, as far as is known (a restart, silence shorter than death). load: 0..1."""

    id: int
    name: str
    role: str
    url: str
    site: str = "site1"
    site_id: int = 1
    state: ServerState = "up"
    incarnation: int = 0
    failure_domain: str = ""
    accepts_new: bool = True
    is_returning: bool = False
    load: float = 0.0
    in_flight: int = 0
    seen_at_ms: int = 0
    software: str = ""


@dataclass(slots=True)
class DeviceInfo:
    """One device. state is the operator's wish (ok | draining | drained | removed), health what its server says
    (ok | read-only | failed | full). counts_for_copies: its inventory was reconciled since it came back (rule 16)."""

    id: int
    uuid: bytes
    server: int
    tier: str
    capacity_bytes: int = 0
    used_bytes: int = 0
    state: str = "ok"
    health: str = "ok"
    queue: float = 0.0
    read_ms: float = 0.0
    read_bytes_per_second: float = 0.0
    trash_bytes: int = 0
    garbage_bytes: int = 0
    chunks: int = 0
    path: str = ""
    detail: str = ""
    seen_sequence: int = 0
    counts_for_copies: bool = True

    @property
    def free_bytes(self) -> int:
        return max(0, self.capacity_bytes - self.used_bytes)


@dataclass(slots=True)
class ClusterView:
    """Everything known of this site's servers. One per process, shared by its services."""

    cluster_id: str = ""
    site: str = "site1"
    site_id: int = 1
    revision: int = 1
    servers: dict[int, ServerInfo] = field(default_factory=dict)
    devices: dict[int, DeviceInfo] = field(default_factory=dict)
    #: server -> key id -> key; the last one signs, all verify.
    ticket_keys: dict[int, dict[int, bytes]] = field(default_factory=dict)

    def bump(self) -> None:
        self.revision += 1

    def put_server(self, server: ServerInfo) -> None:
        """A server that came, or in another life."""
        self.servers = {**self.servers, server.id: server}

    def put_device(self, device: DeviceInfo) -> None:
        """A device that came, or went to another server."""
        self.devices = {**self.devices, device.id: device}

    def can_read(self, device_id: int) -> bool:
        """Whether a read of this device has a chance now."""
        device = self.devices.get(device_id)
        if device is None or device.health == "failed" or device.state == "removed":
            return False
        server = self.servers.get(device.server)
        return server is not None and server.state in ("up", "suspect", "draining", "drained")

    def lost_devices(self) -> frozenset[int]:
        """Devices that failed, or whose server is dead: what stands on them has a copy fewer."""
        return frozenset(
            device.id for device in self.devices.values()
            if device.health == "failed" or (server := self.servers.get(device.server)) is None
            or server.state in ("dead", "removed")
        )  # fmt: skip

    def stores_that_stay(self) -> int:
        """How many object servers have a device that nobody is emptying: so many different ones can keep copies, though
        some may be away just now."""
        return len({
            device.server for device in self.devices.values()
            if device.state == "ok" and (server := self.servers.get(device.server)) is not None
            and server.state != "removed"
        })  # fmt: skip

    def can_place(self, device: DeviceInfo, *, or_suspect: bool = False) -> bool:
        """Whether new chunks may go to this device. or_suspect: also when its server was silent for some seconds,
        fewer than after which nothing is placed there."""
        server = self.servers.get(device.server)
        return (
            server is not None
            and server.accepts_new
            and (server.state == "up" or (or_suspect and server.state == "suspect"))
            and device.state == "ok"
            and device.health == "ok"
            and device.server in self.ticket_keys
        )

    def signing_key(self, server_id: int) -> tuple[int, bytes] | None:
        """(key id, key) of the newest ticket key that a server shares with us."""
        keys = self.ticket_keys.get(server_id)
        if not keys:
            return None
        key_id = next(reversed(keys))
        return key_id, keys[key_id]
