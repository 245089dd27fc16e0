"""Writing the catalog out: the dump that backups and snapshots are made of, and the journal of what changed behind one
(their form: snapshot_frames.py). A dump of SQLite loads into PostgreSQL.

Applying the same journal twice gives the same rows; journals are applied in order, each whole.

Cost: about 3 us a row; a page of PAGE_ROWS rows in memory.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from metadata.catalog import feed, schema
from metadata.catalog.among import among
from metadata.catalog.snapshot_frames import CHANGES, END, GONE, GONE_VERSIONS, LONG, MAGIC, SMALL, TABLES, frame, pages
from metadata.catalog.snapshot_load import count_objects
from tierstore.errors import ConflictError

KEYS_AT_ONCE: Final = 500
#: Feed entries younger than this go into a dump, so that a rebuild knows what was deleted just before.
CHANGES_MS: Final = 3_600_000

#: Columns that change with every heartbeat: no reason to journal a table.
_VOLATILE: Final = frozenset({
    "seen_at_ms", "load", "in_flight", "used_bytes", "trash_bytes", "garbage_bytes", "chunks", "seen_sequence",
    "read_ms", "read_bytes_per_second", "capacity_bytes",
})  # fmt: skip


def dump(connection: sa.Connection, *, at_ms: int) -> Iterator[bytes]:
    """The whole catalog as this transaction sees it."""
    yield MAGIC
    sequence, _ = feed.head(connection)
    totals: dict[str, int] = {}
    for table in TABLES:
        columns = [column.name for column in table.columns]
        for rows in pages(connection, table):
            totals[table.name] = totals.get(table.name, 0) + len(rows)
            yield frame(table.name, columns, rows)
    recent = sa.select(schema.changes).where(schema.changes.c.at_ms >= at_ms - CHANGES_MS)
    recent = recent.order_by(schema.changes.c.sequence).limit(1_000_000)
    yield frame(CHANGES, [], [list(row) for row in connection.execute(recent)])
    yield _end(connection, sequence, at_ms, totals)


def dump_to(connection: sa.Connection, target: Path, *, at_ms: int) -> int:
    """Dump into a new file, synced with its directory; the number of objects. Raises ConflictError if it exists."""
    try:
        with open(target, "xb") as file:
            for piece in dump(connection, at_ms=at_ms):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise ConflictError(f"{target} exists already", code="file-exists") from None
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return count_objects(connection)


def _end(connection: sa.Connection, sequence: int, at_ms: int, totals: dict[str, int]) -> bytes:
    query = sa.select(schema.settings.c.value).where(schema.settings.c.name == "cluster_id")
    cluster_id = connection.execute(query).scalar()
    return frame(END, ["sequence", "at_ms", "cluster_id", "totals"], [sequence, at_ms, cluster_id or "", totals])


def small_digest(connection: sa.Connection) -> int:
    """Changes when a small table changed in more than what heartbeats bring."""
    digest = 0
    for table in SMALL:
        steady = [column for column in table.columns if column.name not in _VOLATILE]
        for row in connection.execute(sa.select(*steady).order_by(*table.primary_key.columns)):
            digest = zlib.crc32(msgspec.msgpack.encode([str(table.name), list(row)]), digest)
    return digest


def journal(
    connection: sa.Connection, *, after: int, limit: int, at_ms: int, with_small: bool
) -> tuple[int, bool, Iterator[bytes]]:
    """(sequence reached, whether more changes wait, frames) of the changes behind a sequence."""
    changes = feed.read(connection, after, limit)
    reached = changes[-1].sequence if changes else after
    return reached, len(changes) == limit, _journal(connection, changes, reached, at_ms, with_small)


def _journal(
    connection: sa.Connection, changes: list[feed.Change], reached: int, at_ms: int, with_small: bool
) -> Iterator[bytes]:
    yield MAGIC
    totals: dict[str, int] = {}

    def counted(table: sa.Table, rows: list[list[Any]]) -> bytes:
        totals[table.name] = totals.get(table.name, 0) + len(rows)
        return frame(table.name, [column.name for column in table.columns], rows)

    small_changes = (schema.CHANGE_BUCKET, schema.CHANGE_CREDENTIAL, schema.CHANGE_POLICY)
    if with_small or any(c.kind in small_changes for c in changes):
        for table in SMALL:
            yield counted(table, [list(row) for row in connection.execute(sa.select(table))])
    named: dict[tuple[int, str], set[int]] = {}
    shared: set[bytes] = set()
    for c in changes:
        if c.kind <= schema.CHANGE_SHARED:
            named.setdefault((c.bucket_id, c.key), set()).add(c.version)
        elif c.kind == schema.CHANGE_CHUNK:
            shared.add(bytes.fromhex(c.key))
    latest, older, gone, gone_versions, bodies = _images(connection, named)
    yield counted(schema.objects, latest)
    yield counted(schema.versions, older)
    yield frame(GONE, ["bucket_id", "key"], gone)
    yield frame(GONE_VERSIONS, ["bucket_id", "key", "version"], gone_versions)
    e, k = schema.extents, schema.chunks
    for body in sorted(bodies):
        rows = [list(row) for row in connection.execute(sa.select(e).where(e.c.body_id == body))]
        shared.update(bytes(row[2]) for row in rows)
        yield counted(e, rows)
    wanted = sorted(shared)
    for at in range(0, len(wanted), 500):
        some = sa.select(k).where(among(k.c.id, wanted[at : at + 500]))
        yield counted(k, [list(r) for r in connection.execute(some)])
    yield frame(CHANGES, [], [[c.sequence, c.at_ms, c.kind, c.bucket_id, c.key, c.version] for c in changes])
    yield _end(connection, reached, at_ms, totals)


def _images(
    connection: sa.Connection, named: dict[tuple[int, str], set[int]]
) -> tuple[list[list[Any]], list[list[Any]], list[list[Any]], list[list[Any]], set[int]]:
    """The rows of changed keys as they are now, and what is gone of them."""
    latest: list[list[Any]] = []
    older: list[list[Any]] = []
    gone: list[list[Any]] = []
    gone_versions: list[list[Any]] = []
    bodies: set[int] = set()
    v = schema.versions
    present, many = _present(connection, named)
    for (bucket_id, key), version_ids in named.items():
        row = present.get((bucket_id, key))
        found = [row] if row is not None else []
        if row is None:
            gone.append([bucket_id, key])
        else:
            latest.append(list(row))
        if (bucket_id, key) not in many:        # the usual case: no version but the latest, nothing to ask for
            absent = version_ids - ({row.version} if row is not None else set())
            gone_versions += [[bucket_id, key, i] for i in sorted(absent)]
            bodies.update(int(r.ref) for r in found if r.kind in LONG and r.ref is not None)
            continue
        # Every put moves the version before it: as many as were named, and the one that was the latest before.
        newest = (
            sa.select(v).where(v.c.bucket_id == bucket_id, v.c.key == key).order_by(v.c.version.desc())
            .limit(len(version_ids) + 2)
        )  # fmt: skip
        rows = list(connection.execute(newest))
        absent = version_ids - {r.version for r in rows} - ({row.version} if row is not None else set())
        if absent:
            query = sa.select(v).where(v.c.bucket_id == bucket_id, v.c.key == key, among(v.c.version, sorted(absent)))
            more = list(connection.execute(query))
            rows += more
            gone_versions += [[bucket_id, key, i] for i in sorted(absent - {r.version for r in more})]
        older += [list(r) for r in rows]
        bodies.update(int(r.ref) for r in [*found, *rows] if r.kind in LONG and r.ref is not None)
    return latest, older, gone, gone_versions, bodies


def _present(
    connection: sa.Connection, named: Iterable[tuple[int, str]]
) -> tuple[dict[tuple[int, str], sa.Row[Any]], set[tuple[int, str]]]:
    """The latest rows of these keys, and which of the keys have other versions; three statements per KEYS_AT_ONCE."""
    o, v = schema.objects, schema.versions
    present: dict[tuple[int, str], sa.Row[Any]] = {}
    many: set[tuple[int, str]] = set()
    by_bucket: dict[int, list[str]] = {}
    for bucket_id, key in named:
        by_bucket.setdefault(bucket_id, []).append(key)
    for bucket_id, keys in by_bucket.items():
        keys.sort()
        for at in range(0, len(keys), KEYS_AT_ONCE):
            part = keys[at : at + KEYS_AT_ONCE]
            rows = connection.execute(sa.select(o).where(o.c.bucket_id == bucket_id, among(o.c.key, part))).all()
            present.update({(bucket_id, row.key): row for row in rows})
            # Asked per key and not of the versions themselves, of which a key may have very many.
            has_others = sa.exists().where(v.c.bucket_id == o.c.bucket_id, v.c.key == o.c.key)
            query = sa.select(o.c.key).where(o.c.bucket_id == bucket_id, among(o.c.key, part), has_others)
            many.update((bucket_id, key) for (key,) in connection.execute(query))
            gone = [key for key in part if (bucket_id, key) not in present]
            if gone:
                query = sa.select(v.c.key).distinct().where(v.c.bucket_id == bucket_id, among(v.c.key, gone))
                many.update((bucket_id, key) for (key,) in connection.execute(query))
    return present, many
