"""What buckets with a quota hold: one row of `settings` each, "usage:<bucket id>", brought up to date by the commits.

A row is four numbers: objects and bytes as they were counted, and what commits have added since the count began.
Every version that holds bytes counts, delete markers do not. Buckets without a quota have no row and cost nothing.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import sqlalchemy as sa

from metadata.catalog import leases, schema

_NAME: Final = "usage:{}"


class Usage(NamedTuple):
    """objects, bytes: of the bucket now."""

    objects: int
    bytes: int


def load(connection: sa.Connection, bucket_id: int) -> Usage | None:
    """The bucket's usage, its row locked until the transaction ends; None while it was never counted."""
    return _unpacked(leases.lock_setting(connection, _NAME.format(bucket_id)))


def look(connection: sa.Connection, bucket_id: int) -> Usage | None:
    """The same, as it is now; nothing is locked."""
    return _unpacked(leases.setting(connection, _NAME.format(bucket_id)))


def _unpacked(text: str) -> Usage | None:
    if not text:
        return None
    objects, held, objects_since, held_since = map(int, text.split())
    return Usage(objects + objects_since, held + held_since)


def add(connection: sa.Connection, bucket_id: int, *, objects: int, held: int) -> None:
    """A commit made the bucket larger (or smaller) by this much. Nothing while it was never counted."""
    text = leases.lock_setting(connection, _NAME.format(bucket_id))
    if text:
        a, b, c, d = map(int, text.split())
        leases.set_setting(connection, _NAME.format(bucket_id), f"{a} {b} {c + objects} {d + held}")


def begin_count(connection: sa.Connection, bucket_id: int) -> None:
    """From now on, what commits add counts beside the count that is about to be made."""
    text = leases.lock_setting(connection, _NAME.format(bucket_id)) or "0 0 0 0"
    a, b, c, d = map(int, text.split())
    leases.set_setting(connection, _NAME.format(bucket_id), f"{a + c} {b + d} 0 0")


def end_count(connection: sa.Connection, bucket_id: int, counted: Usage) -> None:
    """The count is there: it takes the place of the old one."""
    text = leases.lock_setting(connection, _NAME.format(bucket_id))
    if text:
        since = text.split()[2:]
        leases.set_setting(connection, _NAME.format(bucket_id), f"{counted.objects} {counted.bytes} {' '.join(since)}")


def forget(connection: sa.Connection, bucket_id: int) -> None:
    """The quota is gone: its bucket is no longer counted."""
    leases.set_setting(connection, _NAME.format(bucket_id), "")


def count(connection: sa.Connection, bucket_id: int) -> Usage:
    """A scan of the bucket's rows, old versions too."""
    objects = held = 0
    for table in (schema.objects, schema.versions):
        row = connection.execute(
            sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(table.c.size), 0)).where(
                table.c.bucket_id == bucket_id, table.c.kind != schema.KIND_MARKER
            )
        ).one()
        objects, held = objects + int(row[0]), held + int(row[1])
    return Usage(objects, held)
