"""Bodies under a `hot` rule that became hot after their name was sent: queued when their heat crosses the threshold.

(At the target a read is enough: it fetches the body, which is kept.) A look costs one read of the hottest chunks' rows;
what was queued is remembered, within a bound, and forgotten by a restart: a body that is there already costs its target
one message, and no bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

from metadata.catalog import buckets, feed, objects, schema
from metadata.catalog.book import Located
from metadata.catalog.database import Database
from metadata.catalog.session import Session
from tierstore.clock import Clock

#: Reads per hour from which on a body under a `hot` rule follows by itself.
HOT_PER_HOUR: Final = 1.0
LOOK_SECONDS: Final = 15.0
CHUNKS_PER_LOOK: Final = 2000
REMEMBERED_MAX: Final = 100_000

_Body = tuple[str, int, str, int]       # target, bucket, key, version
Rules = Mapping[str, list[tuple[str, str]]]


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
        self._queued: OrderedDict[_Body, None] = OrderedDict()
        self._looked_at = -LOOK_SECONDS
        self.queued = 0

    def is_queued(self, target: str, bucket_id: int, key: str, version: int) -> bool:
        """Whether a body goes because of its heat."""
        return (target, bucket_id, key, version) in self._queued

    async def step(self, rules: Rules) -> int:
        """rules: bucket -> (prefix, target) of its `hot` rules. How many bodies were queued."""
        now = self._clock.monotonic()
        if not rules or now - self._looked_at < LOOK_SECONDS:
            return 0
        self._looked_at = now
        hot = [chunk for chunk, heat in self._hottest(CHUNKS_PER_LOOK) if heat >= HOT_PER_HOUR]
        found = await self._find(hot) if hot else {}
        names = sorted({self._name_of(located)[:2] for located in found.values()})
        wanted = [
            (bucket, key, target)
            for bucket, key in names for prefix, target in rules.get(bucket, ()) if key.startswith(prefix)
        ]  # fmt: skip
        if not wanted:
            return 0
        bodies = await self._database.batch(lambda session: self._queue(session, wanted))
        for body in bodies:
            self._queued[body] = None
        while len(self._queued) > REMEMBERED_MAX:
            self._queued.popitem(last=False)
        self.queued += len(bodies)
        return len(bodies)

    def _queue(self, session: Session, wanted: list[tuple[str, str, str]]) -> list[_Body]:
        c = session.connection
        ids = {bucket.name: bucket.id for bucket in buckets.everything(c)}
        changes, bodies = [], []
        for bucket, key, target in wanted:
            if bucket not in ids:
                continue
            row = objects.latest(c, ids[bucket], key)
            if row is None or row.kind not in (schema.KIND_INLINE, schema.KIND_ROWS):
                continue
            body = (target, row.bucket_id, key, row.version)
            if body not in self._queued:
                bodies.append(body)
                changes.append(
                    feed.NewChange(schema.CHANGE_PUT, row.bucket_id, key, row.version, row.size, (target,))
                )
        feed.append_bulk(session, changes, at_ms=self._clock.now_ms(), version=0)
        return bodies
