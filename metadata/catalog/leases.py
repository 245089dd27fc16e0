"""Leases of single-runner duties and the settings that duties keep. One function, one sentence, one transaction of
the caller. Times are judged by the catalog: the database's clock on PostgreSQL (several processes, several clocks),
the process' own on SQLite (there is only one process).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from metadata.catalog import schema
from metadata.catalog.statement import Statement
from tierstore.errors import ConflictError

#: What transactions are given; services name it without importing SQLAlchemy.
Connection = sa.Connection

#: Rows of this table that say which metadata processes live: this and their address.
PROCESS: Final = "metadata "
PROCESSES_MAX: Final = 64
#: Rows that say which mounts live: this, the bucket's id and the mount's name.
MOUNT: Final = "mount:"

_leases = schema.leases
_settings = schema.settings
# Built once: duties run these with every step.
_SETTING = Statement(sa.select(_settings.c.value).where(_settings.c.name == sa.bindparam("setting")))
_EPOCH = Statement(
    sa.select(_leases.c.epoch).where(_leases.c.name == sa.bindparam("lease")).with_for_update(read=True)
)
_MOUNTS = Statement(
    sa.select(_leases.c.name).where(
        _leases.c.name.startswith(sa.bindparam("prefix")), _leases.c.until_ms > sa.bindparam("now_ms")
    )
)


@dataclass(frozen=True, slots=True)
class LeaseRow:
    holder: str
    epoch: int
    until_ms: int
    url: str


def catalog_now_ms(connection: sa.Connection, clock_ms: int) -> int:
    """Catalog time, ms since 1970."""
    if connection.dialect.name != "postgresql":
        return clock_ms
    seconds = connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()
    return int(seconds * 1000)


def upsert(connection: sa.Connection, table: sa.Table, key: list[str], values: dict[str, object]) -> None:
    """Insert a row or overwrite the non-key columns of the one with that key."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as pg_insert

        pg = pg_insert(table).values(**values)
        connection.execute(
            pg.on_conflict_do_update(
                index_elements=key, set_={name: pg.excluded[name] for name in values if name not in key}
            )
        )
        return
    from sqlalchemy.dialects.sqlite import insert as sqlite_insert

    lite = sqlite_insert(table).values(**values)
    connection.execute(
        lite.on_conflict_do_update(
            index_elements=key, set_={name: lite.excluded[name] for name in values if name not in key}
        )
    )


def insert_new(connection: sa.Connection, table: sa.Table, rows: list[dict[str, object]]) -> None:
    """Insert rows, leaving those alone whose key is already there."""
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as pg_insert

        connection.execute(pg_insert(table).on_conflict_do_nothing(), rows)
        return
    connection.execute(sa.insert(table).prefix_with("OR IGNORE", dialect="sqlite"), rows)


def take(
    connection: sa.Connection, name: str, *, holder: str, url: str, clock_ms: int, lease_ms: int
) -> LeaseRow:
    """Renew the lease if it is the holder's, take it with the next epoch if it has lapsed, else leave it; the row."""
    now_ms = catalog_now_ms(connection, clock_ms)
    insert_new(connection, _leases, [{"name": name, "holder": "", "epoch": 0, "until_ms": 0, "url": ""}])
    row = connection.execute(sa.select(_leases).where(_leases.c.name == name).with_for_update()).one()
    if row.holder != holder and row.until_ms > now_ms:
        return LeaseRow(row.holder, row.epoch, row.until_ms, row.url)
    # A holder that comes back after its lease lapsed gets a new epoch too: somebody else may have acted in between.
    is_renewal = row.holder == holder and row.until_ms > now_ms
    taken = LeaseRow(holder, row.epoch if is_renewal else row.epoch + 1, now_ms + lease_ms, url)
    connection.execute(
        sa.update(_leases)
        .where(_leases.c.name == name)
        .values(holder=holder, epoch=taken.epoch, until_ms=taken.until_ms, url=url)
    )
    return taken


def release(connection: sa.Connection, name: str, *, holder: str, epoch: int) -> None:
    """Let the lease lapse now, if it is still the holder's."""
    connection.execute(
        sa.update(_leases)
        .where(_leases.c.name == name, _leases.c.holder == holder, _leases.c.epoch == epoch)
        .values(until_ms=0)
    )


def note_process(connection: sa.Connection, *, holder: str, url: str, clock_ms: int, lease_ms: int) -> list[str]:
    """Note that the metadata process at this address lives, and forget those that lapsed; the addresses of all."""
    now_ms = catalog_now_ms(connection, clock_ms)
    row = {"name": PROCESS + url, "holder": holder, "epoch": 0, "until_ms": now_ms + lease_ms, "url": url}
    upsert(connection, _leases, ["name"], row)
    is_process = _leases.c.name.startswith(PROCESS, autoescape=True)
    connection.execute(sa.delete(_leases).where(is_process, _leases.c.until_ms < now_ms))
    query = sa.select(_leases.c.url).where(is_process).order_by(_leases.c.name).limit(PROCESSES_MAX)
    return [str(found) for found in connection.execute(query).scalars()]


def forget_process(connection: sa.Connection, *, holder: str, url: str) -> None:
    """This process stops; its successor at the same address may have noted itself already."""
    connection.execute(sa.delete(_leases).where(_leases.c.name == PROCESS + url, _leases.c.holder == holder))


def mount_lease(bucket_id: int, mount: str) -> str:
    """The name of a mount's lease."""
    return f"{MOUNT}{bucket_id}:{mount}"


def live_mounts(connection: sa.Connection, bucket_id: int, *, now_ms: int) -> frozenset[str]:
    """The mounts whose leases run; bucket_id 0: of all buckets."""
    prefix = mount_lease(bucket_id, "") if bucket_id else MOUNT
    return frozenset(row[0].rpartition(":")[2] for row in _MOUNTS.rows(connection, prefix=prefix, now_ms=now_ms))


def forget_mounts(connection: sa.Connection, *, before_ms: int) -> None:
    """Drop the rows of mounts whose leases ended before that time."""
    is_mount = _leases.c.name.startswith(MOUNT, autoescape=True)
    connection.execute(sa.delete(_leases).where(is_mount, _leases.c.until_ms < before_ms))


def require_epoch(connection: sa.Connection, name: str, epoch: int) -> None:
    """Raise ConflictError(code="lease-lost") unless the lease's epoch is this one; locks the row to the end.

    epoch 0 stands for callers that run under no lease (operators, one-process commands)."""
    if epoch == 0:
        return
    row = _EPOCH.first(connection, lease=name)
    if row is None or row[0] != epoch:
        raise ConflictError(f"the lease {name!r} has another epoch than {epoch}", code="lease-lost")


def setting(connection: sa.Connection, name: str, default: str = "") -> str:
    """The text of a setting."""
    row = _SETTING.first(connection, setting=name)
    return default if row is None else str(row[0])


def settings_like(connection: sa.Connection, prefix: str) -> dict[str, str]:
    """All settings whose name starts with a prefix."""
    rows = connection.execute(sa.select(_settings).where(_settings.c.name.startswith(prefix, autoescape=True)))
    return {row.name: row.value for row in rows}


def set_setting(connection: sa.Connection, name: str, value: str) -> None:
    """Write a setting."""
    upsert(connection, _settings, ["name"], {"name": name, "value": value})


def lock_setting(connection: sa.Connection, name: str) -> str:
    """The text of a setting, its row locked; "" when there is none."""
    query = sa.select(_settings.c.value).where(_settings.c.name == name).with_for_update()
    return str(connection.execute(query).scalar() or "")


def change_setting(connection: sa.Connection, name: str, change: Callable[[str], str]) -> str:
    """Read a setting under its row's lock, change it, write it back; the new text."""
    insert_new(connection, _settings, [{"name": name, "value": ""}])
    query = sa.select(_settings.c.value).where(_settings.c.name == name).with_for_update()
    new = change(str(connection.execute(query).scalar_one()))
    connection.execute(sa.update(_settings).where(_settings.c.name == name).values(value=new))
    return new
