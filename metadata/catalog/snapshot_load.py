"""Reading the catalog back in: a dump loaded, journals applied, a catalog made ready after it (the form of both:
snapshot_frames.py).

Invariant: what is derived is made anew, never loaded: counts of shared chunks from their extents, the reverse table
from all rows. Cost: about 10 us a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from metadata.catalog import feed, schema
from metadata.catalog.among import among
from metadata.catalog.leases import upsert
from metadata.catalog.packed import unpack, unpack_replicas
from metadata.catalog.snapshot_frames import CHANGES, END, GONE, GONE_VERSIONS, LONG, SMALL, TABLES, frames_of, pages
from tierstore.errors import ConflictError

#: Settings that belong to one catalog's life, not to its content.
_OWN_SETTINGS: Final = frozenset({"placements_sequence", "placements_garbage_id", "schema_floor"})
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
        *(sa.select(t.c.ref).where(t.c.kind.in_(LONG), t.c.ref.is_not(None))
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
        for rows in pages(connection, table):
            found: dict[tuple[int, bytes], tuple[Any, ...]] = {
                (replica.device, chunk.id): (*(row[at[name]] for name in owner), chunk.chunk_bytes)
                for row in rows if row[at["kind"]] == schema.KIND_INLINE and row[at["body"]]
                for chunk in unpack(row[at["body"]])
                for replica in chunk.replicas
            }  # fmt: skip
            total += _place(connection, found)
    for rows in pages(connection, schema.chunks):
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
        query = sa.select(p.chunk_id).where(among(p.device_id, devices), among(p.chunk_id, wanted[at : at + 500]))
        found.update(bytes(chunk) for chunk in connection.execute(query).scalars())
    return found
