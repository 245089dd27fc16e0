"""Who may join, which device is whose.

Rules of joining, each refused with a reason otherwise:
- the first time a server shows the join token; later its own secret. Its incarnation never falls.
- a name belongs to the instance that took it; another instance may take it over with the join token once the old one
  is dead (a server whose state directory was lost), and then no old ticket key or receipt is believed any more.
- a device is known by its uuid. One that carries another cluster's id is refused. One that stands at another server
  moves to the new one when the old one is dead or no longer reports it (a disk carried over), else it is refused.
- a device that was removed stays removed: its grant says so and its server leaves it alone.

Cost: a registration is one transaction.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from typing import Final

from metadata.catalog import leases, servers
from metadata.catalog.database import Database
from metadata.catalog.leases import Connection
from metadata.catalog.servers import DeviceRow, ServerRow
from metadata.catalog.session import lock_out_commits
from metadata.services.cluster.membership import KEYS_KEPT, Cluster
from tierstore.auth.access import daemon_token, token_hash
from tierstore.errors import AccessDenied, ConflictError, NotAuthenticated, RequestError
from tierstore.names import TIERS
from tierstore.wire.cluster import DeviceGrant, DeviceReport, Register, Registered

log = logging.getLogger(__name__)

DEVICES_PER_SERVER_MAX: Final = 256
NAME_BYTES_MAX: Final = 100
ROLES: Final = ("objectd", "gateway")


class Registrar:
    """Takes registrations for this process and tells them to its view."""

    def __init__(self, database: Database, cluster: Cluster, random_bytes: Callable[[int], bytes]) -> None:
        self._database = database
        self._cluster = cluster
        self._view = cluster.view
        self._random_bytes = random_bytes
        #: A rebuild of an empty catalog: the id it gave itself, in whose place the first device's cluster id goes;
        #: "": none.
        self.replaceable_cluster_id = ""

    async def register(self, message: Register, *, server: int = 0) -> Registered:
        """Join or come back. server: who its secret says it is, 0 when it showed none.

        Durable when it returns. Safe to repeat. Raises AccessDenied, ConflictError (name, incarnation or device
        taken), RequestError."""
        _check(message)
        if not server and not self._is_join_token(message.join_token):
            raise NotAuthenticated("a server joins with the cluster's join token or comes back with its own secret")
        secret_bytes, key = self._random_bytes(32), self._random_bytes(32)
        await self._cluster.refresh()
        now_ms = self._cluster.now_ms()
        server_id, secret, grants = await self._database.write(
            lambda c: self._register(c, message, server, secret_bytes=secret_bytes, key=key, now_ms=now_ms)
        )
        self._cluster.reported[server_id] = "up"
        self._cluster.restart_until_ms[server_id] = 0
        await self._cluster.refresh()
        info = self._view.servers[server_id]
        info.seen_at_ms = max(info.seen_at_ms, now_ms)
        for report in message.devices:
            self._cluster.note_device(report)
        self._cluster.judge_all()
        self._view.bump()
        return Registered(
            cluster_id=self._view.cluster_id, server=server_id, secret=secret, site=self._view.site,
            site_id=self._view.site_id, now_ms=self._cluster.now_ms(), devices=grants,
            ticket_keys=self._cluster.keys_of(server_id),
            heartbeat_seconds=self._cluster.settings.timers.heartbeat_seconds,
        )  # fmt: skip

    def _is_join_token(self, token: str) -> bool:
        ours = self._cluster.settings.join_token
        return bool(ours) and hmac.compare_digest(ours.encode(), token.encode())

    def _register(
        self, c: Connection, message: Register, server: int, *, secret_bytes: bytes, key: bytes, now_ms: int
    ) -> tuple[int, str, list[DeviceGrant]]:
        lock_out_commits(c)  # incarnations are what commits check receipts by
        row = servers.server_by_name(c, message.name)
        if row is None:
            if server:
                raise ConflictError(
                    f"the secret is of another server than {message.name!r}: names cannot be changed",
                    code="server-name-differs",
                )
            server_id = servers.add_server(
                c, name=message.name, role=message.role, url=message.url, site_id=self._view.site_id,
                instance=message.instance, incarnation=message.incarnation, failure_domain=message.failure_domain,
                software=message.software, secret_sha256=b"", now_ms=now_ms,
            )  # fmt: skip
            secret = daemon_token(server_id, secret_bytes)
            servers.change_server(c, server_id, secret_sha256=token_hash(secret))
        else:
            server_id = row.id
            secret = self._come_back(c, message, server, row, secret_bytes=secret_bytes, now_ms=now_ms)
        if message.role == "objectd" and not any(k.server_id == server_id for k in servers.ticket_keys(c)):
            servers.add_ticket_key(c, server_id, key, now_ms=now_ms, keep=KEYS_KEPT)
        grants = [self._grant(c, server_id, message.incarnation, report) for report in message.devices]
        return server_id, secret, grants

    def _come_back(
        self, c: Connection, message: Register, server: int, row: ServerRow, *, secret_bytes: bytes, now_ms: int
    ) -> str:
        if server and server != row.id:
            raise ConflictError(f"the name {message.name!r} is server {row.id}'s", code="server-name-taken")
        if row.wish == "removed":
            raise AccessDenied(f"server {message.name!r} was removed from the cluster", code="server-removed")
        is_same = hmac.compare_digest(row.instance, message.instance)
        info = self._view.servers.get(row.id)
        if not is_same:
            if info is not None and info.state != "dead" and row.joined_at_ms:
                raise ConflictError(
                    f"the name {message.name!r} is held by another server that is {info.state}: give this one a name "
                    "of its own, or stop the other and try again when it is dead",
                    code="server-name-taken",
                )
            # Another instance: nothing the old one signed may be believed any more.
            servers.forget_ticket_keys(c, row.id)
        elif message.incarnation < row.incarnation:
            raise ConflictError(
                f"incarnation {message.incarnation} of {message.name!r} is older than {row.incarnation}: its state "
                "directory was restored from an old copy; remove it and join anew",
                code="stale-incarnation",
            )
        if row.role != message.role:
            raise ConflictError(f"{message.name!r} is a {row.role}", code="server-name-taken")
        secret = "" if server and is_same else daemon_token(row.id, secret_bytes)
        values: dict[str, object] = {
            "url": message.url, "instance": message.instance, "incarnation": message.incarnation,
            "failure_domain": message.failure_domain, "software": message.software, "reported": "up",
            "restart_until_ms": 0, "seen_at_ms": max(now_ms, row.seen_at_ms),
        }  # fmt: skip
        if secret:
            values["secret_sha256"] = token_hash(secret)
        servers.change_server(c, row.id, **values)
        return secret

    def _grant(self, c: Connection, server_id: int, incarnation: int, report: DeviceReport) -> DeviceGrant:
        # Asked of the catalog, not of the view: the view changes while this transaction runs, and must not change when
        # it is rolled back.
        ours = leases.setting(c, "cluster_id")
        if report.cluster_id and ours == self.replaceable_cluster_id:
            leases.set_setting(c, "cluster_id", report.cluster_id)
            ours = report.cluster_id    # the first one decides; devices of yet others are refused
        if report.cluster_id and report.cluster_id != ours:
            raise ConflictError(
                f"the device at {report.path} belongs to cluster {report.cluster_id}, this is {ours}: "
                "take it out of the configuration, or, if this catalog was lost, run `tierstore metadata rebuild`",
                code="device-of-another-cluster",
            )
        row = servers.device_by_uuid(c, report.uuid)
        if row is None:
            # A device without chunks has nothing to reconcile; one with chunks that the catalog does not know
            # (its row was lost) counts only after its inventory.
            reconciled = incarnation if report.chunks == 0 else 0
            device_id = servers.add_device(c, server_id, report, reconciled_incarnation=reconciled)
            return DeviceGrant(report.uuid, device_id)
        if row.server_id != server_id:
            self._check_may_move(row, report)
            log.warning("device %d moves from server %d to %d", row.id, row.server_id, server_id)
            servers.change_device(c, row.id, server_id=server_id, reconciled_incarnation=0)
        elif row.chunks == 0 and report.chunks == 0 and row.reconciled_incarnation:
            servers.change_device(c, row.id, reconciled_incarnation=incarnation)
        servers.report_device(c, row.id, report)
        state = "removed" if row.wish == "removed" else "draining" if row.wish in ("draining", "drained") else "ok"
        return DeviceGrant(report.uuid, row.id, state)

    def _check_may_move(self, row: DeviceRow, report: DeviceReport) -> None:
        owner = self._view.servers.get(row.server_id)
        known = self._view.devices.get(row.id)
        is_held = owner is not None and owner.state not in ("dead", "removed") and known is not None
        if is_held and known is not None and known.health != "failed":
            raise ConflictError(
                f"the device at {report.path} ({report.uuid.hex()}) is in use by server {row.server_id}: "
                "stop that server, or take the device out of its configuration, before it is used here",
                code="device-in-use",
            )


def _check(message: Register) -> None:
    if message.role not in ROLES:
        raise RequestError(f"role {message.role!r} is none of {', '.join(ROLES)}", code="bad-role")
    name = message.name
    if not 0 < len(name.encode()) <= NAME_BYTES_MAX or not name.isprintable() or "/" in name:
        raise RequestError(
            f"a server's name has 1 to {NAME_BYTES_MAX} printable bytes without '/'", code="bad-server-name"
        )
    if not message.url.startswith(("http://", "https://")) or len(message.url) > 500:
        raise RequestError(f"{message.url!r} is not a URL like http://host:port", code="bad-url")
    if len(message.instance) != 16 or message.incarnation < 1:
        raise RequestError("an instance has 16 bytes and an incarnation is at least 1", code="bad-message")
    if len(message.devices) > DEVICES_PER_SERVER_MAX:
        raise RequestError(f"a server has at most {DEVICES_PER_SERVER_MAX} devices", code="too-many-devices")
    if len({d.uuid for d in message.devices}) != len(message.devices):
        raise RequestError("a device is listed twice", code="bad-message")
    for device in message.devices:
        if len(device.uuid) != 16 or device.tier not in TIERS or device.tier == "mem":
            raise RequestError(
                f"the device at {device.path} has no uuid of 16 bytes or an unknown tier", code="bad-device"
            )
