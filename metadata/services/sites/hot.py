"""Bodies under a `hot` rule: which of their segments have become hot, and are to go to which site.

A hot chunk travels as the segments (wire/sites) that it lies in; the rest of its body is fetched by whoever reads it
there. HotBodies looks at the hottest chunks each LOOK_SECONDS and queues what is new: a row of the queue whose size is
that of those segments. HotParts remembers what was queued, within a bound, and which of it has not arrived. A restart
forgets it: rows of which nothing is remembered are finished, and what is still hot is queued by the next look; what the
target has already costs a message, and no bytes. (At the target a read is enough: it fetches the segment, which is
kept.)

A look costs one read of the hottest chunks' rows, and one pass over the extents of each body that has a new one.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Final, NamedTuple

from metadata.catalog import bodies, buckets, feed, objects, schema, sites
from metadata.catalog.book import Located
from metadata.catalog.database import Database
from metadata.catalog.objects import ObjectRow
from metadata.catalog.packed import unpack
from metadata.catalog.queries import Connection
from metadata.catalog.session import Session
from tierstore.clock import Clock, version_site
from tierstore.wire.sites import SEGMENT_BYTES

#: Reads per hour from which on a chunk under a `hot` rule follows by itself.
HOT_PER_HOUR: Final = 1.0
LOOK_SECONDS: Final = 15.0
CHUNKS_PER_LOOK: Final = 2000
#: Segments that are remembered, of all bodies.
REMEMBERED_MAX: Final = 100_000

Rules = Mapping[str, list[tuple[str, str]]]


class Body(NamedTuple):
    """A version as one site is to have it."""

    target: str
    bucket_id: int
    key: str
    version: int


class HotParts:
    """What goes because of its heat. Changed on the event loop only; `add` by the duty alone, whose look, on another
    thread, is never under way then."""

    def __init__(self) -> None:
        self._chunks: OrderedDict[Body, dict[int, bytes]] = OrderedDict()      # segment -> a hot chunk in it
        self._waiting: dict[Body, set[int]] = {}
        self._count = 0

    def add(self, body: Body, segments: Mapping[int, bytes]) -> None:
        """They were queued."""
        known = self._chunks.setdefault(body, {})
        self._chunks.move_to_end(body)
        self._count += len(segments.keys() - known.keys())
        known.update(segments)
        self._waiting.setdefault(body, set()).update(segments)
        while self._count > REMEMBERED_MAX and len(self._chunks) > 1:
            oldest, forgotten = self._chunks.popitem(last=False)
            self._waiting.pop(oldest, None)
            self._count -= len(forgotten)

    def arrived(self, body: Body, segments: Iterable[int]) -> None:
        if (waiting := self._waiting.get(body)) is not None:
            waiting.difference_update(segments)
            if not waiting:
                del self._waiting[body]

    def knows(self, body: Body) -> bool:
        """Whether some of a body goes because of its heat, though its name went before."""
        return body in self._chunks

    def chunks(self, body: Body) -> list[bytes]:
        """Those whose heat is the body's, where some of it goes."""
        return list(dict.fromkeys(self._chunks.get(body, {}).values()))

    def segments(self, body: Body) -> frozenset[int]:
        """All that were queued."""
        return frozenset(self._chunks.get(body, ()))

    def waiting(self, body: Body) -> frozenset[int]:
        """Those of them that have not arrived."""
        return frozenset(self._waiting.get(body, ()))


class _Find(NamedTuple):
    """Hot segments of a version that are not remembered. size: of the whole body."""

    body: Body
    size: int
    segments: dict[int, bytes]

    @property
    def bytes(self) -> int:
        return sum(min(SEGMENT_BYTES, self.size - segment * SEGMENT_BYTES) for segment in self.segments)


class HotBodies:
    """Runs in the holder of the promoter's lease. hottest: chunks with their heat per hour; find, name_of: those of the
    tiering."""

    def __init__(
        self, database: Database, clock: Clock, *, hottest: Callable[[int], list[tuple[bytes, float]]],
        find: Callable[[Collection[bytes]], Awaitable[dict[bytes, Located]]],
        name_of: Callable[[Located], tuple[str, str, int]],
    ) -> None:  # fmt: skip
        self._database = database
        self._clock = clock
        self._hottest = hottest
        self._find = find
        self._name_of = name_of
        self.parts = HotParts()
        self._looked_at = -LOOK_SECONDS
        self.queued = 0

    async def step(self, rules: Rules) -> int:
        """rules: bucket -> (prefix, target) of its `hot` rules. How many bodies have new segments that go."""
        now = self._clock.monotonic()
        if not rules or now - self._looked_at < LOOK_SECONDS:
            return 0
        self._looked_at = now
        hot = [chunk for chunk, heat in self._hottest(CHUNKS_PER_LOOK) if heat >= HOT_PER_HOUR]
        found = await self._find(hot) if hot else {}
        wanted: dict[tuple[str, str, str], set[bytes]] = defaultdict(set)
        for chunk, located in found.items():
            bucket, key, _ = self._name_of(located)
            for prefix, target in rules.get(bucket, ()):
                if key.startswith(prefix):
                    wanted[bucket, key, target].add(chunk)
        finds = await self._database.scan(lambda c: self._look(c, wanted)) if wanted else []
        if not finds:
            return 0
        queued = await self._database.batch(lambda session: self._queue(session, finds))
        for one in queued:
            self.parts.add(one.body, one.segments)
        self.queued += len(queued)
        return len(queued)

    def _look(self, c: Connection, wanted: Mapping[tuple[str, str, str], set[bytes]]) -> list[_Find]:
        ids = {bucket.name: bucket.id for bucket in buckets.everything(c)}
        finds = []
        for (bucket, key, target), chunks in sorted(wanted.items()):
            row = objects.latest(c, ids[bucket], key) if bucket in ids else None
            if row is None or not row.size or version_site(row.version) == sites.number_of(c, target):
                continue        # nothing to send, or it wrote it
            body = Body(target, row.bucket_id, key, row.version)
            known = self.parts.segments(body)
            if chunks.issubset(self.parts.chunks(body)):
                continue
            segments = {
                segment: chunk for segment, chunk in _segments(c, row, chunks).items() if segment not in known
            }
            if segments:
                finds.append(_Find(body, row.size, segments))
        return finds

    def _queue(self, session: Session, finds: list[_Find]) -> list[_Find]:
        c = session.connection
        kept, changes = [], []
        for one in finds:
            target, bucket_id, key, version = one.body
            row = objects.latest(c, bucket_id, key)
            if row is not None and row.version == version:      # else replaced since: the newer one is cold
                kept.append(one)
                changes.append(feed.NewChange(schema.CHANGE_PUT, bucket_id, key, version, one.bytes, (target,)))
        feed.append_bulk(session, changes, at_ms=self._clock.now_ms(), version=0)
        return kept


def _segments(c: Connection, row: ObjectRow, wanted: Collection[bytes]) -> dict[int, bytes]:
    """Segments of a version in which these chunks lie, as far as they are at this site, each with one of the chunks."""
    if row.kind == schema.KIND_INLINE:
        places, start = [], 0
        for chunk in unpack(row.body or b""):
            if chunk.id in wanted:
                places.append((start, chunk.length, chunk.id))
            start += chunk.length
    elif row.kind in (schema.KIND_ROWS, schema.KIND_REMOTE) and row.ref is not None:
        places = [
            (extent.start, extent.length, extent.chunk_id)
            for page in bodies.all_extents(c, int(row.ref)) for extent in page if extent.chunk_id in wanted
        ]  # fmt: skip
    else:
        places = []
    return {
        segment: chunk for start, length, chunk in places
        for segment in range(start // SEGMENT_BYTES, (start + length - 1) // SEGMENT_BYTES + 1)
    }  # fmt: skip
