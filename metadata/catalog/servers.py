"""Membership in the catalog: servers, devices, ticket keys and what heartbeats leave behind.

One function, one statement or a few of one purpose, inside the caller's transaction. The rules (who may join, what is
dead) are services.cluster's; here stands only how they are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from metadata.catalog import schema
from metadata.catalog.leases import upsert
from metadata.catalog.statement import Statement
from tierstore.wire.cluster import DeviceReport

_servers = schema.servers
_devices = schema.devices
_keys = schema.ticket_keys


@dataclass(frozen=True, slots=True)
class ServerRow:
    """wish: what operators want (up | draining | drained | removed); reported: what it said of itself."""

    id: int
    name: str
    role: str
    url: str
    site_id: int
    instance: bytes
    incarnation: int
    failure_domain: str
    software: str
    secret_sha256: bytes
    wish: str
    joined_at_ms: int
    seen_at_ms: int
    reported: str
    restart_until_ms: int
    load: float
    in_flight: int


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """wish: ok | draining | drained | removed; health: ok | read-only | failed | full."""

    id: int
    uuid: bytes
    server_id: int
    tier: str
    path: str
    capacity_bytes: int
    used_bytes: int
    trash_bytes: int
    garbage_bytes: int
    wish: str
    health: str
    detail: str
    chunks: int
    seen_sequence: int
    reconciled_incarnation: int
    read_ms: float
    read_bytes_per_second: float


@dataclass(frozen=True, slots=True)
class KeyRow:
    server_id: int
    key_id: int
    key: bytes
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What a server's heartbeats of the last flush interval amount to."""

    server_id: int
    seen_at_ms: int
    reported: str
    load: float
    in_flight: int
    restart_until_ms: int


_SERVER_COLUMNS = [
    _servers.c.id, _servers.c.name, _servers.c.role, _servers.c.url, _servers.c.site_id, _servers.c.instance,
    _servers.c.incarnation, _servers.c.failure_domain, _servers.c.software, _servers.c.secret_sha256,
    _servers.c.state, _servers.c.joined_at_ms, _servers.c.seen_at_ms, _servers.c.reported,
    _servers.c.restart_until_ms, _servers.c.load, _servers.c.in_flight,
]  # fmt: skip
_DEVICE_COLUMNS = [
    _devices.c.id, _devices.c.uuid, _devices.c.server_id, _devices.c.tier, _devices.c.path,
    _devices.c.capacity_bytes, _devices.c.used_bytes, _devices.c.trash_bytes, _devices.c.garbage_bytes,
    _devices.c.state, _devices.c.health, _devices.c.detail, _devices.c.chunks, _devices.c.seen_sequence,
    _devices.c.reconciled_incarnation, _devices.c.read_ms, _devices.c.read_bytes_per_second,
]  # fmt: skip
# Built once: each result of a copy asks for both.
_SERVER_BY_ID = Statement(sa.select(*_SERVER_COLUMNS).where(_servers.c.id == sa.bindparam("server_id")))
_LOCK_DEVICE = Statement(
    sa.select(*_DEVICE_COLUMNS).where(_devices.c.id == sa.bindparam("device_id")).with_for_update()
)


def all_servers(connection: sa.Connection) -> list[ServerRow]:
    """Every server that was ever registered, removed ones too (a chunk may still name their devices)."""
    return [ServerRow(*row) for row in connection.execute(sa.select(*_SERVER_COLUMNS).order_by(_servers.c.id))]


def all_devices(connection: sa.Connection) -> list[DeviceRow]:
    """Every device that was ever granted an id."""
    return [DeviceRow(*row) for row in connection.execute(sa.select(*_DEVICE_COLUMNS).order_by(_devices.c.id))]


def server_by_name(connection: sa.Connection, name: str) -> ServerRow | None:
    """The server of that name, its row locked."""
    query = sa.select(*_SERVER_COLUMNS).where(_servers.c.name == name).with_for_update()
    row = connection.execute(query).first()
    return ServerRow(*row) if row else None


def server_by_id(connection: sa.Connection, server_id: int) -> ServerRow | None:
    """The server with that id."""
    row = _SERVER_BY_ID.first(connection, server_id=server_id)
    return ServerRow(*row) if row else None


def add_server(
    connection: sa.Connection, *, name: str, role: str, url: str, site_id: int, instance: bytes, incarnation: int,
    failure_domain: str, software: str, secret_sha256: bytes, now_ms: int,
) -> int:  # fmt: skip
    """A new server; its id."""
    result = connection.execute(
        sa.insert(_servers)
        .values(
            name=name, role=role, url=url, site_id=site_id, instance=instance, incarnation=incarnation,
            failure_domain=failure_domain, software=software, secret_sha256=secret_sha256, state="up",
            joined_at_ms=now_ms, seen_at_ms=now_ms, reported="up",
        )
        .returning(_servers.c.id)
    )  # fmt: skip
    return int(result.scalar_one())


def change_server(connection: sa.Connection, server_id: int, **values: object) -> None:
    """Overwrite columns of one server."""
    connection.execute(sa.update(_servers).where(_servers.c.id == server_id).values(**values))


def device_by_uuid(connection: sa.Connection, uuid: bytes) -> DeviceRow | None:
    """The device with that uuid, its row locked."""
    row = connection.execute(sa.select(*_DEVICE_COLUMNS).where(_devices.c.uuid == uuid).with_for_update()).first()
    return DeviceRow(*row) if row else None


def lock_device(connection: sa.Connection, device_id: int) -> DeviceRow | None:
    """The device with that id, its row locked: commits that check the device wait, or came before (rule 11)."""
    row = _LOCK_DEVICE.first(connection, device_id=device_id)
    return DeviceRow(*row) if row else None


def add_device(connection: sa.Connection, server_id: int, report: DeviceReport, *, reconciled_incarnation: int) -> int:
    """A new device; its id."""
    result = connection.execute(
        sa.insert(_devices)
        .values(
            uuid=report.uuid, server_id=server_id, reconciled_incarnation=reconciled_incarnation, state="ok",
            **_reported(report),
        )
        .returning(_devices.c.id)
    )  # fmt: skip
    return int(result.scalar_one())


def change_device(connection: sa.Connection, device_id: int, **values: object) -> None:
    """Overwrite columns of one device."""
    connection.execute(sa.update(_devices).where(_devices.c.id == device_id).values(**values))


def report_device(connection: sa.Connection, device_id: int, report: DeviceReport) -> None:
    """Note what a server said of a device."""
    change_device(connection, device_id, **_reported(report))


def _reported(report: DeviceReport) -> dict[str, object]:
    return {
        "tier": report.tier, "path": report.path, "capacity_bytes": report.capacity_bytes,
        "used_bytes": report.used_bytes, "trash_bytes": report.trash_bytes, "garbage_bytes": report.garbage_bytes,
        "health": report.state, "detail": report.detail, "chunks": report.chunks,
        "seen_sequence": report.seen_sequence, "read_ms": report.read_ms,
        "read_bytes_per_second": report.read_bytes_per_second,
    }  # fmt: skip


def note_seen(
    connection: sa.Connection, seen: Sequence[Seen], reports: Iterable[tuple[int, DeviceReport]], *,
    unreconciled: Iterable[int] = (),
) -> None:  # fmt: skip
    """Write what heartbeats brought since the last flush; times only rise (another process may have heard later).

    unreconciled: devices that were away and count again only after an inventory."""
    for device_id in unreconciled:
        change_device(connection, device_id, reconciled_incarnation=0)
    for s in seen:
        connection.execute(
            sa.update(_servers)
            .where(_servers.c.id == s.server_id, _servers.c.seen_at_ms <= s.seen_at_ms)
            .values(
                seen_at_ms=s.seen_at_ms, reported=s.reported, load=s.load, in_flight=s.in_flight,
                restart_until_ms=s.restart_until_ms,
            )
        )  # fmt: skip
    for device_id, report in reports:
        report_device(connection, device_id, report)


def ticket_keys(connection: sa.Connection) -> list[KeyRow]:
    """All ticket keys, oldest first per server."""
    query = sa.select(_keys.c.server_id, _keys.c.key_id, _keys.c.key, _keys.c.created_at_ms)
    return [KeyRow(*row) for row in connection.execute(query.order_by(_keys.c.server_id, _keys.c.created_at_ms))]


def add_ticket_key(connection: sa.Connection, server_id: int, key: bytes, *, now_ms: int, keep: int) -> KeyRow:
    """Add a server's newest key under the next key id and forget all but its `keep` newest."""
    rows = connection.execute(
        sa.select(_keys.c.key_id, _keys.c.created_at_ms)
        .where(_keys.c.server_id == server_id)
        .order_by(_keys.c.created_at_ms.desc(), _keys.c.key_id.desc())
    ).all()
    key_id = rows[0].key_id % 255 + 1 if rows else 1
    forget = [row.key_id for row in rows[max(0, keep - 1) :]] + [key_id]
    connection.execute(sa.delete(_keys).where(_keys.c.server_id == server_id, _keys.c.key_id.in_(forget)))
    upsert(
        connection, _keys, ["server_id", "key_id"],
        {"server_id": server_id, "key_id": key_id, "key": key, "created_at_ms": now_ms, "retires_at_ms": 0},
    )  # fmt: skip
    return KeyRow(server_id, key_id, key, now_ms)


def forget_ticket_keys(connection: sa.Connection, server_id: int) -> None:
    """Drop all keys of a server: nothing it signed before is believed any more."""
    connection.execute(sa.delete(_keys).where(_keys.c.server_id == server_id))


def local_site(connection: sa.Connection) -> tuple[int, str]:
    """(id, name) of this site; (1, "site1") before one was named."""
    query = sa.select(schema.sites.c.id, schema.sites.c.name).where(schema.sites.c.is_local.is_(True))
    row = connection.execute(query).first()
    return (int(row.id), str(row.name)) if row else (1, "site1")


def feed_sequence(connection: sa.Connection) -> int:
    """The sequence of the newest committed change."""
    return int(connection.execute(sa.select(schema.feed_head.c.sequence)).scalar() or 0)
