"""What files need of the tables beyond single keys: children of a directory, ranges below it, edits of extent lists.

Everything that a mount knows beside objects lies in the same table, under the negative id of its bucket, where no
name of the store's leads (docs/adr/0090): `d/<path>/` an explicit directory, `o/<inode>` an open file without a name,
`i/<inode>` the names of a file with several. So the feed, the journal, snapshots, the reverse table and repair know
them without a word about files.

Invariant: an edit of extents keeps chunks.refcount = number of extents rows that name the chunk; chunks that nobody
names any more go to the garbage in the same transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from metadata.catalog import bodies, objects, schema
from metadata.catalog.bodies import Extent
from metadata.catalog.objects import ObjectRow
from metadata.catalog.packed import PackedChunk, pack, unpack_replicas
from metadata.catalog.session import BulkWrite, Session
from metadata.catalog.statement import Statement

DIRECTORY: Final = "d/"
ORPHAN: Final = "o/"
NAMES: Final = "i/"

#: Rows of one step through a directory or a range.
STEP_ROWS: Final = 512
_COLUMNS: Final = tuple(schema.objects.c[name] for name in objects.COLUMNS)
_O = schema.objects.c
#: A directory's page needs no bodies: column `body` is left out.
_LIGHT: Final = tuple(
    sa.null().label(name) if name == "body" else schema.objects.c[name] for name in objects.COLUMNS
)


def hidden(bucket_id: int) -> int:
    """The id under which a bucket's directories, orphans and lists of names lie."""
    return -bucket_id


def _range(*, inclusive: bool, light: bool) -> Statement:
    low = _O.key >= sa.bindparam("low") if inclusive else _O.key > sa.bindparam("low")
    return Statement(
        sa.select(*(_LIGHT if light else _COLUMNS))
        .where(_O.bucket_id == sa.bindparam("bucket_id"), low, _O.key < sa.bindparam("high"))
        .where(_O.kind != schema.KIND_MARKER)
        .order_by(_O.key)
        .limit(sa.bindparam("limit"))
    )


_RANGES: Final = {
    (inclusive, light): _range(inclusive=inclusive, light=light)
    for inclusive in (True, False) for light in (True, False)
}  # fmt: skip
_ANY: Final = Statement(
    sa.select(_O.key)
    .where(_O.bucket_id == sa.bindparam("bucket_id"), _O.key > sa.bindparam("low"), _O.key < sa.bindparam("high"))
    .where(_O.kind != schema.KIND_MARKER)
    .limit(1)
)
_ANY_WITH_LOW: Final = Statement(
    sa.select(_O.key)
    .where(_O.bucket_id == sa.bindparam("bucket_id"), _O.key >= sa.bindparam("low"), _O.key < sa.bindparam("high"))
    .where(_O.kind != schema.KIND_MARKER)
    .limit(1)
)

_D = schema.objects.alias("d").c


def _leads(c: Any, bucket_id: str, low: str, high: str) -> Any:
    return sa.exists().where(
        c.bucket_id == sa.bindparam(bucket_id), c.key >= sa.bindparam(low), c.key < sa.bindparam(high),
        c.kind != schema.KIND_MARKER,
    )  # fmt: skip


#: Two seeks in one statement: half of what a mount asks is whether a name is a directory, and mostly it is none.
_IS_DIRECTORY: Final = Statement(
    sa.select(sa.or_(_leads(_D, "hidden_id", "hidden_low", "hidden_high"), _leads(_O, "bucket_id", "low", "high")))
)


def is_directory(connection: sa.Connection, bucket_id: int, path: str) -> bool:
    """Whether a directory is at a path (not the root), explicit or implied by keys below it."""
    low, hidden_low = f"{path}/", f"{DIRECTORY}{path}/"
    found = _IS_DIRECTORY.first(
        connection, hidden_id=hidden(bucket_id), hidden_low=hidden_low, hidden_high=after_prefix(hidden_low),
        bucket_id=bucket_id, low=low, high=after_prefix(low),
    )  # fmt: skip
    return bool(found[0])


def below(connection: sa.Connection, bucket_id: int, prefix: str, *, itself: bool) -> bool:
    """Whether a key begins with prefix (which ends in a slash); itself: the key that is the prefix counts too."""
    query = _ANY_WITH_LOW if itself else _ANY
    return query.first(connection, bucket_id=bucket_id, low=prefix, high=after_prefix(prefix)) is not None


def after_prefix(prefix: str) -> str:
    """The smallest text behind all that begin with a prefix that ends in a slash ("0" comes next to "/")."""
    assert prefix.endswith("/"), "directories end in a slash"
    return prefix[:-1] + "0"


def rows_between(
    connection: sa.Connection, bucket_id: int, low: str, high: str, limit: int, *, inclusive: bool, light: bool = False
) -> list[ObjectRow]:
    """Rows (no markers) in key order; light: without their bodies."""
    rows = _RANGES[inclusive, light].rows(connection, bucket_id=bucket_id, low=low, high=high, limit=limit)
    return list(map(ObjectRow._make, rows))


def latest(connection: sa.Connection, bucket_id: int, key: str) -> ObjectRow | None:
    """The latest row, not locked; None for a delete marker."""
    row = objects.latest(connection, bucket_id, key)
    return None if row is None or row.kind == schema.KIND_MARKER else row


class Child(NamedTuple):
    """name: as in the directory, with a slash behind it when it is one. row: None for what only keys below imply."""

    name: str
    row: ObjectRow | None


def children(
    connection: sa.Connection, bucket_id: int, prefix: str, after: str, limit: int
) -> tuple[list[Child], bool]:
    """Up to `limit` children of a prefix ("" or ending in a slash) in key order behind `after`, and whether there are
    more. Names that no path can have (empty, ".", "..") are passed over. Cost: one seek per child directory."""
    found: list[Child] = []
    high = after_prefix(prefix) if prefix else "\U0010ffff"
    low, inclusive = prefix + after, False
    if after.endswith("/"):
        low, inclusive = after_prefix(prefix + after), True
    while True:
        rows = rows_between(connection, bucket_id, low, high, STEP_ROWS, inclusive=inclusive, light=True)
        jump = ""
        for row in rows:
            if row.key < jump:
                continue
            rest = row.key[len(prefix) :]
            at = rest.find("/")
            name = rest if at < 0 else rest[: at + 1]
            if at >= 0:
                jump = after_prefix(prefix + name)
            if name.rstrip("/") in ("", ".", "..") or len(name.rstrip("/").encode()) > 255:
                continue
            if len(found) == limit:
                return found, True
            found.append(Child(name, row if name == rest else None))
        if len(rows) < STEP_ROWS:
            return found, False
        low, inclusive = (jump, True) if jump > rows[-1].key else (rows[-1].key, False)


# -- extents ----------------------------------------------------------------------------------------------------
_DELETE_EXTENTS: Final = BulkWrite("delete", schema.extents, ("body_id", "start"), by=("body_id", "start"))
_SET_COUNT: Final = BulkWrite("update", schema.chunks, ("id", "refcount"), by=("id",))
_DELETE_CHUNKS: Final = BulkWrite("delete", schema.chunks, ("id",), by=("id",))


class ExtentEdit:
    """Changes of one body's extents, gathered and then written at once. Only for a body that nobody else has."""

    def __init__(self, session: Session, body_id: int) -> None:
        self._session = session
        self._body_id = body_id
        self._deltas: dict[bytes, int] = {}

    def cut(self, first: int, end: int | None) -> None:
        """Take the bytes [first, end) out (end None: to the end of the body); what lies behind stays where it is."""
        connection, t = self._session.connection, schema.extents.c
        held = connection.execute(
            sa.select(sa.func.max(t.start)).where(t.body_id == self._body_id, t.start <= first)
        ).scalar()
        query = sa.select(t.start, t.chunk_id, t.chunk_offset, t.length).where(
            t.body_id == self._body_id, t.start >= (first if held is None else held)
        )
        if end is not None:
            query = query.where(t.start < end)
        gone, kept = [], []
        for row in connection.execute(query.order_by(t.start)).all():
            e = Extent(row[0], bytes(row[1]), row[2], row[3])
            if e.start + e.length <= first:
                continue
            gone.append((self._body_id, e.start))
            self._count(e.chunk_id, -1)
            if e.start < first:
                kept.append((self._body_id, e.start, e.chunk_id, e.chunk_offset, first - e.start))
            if end is not None and e.start + e.length > end:
                over = end - e.start
                kept.append((self._body_id, end, e.chunk_id, e.chunk_offset + over, e.length - over))
        self._session.write(_DELETE_EXTENTS, gone)
        for _, _, chunk, _, _ in kept:
            self._count(chunk, +1)
        self._session.write(bodies.INSERT_EXTENTS, kept)

    def add(self, extents: Sequence[Extent]) -> None:
        """New extents where none is; their chunks have rows (new ones with a count of zero)."""
        for e in extents:
            self._count(e.chunk_id, +1)
        self._session.write(bodies.INSERT_EXTENTS, [(self._body_id, *e) for e in extents])

    def add_chunks(self, chunks: Sequence[PackedChunk]) -> None:
        """Rows of chunks that `add` is going to name."""
        _, rows = bodies.make_rows(0, chunks)
        self._session.write(bodies.INSERT_CHUNKS, [(*row[:4], 0, row[5]) for row in rows])

    def _count(self, chunk: bytes, sign: int) -> None:
        self._deltas[chunk] = self._deltas.get(chunk, 0) + sign

    def finish(self, *, at_ms: int) -> None:
        """Bring the counts in line."""
        touched = sorted(chunk for chunk, delta in self._deltas.items() if delta)
        changed, gone = [], []
        for chunk, size, crc, redundancy, refcount, replicas in self._session.fetch(
            bodies.CHUNKS_LOCKED, [(chunk,) for chunk in touched]
        ):
            left = refcount + self._deltas[chunk]
            assert left >= 0, f"chunk {chunk.hex()} is named by more extents than it counts"
            if left:
                changed.append((chunk, left))
            else:
                gone.append(PackedChunk(chunk, size, size, crc, redundancy, unpack_replicas(replicas)))
        self._session.write(_SET_COUNT, changed)
        self._session.write(_DELETE_CHUNKS, [(c.id,) for c in gone])
        if gone:
            self._session.write(bodies.INSERT_GARBAGE, [(at_ms, pack(gone))])


def count_extents(connection: sa.Connection, body_id: int) -> int:
    t = schema.extents.c
    return int(connection.execute(sa.select(sa.func.count()).where(t.body_id == body_id)).scalar_one())


def orphans(connection: sa.Connection, bucket_id: int, after: str, *, limit: int) -> list[ObjectRow]:
    """Open files without a name, of one bucket, behind a key."""
    return rows_between(connection, hidden(bucket_id), after or ORPHAN, "o0", limit, inclusive=False)


def orphan_buckets(connection: sa.Connection) -> list[int]:
    """Buckets with hidden rows: of directories, open files without a name, lists of names."""
    found = connection.execute(sa.select(_O.bucket_id).where(_O.bucket_id < 0).distinct()).scalars()
    return [-bucket_id for bucket_id in found]
