"""The catalog as a stream of bytes and back: the dump that backups and snapshots are made of, and the journal of what
changed behind one. Independent of the engine (a dump of SQLite loads into PostgreSQL).

    dump    = magic "TSCAT1\\n\\0", then frames; the last frame is the end frame with the totals
    frame   = u32 length, u32 CRC32C, payload (zlib of MessagePack: [table, columns, rows])
    journal = the same frames: rows as they are after the changes, keys of rows that are gone, the changes themselves

What is derived or short-lived is left out: placements (made anew by `reindex`), jobs, leases, pins. Applying the same
journal twice gives the same rows; journals are applied in order, each whole.

Cost: about 3 us a row to dump, 10 us to load; a page of PAGE_ROWS rows in memory.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from crc32c import crc32c

from metadata.catalog import feed, schema
from metadata.catalog.leases import upsert
from metadata.catalog.packed import unpack, unpack_replicas
from tierstore.errors import ConflictError, IntegrityError

MAGIC: Final = b"TSCAT1\n\0"
FRAME: Final = struct.Struct("<II")
PAGE_ROWS: Final = 1000
KEYS_AT_ONCE: Final = 500
FRAME_BYTES_MAX: Final = 256 << 20
END: Final = ""
GONE: Final = "-objects"          # frames of a journal: keys (bucket id, key) without a latest row
GONE_VERSIONS: Final = "-versions"
CHANGES: Final = "+changes"       # the feed's entries, for the tombstones among them
#: Feed entries younger than this go into a dump, so that a rebuild knows what was deleted just before.
CHANGES_MS: Final = 3_600_000

#: In the order in which they are loaded.
TABLES: Final[tuple[sa.Table, ...]] = (
    schema.settings, schema.feed_head, schema.sites, schema.servers, schema.devices, schema.ticket_keys,
    schema.buckets, schema.credentials, schema.policies, schema.objects, schema.versions, schema.extents,
    schema.chunks, schema.garbage, schema.condemned_uploads, schema.upload_leases, schema.multipart_uploads,
    schema.multipart_parts, schema.operations, schema.audit, schema.replication_queue,
)  # fmt: skip
#: Small tables that a journal carries whole when they changed.
SMALL: Final[tuple[sa.Table, ...]] = (
    schema.sites, schema.servers, schema.devices, schema.ticket_keys, schema.buckets, schema.credentials,
    schema.policies,
)  # fmt: skip
#: Columns that change with every heartbeat: no reason to journal a table.
_VOLATILE: Final = frozenset({
    "seen_at_ms", "load", "in_flight", "used_bytes", "trash_bytes", "garbage_bytes", "chunks", "seen_sequence",
    "read_ms", "read_bytes_per_second", "capacity_bytes",
})  # fmt: skip
#: Kinds of rows whose body stands in `extents`.
_LONG: Final = frozenset({schema.KIND_ROWS, schema.KIND_REMOTE})
#: Settings that belong to one catalog's life, not to its content.
_OWN_SETTINGS: Final = frozenset({"placements_sequence", "placements_garbage_id"})
#: Setting "sequence,at_ms" of a restored catalog: as long as the feed stands there, nothing was written since.
RESTORED: Final = "restored"
_BY_NAME: Final = {table.name: table for table in TABLES}


@dataclass(slots=True)
class Loaded:
    """What a dump or journal held. sequence: the feed's, up to which it goes; at_ms: when it was made."""

    sequence: int = 0
    at_ms: int = 0
    cluster_id: str = ""
    rows: dict[str, int] = field(default_factory=dict)
    #: (bucket id, key) -> catalog ms of the newest deletion; bucket name -> catalog ms of its newest change.
    tombstones: dict[tuple[int, str], int] = field(default_factory=dict)
    bucket_changes: dict[str, int] = field(default_factory=dict)


def _frame(table: str, columns: list[str], rows: list[Any]) -> bytes:
    # SQLAlchemy's names may be a subclass of str, which MessagePack does not take.
    payload = zlib.compress(msgspec.msgpack.encode([str(table), [str(c) for c in columns], rows]), 1)
    return FRAME.pack(len(payload), crc32c(payload)) + payload


def _pages(connection: sa.Connection, table: sa.Table) -> Iterator[list[list[Any]]]:
    """All rows in pages, by primary key: each page is a range, so no long cursor holds the catalog."""
    keys = list(table.primary_key.columns)
    last: list[Any] | None = None
    while True:
        query = sa.select(table).order_by(*keys).limit(PAGE_ROWS)
        if last is not None:
            bound = [sa.literal(value, key.type) for value, key in zip(last, keys, strict=True)]
            query = query.where(sa.tuple_(*keys) > sa.tuple_(*bound))
        rows = [list(row) for row in connection.execute(query)]
        if not rows:
            return
        yield rows
        names = [column.name for column in table.columns]
        last = [rows[-1][names.index(key.name)] for key in keys]


def dump(connection: sa.Connection, *, at_ms: int) -> Iterator[bytes]:
    """The whole catalog as this transaction sees it."""
    yield MAGIC
    sequence, _ = feed.head(connection)
    totals: dict[str, int] = {}
    for table in TABLES:
        columns = [column.name for column in table.columns]
        for rows in _pages(connection, table):
            totals[table.name] = totals.get(table.name, 0) + len(rows)
            yield _frame(table.name, columns, rows)
    recent = sa.select(schema.changes).where(schema.changes.c.at_ms >= at_ms - CHANGES_MS)
    recent = recent.order_by(schema.changes.c.sequence).limit(1_000_000)
    yield _frame(CHANGES, [], [list(row) for row in connection.execute(recent)])
    yield _end(connection, sequence, at_ms, totals)


def dump_to(connection: sa.Connection, target: Path, *, at_ms: int) -> int:
    """Dump into a new file, synced with its directory; the number of objects. Raises ConflictError if it exists."""
    try:
        with open(target, "xb") as file:
            for frame in dump(connection, at_ms=at_ms):
                file.write(frame)
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


def restore(connection: sa.Connection, data: bytes) -> int:
    """Load a dump into an empty catalog and make it ready; the number of objects.

    The feed goes on where the dump ended: devices that saw more bar every deletion (rule 1)."""
    if not is_empty(connection):
        raise ConflictError("this catalog has buckets or objects; restore into an empty one", code="catalog-not-empty")
    loaded = load(connection, data)
    settle(connection, sequence=loaded.sequence, version=0)
    value = f"{feed.head(connection)[0]},{loaded.at_ms}"
    upsert(connection, schema.settings, ["name"], {"name": RESTORED, "value": value})
    return count_objects(connection)


def _end(connection: sa.Connection, sequence: int, at_ms: int, totals: dict[str, int]) -> bytes:
    query = sa.select(schema.settings.c.value).where(schema.settings.c.name == "cluster_id")
    cluster_id = connection.execute(query).scalar()
    return _frame(END, ["sequence", "at_ms", "cluster_id", "totals"], [sequence, at_ms, cluster_id or "", totals])


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

    def frame(table: sa.Table, rows: list[list[Any]]) -> bytes:
        totals[table.name] = totals.get(table.name, 0) + len(rows)
        return _frame(table.name, [column.name for column in table.columns], rows)

    small_changes = (schema.CHANGE_BUCKET, schema.CHANGE_CREDENTIAL, schema.CHANGE_POLICY)
    if with_small or any(c.kind in small_changes for c in changes):
        for table in SMALL:
            yield frame(table, [list(row) for row in connection.execute(sa.select(table))])
    named: dict[tuple[int, str], set[int]] = {}
    shared: set[bytes] = set()
    for c in changes:
        if c.kind <= schema.CHANGE_SHARED:
            named.setdefault((c.bucket_id, c.key), set()).add(c.version)
        elif c.kind == schema.CHANGE_CHUNK:
            shared.add(bytes.fromhex(c.key))
    latest, older, gone, gone_versions, bodies = _images(connection, named)
    yield frame(schema.objects, latest)
    yield frame(schema.versions, older)
    yield _frame(GONE, ["bucket_id", "key"], gone)
    yield _frame(GONE_VERSIONS, ["bucket_id", "key", "version"], gone_versions)
    e, k = schema.extents, schema.chunks
    for body in sorted(bodies):
        rows = [list(row) for row in connection.execute(sa.select(e).where(e.c.body_id == body))]
        shared.update(bytes(row[2]) for row in rows)
        yield frame(e, rows)
    wanted = sorted(shared)
    for at in range(0, len(wanted), 500):
        yield frame(k, [list(r) for r in connection.execute(sa.select(k).where(k.c.id.in_(wanted[at : at + 500])))])
    yield _frame(CHANGES, [], [[c.sequence, c.at_ms, c.kind, c.bucket_id, c.key, c.version] for c in changes])
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
            bodies.update(int(r.ref) for r in found if r.kind in _LONG and r.ref is not None)
            continue
        # Every put moves the version before it: as many as were named, and the one that was the latest before.
        newest = (
            sa.select(v).where(v.c.bucket_id == bucket_id, v.c.key == key).order_by(v.c.version.desc())
            .limit(len(version_ids) + 2)
        )  # fmt: skip
        rows = list(connection.execute(newest))
        absent = version_ids - {r.version for r in rows} - ({row.version} if row is not None else set())
        if absent:
            query = sa.select(v).where(v.c.bucket_id == bucket_id, v.c.key == key, v.c.version.in_(sorted(absent)))
            more = list(connection.execute(query))
            rows += more
            gone_versions += [[bucket_id, key, i] for i in sorted(absent - {r.version for r in more})]
        older += [list(r) for r in rows]
        bodies.update(int(r.ref) for r in [*found, *rows] if r.kind in _LONG and r.ref is not None)
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
            rows = connection.execute(sa.select(o).where(o.c.bucket_id == bucket_id, o.c.key.in_(part))).all()
            present.update({(bucket_id, row.key): row for row in rows})
            # Asked per key and not of the versions themselves, of which a key may have very many.
            has_others = sa.exists().where(v.c.bucket_id == o.c.bucket_id, v.c.key == o.c.key)
            query = sa.select(o.c.key).where(o.c.bucket_id == bucket_id, o.c.key.in_(part), has_others)
            many.update((bucket_id, key) for (key,) in connection.execute(query))
            gone = [key for key in part if (bucket_id, key) not in present]
            if gone:
                query = sa.select(v.c.key).distinct().where(v.c.bucket_id == bucket_id, v.c.key.in_(gone))
                many.update((bucket_id, key) for (key,) in connection.execute(query))
    return present, many


def frames_of(data: bytes | memoryview) -> Iterator[tuple[str, list[str], list[Any]]]:
    """The frames of a dump or journal. Raises IntegrityError(code="bad-snapshot") for anything torn or changed."""
    view = memoryview(data)
    if bytes(view[: len(MAGIC)]) != MAGIC:
        raise IntegrityError("this is no dump of a catalog", code="bad-snapshot")
    at = len(MAGIC)
    is_ended = False
    while at < len(view):
        if is_ended or at + FRAME.size > len(view):
            raise IntegrityError(f"the dump is torn at byte {at}", code="bad-snapshot")
        size, crc = FRAME.unpack_from(view, at)
        payload = view[at + FRAME.size : at + FRAME.size + size]
        if len(payload) != size or size > FRAME_BYTES_MAX or crc32c(payload) != crc:
            raise IntegrityError(f"the dump is torn or changed at byte {at}", code="bad-snapshot")
        table, columns, rows = msgspec.msgpack.decode(zlib.decompress(payload), type=tuple[str, list[str], list[Any]])
        is_ended = table == END
        yield table, columns, rows
        at += FRAME.size + size
    if not is_ended:
        raise IntegrityError("the dump has no end", code="bad-snapshot")


def load(connection: sa.Connection, data: bytes | memoryview) -> Loaded:
    """Replace the whole catalog by a dump. The caller reindexes afterwards. Raises IntegrityError."""
    for table in reversed(TABLES):
        connection.execute(sa.delete(table))
    for table in (schema.placements, schema.jobs, schema.pins, schema.changes):
        connection.execute(sa.delete(table))
    loaded = Loaded()
    for name, columns, rows in frames_of(data):
        if not _note(loaded, name, rows) and rows:
            connection.execute(sa.insert(_BY_NAME[name]), [dict(zip(columns, row, strict=True)) for row in rows])
            loaded.rows[name] = loaded.rows.get(name, 0) + len(rows)
    return loaded


def apply(connection: sa.Connection, data: bytes | memoryview) -> Loaded:
    """Bring a loaded catalog forward by one journal. Raises IntegrityError."""
    loaded = Loaded()
    for name, columns, rows in frames_of(data):
        if name == GONE:
            _delete_rows(connection, schema.objects, columns, rows)
        elif name == GONE_VERSIONS:
            _delete_rows(connection, schema.versions, columns, rows)
        elif not _note(loaded, name, rows):
            table = _BY_NAME[name]
            if table in SMALL:
                connection.execute(sa.delete(table))
            keys = [column.name for column in table.primary_key.columns]
            if table is schema.objects:
                # A version that is the latest again, or was moved, must not stand in both tables.
                moved = [[row[columns.index(k)] for k in ("bucket_id", "key", "version")] for row in rows]
                _delete_rows(connection, schema.versions, ["bucket_id", "key", "version"], moved)
            for row in rows:
                upsert(connection, table, keys, dict(zip(columns, row, strict=True)))
            loaded.rows[name] = loaded.rows.get(name, 0) + len(rows)
    return loaded


def _note(loaded: Loaded, name: str, rows: list[Any]) -> bool:
    """Take what is no table's; True when it was."""
    if name == END:
        loaded.sequence, loaded.at_ms, loaded.cluster_id = int(rows[0]), int(rows[1]), str(rows[2])
        return True
    if name == CHANGES:
        deletions = (schema.CHANGE_DELETE, schema.CHANGE_MARKER)
        for _, at_ms, kind, bucket_id, key, _ in rows:      # in the order of the feed: the newest stays
            if kind in deletions:
                loaded.tombstones[int(bucket_id), str(key)] = int(at_ms)
            elif kind == schema.CHANGE_BUCKET:
                loaded.bucket_changes[str(key)] = int(at_ms)
        return True
    return False


def _delete_rows(connection: sa.Connection, table: sa.Table, columns: list[str], rows: Iterable[list[Any]]) -> None:
    for row in rows:
        same = [table.c[name] == value for name, value in zip(columns, row, strict=True)]
        connection.execute(sa.delete(table).where(*same))


def settle(connection: sa.Connection, *, sequence: int, version: int) -> None:
    """Make a loaded catalog ready: counts of shared chunks from their extents, the reverse table anew, the feed and
    the version clock above everything that was seen anywhere."""
    e, k = schema.extents.c, schema.chunks
    bodies = sa.union(
        *(sa.select(t.c.ref).where(t.c.kind.in_(_LONG), t.c.ref.is_not(None))
          for t in (schema.objects, schema.versions)),
    )  # fmt: skip
    connection.execute(sa.delete(schema.extents).where(e.body_id.not_in(bodies)))
    count = sa.select(sa.func.count()).where(e.chunk_id == k.c.id).scalar_subquery()
    connection.execute(sa.update(k).values(refcount=count))
    # What nothing names is left to the inventories: they condemn before they delete.
    connection.execute(sa.delete(k).where(k.c.refcount == 0))
    h = schema.feed_head
    connection.execute(
        sa.update(h).values(
            sequence=sa.case((h.c.sequence < sequence, sequence), else_=h.c.sequence),
            version=sa.case((h.c.version < version, version), else_=h.c.version),
        )
    )
    connection.execute(sa.delete(schema.settings).where(schema.settings.c.name.in_(_OWN_SETTINGS)))
    reindex(connection)
    connection.execute(sa.update(schema.devices).values(reconciled_incarnation=0))


def reindex(connection: sa.Connection) -> int:
    """Make the reverse table anew from all rows and set its mark to the feed's head; how many entries."""
    p = schema.placements
    connection.execute(sa.delete(p))
    total = 0
    for table in (schema.objects, schema.versions):
        names = [column.name for column in table.columns]
        owner = ("bucket_id", "key", "version")
        at = {name: names.index(name) for name in (*owner, "kind", "body")}
        for rows in _pages(connection, table):
            found: dict[tuple[int, bytes], tuple[Any, ...]] = {
                (replica.device, chunk.id): (*(row[at[name]] for name in owner), chunk.chunk_bytes)
                for row in rows if row[at["kind"]] == schema.KIND_INLINE and row[at["body"]]
                for chunk in unpack(row[at["body"]])
                for replica in chunk.replicas
            }  # fmt: skip
            total += _place(connection, found)
    for rows in _pages(connection, schema.chunks):
        found_chunks: dict[tuple[int, bytes], tuple[Any, ...]] = {
            (replica.device, bytes(row[0])): (None, None, None, row[1])
            for row in rows for replica in unpack_replicas(row[5])
        }  # fmt: skip
        total += _place(connection, found_chunks)
    sequence, _ = feed.head(connection)
    upsert(connection, schema.settings, ["name"], {"name": "placements_sequence", "value": str(sequence)})
    return total


def _place(connection: sa.Connection, found: dict[tuple[int, bytes], tuple[Any, ...]]) -> int:
    if found:
        connection.execute(
            sa.insert(schema.placements),
            [
                {"device_id": device, "chunk_id": chunk, "bucket_id": b, "key": key, "version": v, "chunk_bytes": size}
                for (device, chunk), (b, key, v, size) in found.items()
            ],
        )
    return len(found)


def is_empty(connection: sa.Connection) -> bool:
    """Whether the catalog names no object and no bucket: it may be replaced."""
    return all(
        connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first() is None
        for table in (schema.objects, schema.versions, schema.buckets)
    )


def count_objects(connection: sa.Connection) -> int:
    """How many keys have a latest version."""
    return int(connection.execute(sa.select(sa.func.count()).select_from(schema.objects)).scalar_one())


def named_chunks(connection: sa.Connection, chunks: Iterable[bytes]) -> set[bytes]:
    """Those chunks that the reverse table knows on any device."""
    p, wanted = schema.placements.c, sorted(set(chunks))
    devices = [int(i) for i in connection.execute(sa.select(schema.devices.c.id)).scalars()]
    found: set[bytes] = set()
    for at in range(0, len(wanted), 500):
        query = sa.select(p.chunk_id).where(p.device_id.in_(devices), p.chunk_id.in_(wanted[at : at + 500]))
        found.update(bytes(chunk) for chunk in connection.execute(query).scalars())
    return found
