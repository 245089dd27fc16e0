"""Listings: one page of names in key order, from one index range; common prefixes by skip-scan.

Where a delimiter is given, the scan seeks past a common prefix as soon as it has one, so a million keys below it cost
one seek. It reads in steps of at most STEP_ROWS_MAX rows and lets others run in between; a page is complete for what
was committed before it began (list-after-write), but is no snapshot of what is written meanwhile.

Cost: about 1 us a row, 2 us with tier and heat; one seek (20-100 us) per common prefix at worst, far less when
prefixes are small (a step's rows hold many of them).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from metadata.catalog import bodies, objects
from metadata.catalog.database import Database
from metadata.catalog.packed import CHUNK_BYTES, REPLICA_BYTES, first_devices
from metadata.catalog.queries import Connection
from metadata.services.names.bucket_names import BucketNames
from metadata.services.names.replicas import ReplicaOrder
from metadata.services.names.rights import authorize_in
from tierstore.auth.access import Principal
from tierstore.errors import RequestError
from tierstore.names import CHUNK_ID_BYTES, KEY_BYTES_MAX, PATH_BYTES_MAX
from tierstore.wire.names import ListEntry, ListItem, ListResult
from tierstore.wire.storage_class import packed_class

LIMIT_MAX: Final = 10_000
STEP_ROWS_MIN: Final = 32
#: A page of the usual 1,000 names and the row that says whether there are more.
STEP_ROWS_MAX: Final = 1001

#: chunk ids -> reads per hour of each.
HeatsOf = Callable[[Sequence[bytes]], list[float]]


class ListingService:
    """One per process."""

    def __init__(self, database: Database, names: BucketNames, order: ReplicaOrder, *, heats_of: HeatsOf) -> None:
        self._database = database
        self._names = names
        self._order = order
        self._heats_of = heats_of

    async def page(self, item: ListItem, who: Principal) -> ListResult:
        """Raises RequestError, NotFound, AccessDenied."""
        if not 1 <= item.limit <= LIMIT_MAX:
            raise RequestError(f"limit is 1 to {LIMIT_MAX}, not {item.limit}", code="bad-limit")
        for name, text in (("prefix", item.prefix), ("delimiter", item.delimiter), ("start_after", item.start_after)):
            _check_text(name, text)
        bucket = await self._names.get(item.bucket)
        authorize_in(who, "list", bucket, item.prefix)
        return await _Scan(self, item, bucket.id).run()

    async def step(
        self, bucket_id: int, low: str, high: str | None, *, inclusive: bool, rows: int, item: ListItem
    ) -> tuple[list[Any], dict[int, tuple[str, bytes]]]:
        """Up to `rows` rows of the range, with (tier, first chunk) of the bodies that are not inline."""

        def read(connection: Connection) -> tuple[list[Any], dict[int, tuple[str, bytes]]]:
            page = objects.page(
                connection, bucket_id, low=low, inclusive=inclusive, high=high, limit=rows,
                with_body=item.want_placement, with_meta=item.want_class,
            )  # fmt: skip
            if not item.want_placement:
                return page, {}
            refs = [row[6] for row in page if row[5] is None and row[6] is not None]
            firsts = bodies.first_chunks(connection, refs) if refs else {}
            return page, {
                ref: (self._order.tier_of(r.device for r in chunk.replicas), chunk.id) for ref, chunk in firsts.items()
            }

        return await self._database.read(read)

    def entries(
        self, rows: Sequence[Any], firsts: dict[int, tuple[str, bytes]], item: ListItem
    ) -> list[ListEntry]:
        """What is shown of these rows, all at once: tiers by the few sets of devices that there are, heat in one call.
        The heat of a body is the sum over its chunks, of one that is not inline its first chunk's."""
        if not item.want_placement:
            if item.want_class:
                return [ListEntry(r[0], r[1], r[2], r[3], r[4], "", 0.0, packed_class(r[5])) for r in rows]
            return [ListEntry(*row) for row in rows]
        tiers: list[str] = []
        ids: list[bytes] = []
        owners: list[int] = []          # the row of each id
        tier_of: dict[tuple[int, ...], str] = {}
        for place, (_, _, _, _, _, body, ref, *_) in enumerate(rows):
            if ref is not None:
                tier, chunk = firsts.get(ref, ("", b""))
                tiers.append(tier)
                more = [chunk] if chunk else []
            else:
                devices = first_devices(body or b"")
                known = tier_of.get(devices)
                if known is None:
                    known = tier_of[devices] = self._order.tier_of(devices)
                tiers.append(known)
                more = _chunk_ids(body or b"")
            ids += more
            owners += [place] * len(more)
        heats = [0.0] * len(rows)
        for place, heat in zip(owners, self._heats_of(ids), strict=True):
            heats[place] += heat
        return [
            ListEntry(
                row[0], row[1], row[2], row[3], row[4], tier, heat, packed_class(row[7]) if item.want_class else ""
            )
            for row, tier, heat in zip(rows, tiers, heats, strict=True)
        ]


class _Scan:
    """One page under way: a cursor that moves over the range, and what was found."""

    def __init__(self, service: ListingService, item: ListItem, bucket_id: int) -> None:
        self._service = service
        self._item = item
        self._bucket_id = bucket_id
        self._objects: list[ListEntry] = []
        self._prefixes: list[str] = []
        self._last: str | None = None           # what the caller has seen last
        self._end = successor(item.prefix) if item.prefix else None
        self._low: str | None = item.prefix
        self._inclusive = True
        self._jumped = False                    # the cursor stands behind a common prefix
        if item.start_after >= item.prefix:
            self._low, self._inclusive = item.start_after, False
            if item.start_after and self._common(item.start_after) == item.start_after:
                # A common prefix was the last entry of the page before: nothing below it is wanted.
                self._skip(item.start_after)

    async def run(self) -> ListResult:
        rows_wanted = min(self._item.limit + 1, STEP_ROWS_MAX)
        rows = min(STEP_ROWS_MIN, rows_wanted) if self._item.delimiter else rows_wanted
        while self._low is not None and (self._end is None or self._low < self._end):
            page, firsts = await self._service.step(
                self._bucket_id, self._low, self._end, inclusive=self._inclusive, rows=rows,
                item=self._item,
            )  # fmt: skip
            is_last_step = len(page) < rows
            skipped = self._take(page, firsts)
            if skipped < 0:
                return self._result(next_start_after=self._last)
            if is_last_step and (not page or not self._jumped):
                break
            # Many rows below one prefix: small steps. Many plain keys: large ones.
            rows = STEP_ROWS_MIN if skipped * 2 > len(page) else min(rows * 4, STEP_ROWS_MAX)
            rows = min(rows, max(self._room() + 1, STEP_ROWS_MIN))
            await asyncio.sleep(0)
        return self._result(next_start_after=None)

    def _take(self, page: list[Any], firsts: dict[int, tuple[str, bytes]]) -> int:
        """Take rows until the page is full (then -1); else how many rows were hidden by a common prefix."""
        self._jumped = False
        if not self._item.delimiter:
            room = self._room()
            self._keep(page[:room], firsts)
            return -1 if len(page) > room else 0
        kept: list[Any] = []
        hidden = self._sort(page, kept)
        self._keep(kept, firsts)
        return hidden

    def _room(self) -> int:
        """Names that the page still takes."""
        return self._item.limit - len(self._objects) - len(self._prefixes)

    def _sort(self, page: list[Any], kept: list[Any]) -> int:
        """The same with a delimiter: plain keys go to `kept`, the others under their common prefix."""
        hidden = 0
        for row in page:
            key = row[0]
            if self._jumped and self._low is not None and key < self._low:
                hidden += 1
                continue
            if self._room() <= len(kept):
                return -1
            common = self._common(key)
            if common is None:
                kept.append(row)
                self._last, self._low, self._inclusive, self._jumped = key, key, False, False
            else:
                self._prefixes.append(common)
                self._last = common
                self._skip(common)
                if self._low is None:
                    return 0
        return hidden

    def _keep(self, rows: list[Any], firsts: dict[int, tuple[str, bytes]]) -> None:
        """Rows that stand for themselves. The cursor has passed the last of them (with a delimiter, perhaps more)."""
        if rows:
            self._objects += self._service.entries(rows, firsts, self._item)
            if not self._item.delimiter:
                self._last = self._low = rows[-1][0]
                self._inclusive = False

    def _skip(self, common: str) -> None:
        self._low, self._inclusive, self._jumped = successor(common), True, True

    def _common(self, key: str) -> str | None:
        """The common prefix that stands for the key, None when the key stands for itself."""
        delimiter = self._item.delimiter
        if not delimiter or not key.startswith(self._item.prefix):
            return None
        at = key.find(delimiter, len(self._item.prefix))
        return None if at < 0 else key[: at + len(delimiter)]

    def _result(self, *, next_start_after: str | None) -> ListResult:
        return ListResult(objects=self._objects, prefixes=self._prefixes, next_start_after=next_start_after)


def successor(prefix: str) -> str | None:
    """The smallest text that is larger than every text that begins with `prefix`; None when there is none."""
    while prefix:
        last = ord(prefix[-1])
        if last == 0x10FFFF:
            prefix = prefix[:-1]
            continue
        # Surrogates are no characters: the next one after U+D7FF is U+E000.
        return prefix[:-1] + chr(0xE000 if last == 0xD7FF else last + 1)
    return None


def _chunk_ids(body: bytes) -> list[bytes]:
    ids, at, end = [], 0, len(body)
    while at < end:
        ids.append(body[at : at + CHUNK_ID_BYTES])
        at += CHUNK_BYTES + body[at + CHUNK_BYTES - 1] * REPLICA_BYTES
    return ids


def _check_text(name: str, text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise RequestError(f"{name} is not valid UTF-8", code="bad-listing") from None
    most = PATH_BYTES_MAX if name == "start_after" else KEY_BYTES_MAX       # a page may end at a key that a mount made
    if size > most or "\x00" in text:
        raise RequestError(f"{name} has at most {most} bytes and no NUL", code="bad-listing")
