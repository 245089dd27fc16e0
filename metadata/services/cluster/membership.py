"""The cluster as this process knows it: what the rows say and the heartbeats brought, who is alive by that, and what
everyone is told of it. Fills the ClusterView; who joins is cluster_join's.

Cost: a refresh is one read transaction; the cluster map is encoded once per revision.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from metadata.catalog import leases, servers
from metadata.catalog.database import Database
from metadata.catalog.leases import Connection
from metadata.catalog.servers import DeviceRow, ServerRow
from metadata.services.cluster.liveness import Timers, judge
from metadata.services.cluster.refreshing import Refreshing
from metadata.services.cluster.view import ClusterView, DeviceInfo, ServerInfo, ServerState
from tierstore.auth.access import Principal, token_hash
from tierstore.clock import Clock
from tierstore.errors import AccessDenied, NotAuthenticated, NotFound
from tierstore.wire.cluster import (
    ClusterMap,
    DeviceReport,
    ServerView,
    SiteView,
    TicketKey,
)

log = logging.getLogger(__name__)

#: A new key signs only after every server surely has it (it is in each heartbeat answer).
KEY_SETTLE_MS: Final = 10_000
KEY_ROTATE_MS: Final = 86_400_000
KEYS_KEPT: Final = 2


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """join_token empty: nobody can join (known servers still come back)."""

    join_token: str = ""
    copies: int = 2
    chunk_bytes: int = 8 << 20
    timers: Timers = field(default_factory=Timers)
    trash_seconds: int = 86_400


class Cluster:
    """What is known, and the map. One per process; shares the view with lookups and allocations."""

    def __init__(
        self, database: Database, view: ClusterView, clock: Clock, settings: ClusterSettings,
        random_bytes: Callable[[int], bytes],
    ) -> None:  # fmt: skip
        self._database = database
        self.view = view
        self._clock = clock
        self.settings = settings
        self._random_bytes = random_bytes
        #: Since when this process listens; nobody is dead before one lease after it (rule 15).
        self.watching_since_ms = clock.now_ms()
        self._offset_ms = 0
        #: The newest commit sequence known here; told to devices, so it only rises.
        self.sequence = 0
        self.policy: Callable[[], tuple[int, bytes]] = lambda: (0, b"")
        self.auth_revision: Callable[[], int] = lambda: 0
        self.read_soon: Callable[[], frozenset[str]] = frozenset
        self._rows: dict[int, ServerRow] = {}
        self._secrets: dict[int, bytes] = {}
        self._keys_created: dict[int, list[tuple[int, int]]] = {}
        #: Servers that died or devices that failed since the last flush: to be reconciled before they count again.
        self.unreconciled: set[int] = set()
        #: What operators wish of each server: up | draining | drained | removed.
        self.wishes: dict[int, str] = {}
        self.restart_until_ms: dict[int, int] = {}
        self.reported: dict[int, str] = {}
        self._refreshing = Refreshing(self._refresh)

    def now_ms(self) -> int:
        """Catalog time as this process knows it: its own clock plus the difference last measured."""
        return self._clock.now_ms() + self._offset_ms

    # -- what is known ----------------------------------------------------------------------------------------
    async def load(self) -> None:
        """Read membership from the catalog; make the cluster id if this is a new catalog."""
        new_id = self._random_bytes(8).hex()
        await self._database.write(lambda c: self._ensure_cluster_id(c, new_id))
        await self.refresh()

    @staticmethod
    def _ensure_cluster_id(connection: Connection, new_id: str) -> None:
        leases.change_setting(connection, "cluster_id", lambda old: old or new_id)

    async def refresh(self) -> None:
        """Take over what the rows say; what this process heard itself later stays. Run now and then and after
        every change, so that several metadata processes agree. What it takes over is no older than the call."""
        await self._refreshing.now()

    async def _refresh(self) -> None:
        clock_ms = self._clock.now_ms()
        now_ms, cluster_id, site, rows, devices, keys, sequence = await self._database.read(
            lambda c: (
                leases.catalog_now_ms(c, clock_ms), leases.setting(c, "cluster_id"), servers.local_site(c),
                servers.all_servers(c), servers.all_devices(c), servers.ticket_keys(c), servers.feed_sequence(c),
            )
        )  # fmt: skip
        # Devices note it, and are right to distrust a catalog that is behind it: a power cut must not take it back.
        await self._database.synced()
        self._offset_ms = now_ms - clock_ms
        self.sequence = max(self.sequence, sequence)
        view = self.view
        view.cluster_id = cluster_id
        view.site_id, view.site = site
        for row in rows:
            self._take_server(row)
        for device in devices:
            self._take_device(device)
        self._take_keys(keys)
        self.judge_all()

    def _take_server(self, row: ServerRow) -> None:
        known = self.view.servers.get(row.id)
        self._rows[row.id] = row
        self._secrets[row.id] = row.secret_sha256
        self.wishes[row.id] = row.wish
        if known is None or known.incarnation < row.incarnation or known.url != row.url:
            self.view.put_server(ServerInfo(
                id=row.id, name=row.name, role=row.role, url=row.url, site=self.view.site, site_id=row.site_id,
                incarnation=row.incarnation, failure_domain=row.failure_domain, load=row.load,
                in_flight=row.in_flight, seen_at_ms=row.seen_at_ms, software=row.software,
            ))  # fmt: skip
            self.reported[row.id] = row.reported
            self.restart_until_ms[row.id] = row.restart_until_ms
            self.view.bump()
        elif row.seen_at_ms > known.seen_at_ms:
            known.seen_at_ms = row.seen_at_ms
            known.load, known.in_flight = row.load, row.in_flight
            self.reported[row.id] = row.reported
            self.restart_until_ms[row.id] = row.restart_until_ms

    def _take_device(self, row: DeviceRow) -> None:
        server = self.view.servers.get(row.server_id)
        known = self.view.devices.get(row.id)
        counts = server is not None and row.reconciled_incarnation == server.incarnation
        if known is None or known.server != row.server_id:
            self.view.put_device(DeviceInfo(
                id=row.id, uuid=row.uuid, server=row.server_id, tier=row.tier, capacity_bytes=row.capacity_bytes,
                used_bytes=row.used_bytes, state=row.wish, health=row.health, read_ms=row.read_ms,
                read_bytes_per_second=row.read_bytes_per_second, trash_bytes=row.trash_bytes,
                garbage_bytes=row.garbage_bytes, chunks=row.chunks, path=row.path, detail=row.detail,
                seen_sequence=row.seen_sequence, counts_for_copies=counts,
            ))  # fmt: skip
            self.view.bump()
            return
        counts = counts and row.id not in self.unreconciled
        if known.state != row.wish or known.counts_for_copies != counts:
            known.state, known.counts_for_copies = row.wish, counts
            self.view.bump()

    def _take_keys(self, rows: list[servers.KeyRow]) -> None:
        now_ms = self.now_ms()
        grouped: dict[int, list[servers.KeyRow]] = {}
        for row in rows:
            grouped.setdefault(row.server_id, []).append(row)
        for server_id, keys in grouped.items():
            settled = [k for k in keys if k.created_at_ms + KEY_SETTLE_MS <= now_ms]
            fresh = [k for k in keys if k.created_at_ms + KEY_SETTLE_MS > now_ms]
            # The last one signs: a key that is too new to be known everywhere stands in front, unless all are.
            ordered = fresh + settled if settled else fresh
            self.view.ticket_keys[server_id] = {k.key_id: k.key for k in ordered}
            self._keys_created[server_id] = [(k.key_id, k.created_at_ms) for k in keys]

    def keys_of(self, server_id: int) -> list[TicketKey]:
        """The keys a server needs, oldest first."""
        keys = self.view.ticket_keys.get(server_id, {})
        by_age = self._keys_created.get(server_id, [])
        return [TicketKey(key_id, keys[key_id]) for key_id, _ in by_age if key_id in keys]

    def judge_all(self) -> list[int]:
        """Set every server's state from what is known now; the ids of servers that became dead just now."""
        now_ms = self.now_ms()
        died: list[int] = []
        for server in self.view.servers.values():
            stopping = self.reported.get(server.id) == "stopping"
            judgement = judge(
                self.settings.timers, now_ms=now_ms, seen_ms=server.seen_at_ms,
                watching_since_ms=self.watching_since_ms, restart_until_ms=self.restart_until_ms.get(server.id, 0),
                stopping=stopping,
            )  # fmt: skip
            wish = self.wishes.get(server.id, "up")
            state: ServerState = judgement.life
            if wish == "removed":
                state = "removed"
            elif state == "up" and wish == "drained":
                state = "drained"
            elif state == "up" and (
                wish == "draining"
                or self.reported.get(server.id) == "draining"
                or self.restart_until_ms.get(server.id, 0) > now_ms
            ):
                state = "draining"
            may_place = judgement.may_place and wish == "up"
            may_place = may_place and state in ("up", "suspect")
            # No gap between the two: a server that takes nothing and is not waited for would fail writes for nothing.
            server.is_returning = wish == "up" and not may_place and state != "dead"
            if state != server.state or may_place != server.accepts_new:
                if state == "dead" and server.state != "dead":
                    died.append(server.id)
                    self._must_reconcile(d for d in self.view.devices.values() if d.server == server.id)
                    log.warning("server %s is dead: silent for %.1f s", server.name, judgement.silent_ms / 1000)
                elif server.state == "dead":
                    log.info("server %s is back: %s", server.name, state)
                server.state, server.accepts_new = state, may_place
                self.view.bump()
        return died

    def _must_reconcile(self, devices: Iterable[DeviceInfo]) -> None:
        """While they were away their share of deletions and repairs was decided without them (rule 16)."""
        for device in devices:
            device.counts_for_copies = False
            self.unreconciled.add(device.id)

    # -- who is it --------------------------------------------------------------------------------------------
    def authenticate(self, server_text: str, token: str) -> Principal:
        """The daemon behind a bearer token `tsd.<server>.<secret>`. Raises NotAuthenticated."""
        server = int(server_text) if server_text.isascii() and server_text.isdigit() else 0
        known = self._secrets.get(server)
        if not known or not hmac.compare_digest(known, token_hash(token)):
            raise NotAuthenticated("the server's credential is not known; register with the join token")
        if self.wishes.get(server) == "removed":
            raise AccessDenied("this server was removed from the cluster")
        return Principal(access="", user=f"server {server}", grants={"*": "admin"}, server=server)

    # -- devices ----------------------------------------------------------------------------------------------
    def note_device(self, report: DeviceReport) -> int:
        """Take what a server says of a device into the view; its id, 0 for one that is not known."""
        for device in self.view.devices.values():
            if device.uuid == report.uuid:
                break
        else:
            return 0
        if device.health != report.state:
            self.view.bump()
            if device.health == "failed":
                self._must_reconcile([device])
        device.health, device.detail, device.path = report.state, report.detail, report.path
        device.capacity_bytes, device.used_bytes = report.capacity_bytes, report.used_bytes
        device.trash_bytes, device.garbage_bytes = report.trash_bytes, report.garbage_bytes
        device.chunks, device.seen_sequence, device.queue = report.chunks, report.seen_sequence, report.queue
        device.read_ms, device.read_bytes_per_second = report.read_ms, report.read_bytes_per_second
        device.tier = report.tier
        return device.id

    # -- ticket keys ------------------------------------------------------------------------------------------
    async def rotate_keys(self) -> int:
        """Give every object server whose newest key is older than a day another one; how many were made."""
        now_ms = self.now_ms()
        due = [
            server.id
            for server in self.view.servers.values()
            if server.role == "objectd"
            and server.state not in ("dead", "removed")
            and max((at for _, at in self._keys_created.get(server.id, [])), default=0) + KEY_ROTATE_MS <= now_ms
        ]
        for server_id in due:
            await self._database.write(
                partial(
                    servers.add_ticket_key, server_id=server_id, key=self._random_bytes(32), now_ms=now_ms,
                    keep=KEYS_KEPT,
                )
            )  # fmt: skip
        if due:
            await self.refresh()
        return len(due)

    # -- planned restarts -------------------------------------------------------------------------------------
    async def announce_restart(self, name: str) -> float:
        """An operator will restart a server: nothing new is placed there from now on, and it is not dead before the
        answered seconds have passed. Its registration ends it. Durable when it returns."""
        server = self.server_named(name)
        seconds = self.settings.timers.restart_seconds
        until_ms = self.now_ms() + int(seconds * 1000)
        await self._database.write(lambda c: servers.change_server(c, server.id, restart_until_ms=until_ms))
        self.restart_until_ms[server.id] = until_ms
        self.judge_all()
        return seconds

    # -- the map ----------------------------------------------------------------------------------------------
    def server_named(self, name: str) -> ServerInfo:
        """Raises NotFound(code="no-such-server")."""
        for server in self.view.servers.values():
            if server.name == name and server.state != "removed":
                return server
        raise NotFound(f"no server is called {name!r}", code="no-such-server")

    def cluster_map(self, *, metadata_urls: list[str]) -> ClusterMap:
        """What clients need to reach the servers."""
        view = self.view
        everyone = [
            ServerView(s.id, s.name, s.role, s.url, s.site, s.state)
            for s in view.servers.values()
            if s.state != "removed"
        ]
        gateways = [s.url for s in everyone if s.role == "gateway" and s.state not in ("dead", "stopping")]
        revision, document = self.policy()
        return ClusterMap(
            cluster_id=view.cluster_id, revision=view.revision, site=view.site, servers=everyone,
            sites=[SiteView(view.site_id, view.site, gateways, metadata_urls)], policy_revision=revision,
            policy=document, chunk_bytes=self.settings.chunk_bytes, auth_revision=self.auth_revision(),
            copies=self.settings.copies, read_soon=sorted(self.read_soon()),
        )  # fmt: skip
