"""What other sites have, asked before this one forgets something: who else has a body for good
(services/sites/fetched), and who has heard of a delete (services/sites/tombstones).

That another site wrote a version does not mean that it has its bytes still: it may be lost, removed, or restored from
an old backup, and then what readers fetched here may be the only copy. So the other sites are asked, now, in one
message each. Only a site that has answered hellos without a break for `[duties] fetched_settle`, and sends this one
nothing that it forgot, may vouch. A site vouches for what is its own (never for what it may let go of itself: two sites
could vouch for each other and both let go), while its catalog is known not to be an old one and fewer of its object
servers are dead than each body has copies.

A site has heard of a delete when what it has of that key is no older; when it has nothing, only once each site that
writes to the bucket there has sent it everything since (an older version may still be on its way).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from metadata.catalog import buckets, objects, schema, sites
from metadata.catalog.database import Database
from metadata.catalog.queries import Connection
from metadata.services.sites.apply import sources_of
from metadata.services.sites.courier import Courier
from metadata.services.sites.registry import Known
from metadata.services.sites.target import TargetStatus
from tierstore.clock import Clock, version_ms, version_site
from tierstore.errors import RequestError, TierstoreError
from tierstore.wire.sites import HOLDS_MAX, SEEN_MAX, BodyName, Holds, HoldsAnswer

#: Messages under way, and clocks that drift while a hello travels.
MARGIN_MS: Final = 120_000
HOLDS_SECONDS: Final = 10.0


class Holdings:
    """What this site says to others that ask. is_sound: whether its catalog and its object servers are as they should
    be."""

    def __init__(self, database: Database, *, is_sound: Callable[[], bool]) -> None:
        self._database = database
        self._is_sound = is_sound

    async def answer(self, asked: Sequence[BodyName]) -> HoldsAnswer:
        """Raises RequestError for more than HOLDS_MAX."""
        if len(asked) > HOLDS_MAX:
            raise RequestError(f"at most {HOLDS_MAX} bodies in one question", code="too-many-items")
        if not self._is_sound():
            return HoldsAnswer([False] * len(asked))
        return HoldsAnswer(await self._database.read(lambda c: _held(c, asked)))

    async def seen(self, asked: Sequence[BodyName]) -> HoldsAnswer:
        """Raises RequestError for more than SEEN_MAX."""
        if len(asked) > SEEN_MAX:
            raise RequestError(f"at most {SEEN_MAX} names in one question", code="too-many-items")
        if not self._is_sound():
            return HoldsAnswer([False] * len(asked))
        return HoldsAnswer(await self._database.read(lambda c: _seen(c, asked)))


def _seen(c: Connection, asked: Sequence[BodyName]) -> list[bool]:
    named = {bucket.name: bucket for bucket in buckets.everything(c)}
    heard: dict[str, int] = {}
    out = []
    for one in asked:
        bucket = named.get(one.bucket)
        row = objects.latest(c, bucket.id, one.key) if bucket is not None else None
        if row is not None or bucket is None:
            out.append(row is None or row.version >= one.version)
            continue
        for source in sources_of(bucket):
            if source not in heard:
                heard[source] = sites.heard(c, source).confirmed_at_ms
        until_ms = min((heard[source] for source in sources_of(bucket)), default=1 << 62)
        out.append(version_ms(one.version) < until_ms - MARGIN_MS)
    return out


def _held(c: Connection, asked: Sequence[BodyName]) -> list[bool]:
    ids = {name: bucket_id for bucket_id, name in buckets.names(c).items()}
    names = [(ids.get(one.bucket, 0), one.key, one.version) for one in asked]
    rows = sites.versions_of(c, names)
    return [name in rows and rows[name].kind in (schema.KIND_INLINE, schema.KIND_ROWS) for name in names]


class Vouchers:
    """What the other sites say to this one. statuses: of the workers, which say who answers hellos since when."""

    def __init__(
        self, clock: Clock, courier: Courier, known: Known, *, statuses: Callable[[], list[TargetStatus]],
        settle_seconds: float,
    ) -> None:  # fmt: skip
        self._clock = clock
        self._courier = courier
        self._known = known
        self._statuses = statuses
        self._settle_seconds = settle_seconds

    def _is_settled(self, status: TargetStatus) -> bool:
        now = self._clock.monotonic()
        return status.is_reachable and not status.compare_left and now - status.reachable_since >= self._settle_seconds

    async def vouched(self, wanted: Sequence[BodyName]) -> set[BodyName]:
        """Those that another site has for good now. The site that wrote most of them is asked first, the next one only
        about the rest; one that does not answer vouches for nothing."""
        settled = {status.site for status in self._statuses() if self._is_settled(status)}
        rows = [row for row in self._known.rows if row.name in settled]
        rows.sort(key=lambda row: -sum(version_site(one.version) == row.id for one in wanted))
        found: set[BodyName] = set()
        for row in rows:
            left = [one for one in wanted if one not in found][:HOLDS_MAX]
            if not left:
                break
            try:
                answer = await self._courier.send(
                    row, "/v1/sites/holds", Holds(left), HoldsAnswer, seconds=HOLDS_SECONDS
                )
            except TierstoreError:      # its worker's hello shows and logs that it is away
                continue
            found |= {one for one, is_held in zip(left, answer.held, strict=False) if is_held}
        return found

    async def seen(self, site: str, wanted: Sequence[BodyName]) -> set[BodyName]:
        """Those deletes that a site has heard of; none when it does not say."""
        try:
            answer = await self._courier.send(
                self._known.get(site), "/v1/sites/seen", Holds(list(wanted)), HoldsAnswer, seconds=HOLDS_SECONDS
            )
        except TierstoreError:
            return set()
        return {one for one, is_seen in zip(wanted, answer.held, strict=False) if is_seen}
