"""Bodies for one other site: a window of the queue in the order of services/sites/order, STREAMS parcels at a time.

The target's gateway fetches each body from ours (under a `hot` rule what of it is hot: services/sites/wanted) and
answers when it is durable there; then its row goes. Bodies wait for the bandwidth of the hour and, while clients are
busy here, for their share of the time. While a backlog of names goes, they have NAMES_STREAMS, for what is hot and
whose name the target has.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from metadata.catalog import schema, sites
from metadata.catalog.buckets import Bucket
from metadata.catalog.queries import Connection
from metadata.catalog.sites import QueueRow
from metadata.services.sites.link import SHARE, bandwidth
from metadata.services.sites.order import BodyOrder, Waiting
from metadata.services.sites.queue import PUSH_GRACE_MS, Loaded, load_bodies, look_at, name_batch, record_of
from metadata.services.sites.target import IDLE_SECONDS, Target
from metadata.services.sites.wanted import body_of, items_of, may_be_less, segments_of
from tierstore.errors import TierstoreError, UnavailableError
from tierstore.wire.sites import SEGMENT_BYTES, FetchAnswer, FetchBatch, FetchItem, NameAnswer

#: Names come before bodies, but not for longer than this.
NAMES_FIRST_SECONDS: Final = 10.0
#: Rows of bodies whose order is known; the queue behind it waits on disk.
WINDOW_ROWS: Final = 20_000
WINDOW_PAGE: Final = 512
#: Pages that are read in one piece: parcels are made up between the pieces.
PAGES_AT_ONCE: Final = 4
RANK_SECONDS: Final = 2.0
#: A body that is passed on, and has not come here for so long, is fetched for the target.
ELSEWHERE_MS: Final = 60_000
#: Parcels on their way; together with the bandwidth the back-pressure on foreground requests.
STREAMS: Final = 6
#: The same while a backlog of names goes.
NAMES_STREAMS: Final = 1
PARCEL_ITEMS: Final = 24
PARCEL_BYTES: Final = SEGMENT_BYTES
SEGMENTS_AT_ONCE: Final = 4
#: For one parcel to be durable at the target.
PARCEL_SECONDS: Final = 60.0
NAMES_SECONDS: Final = 30.0
RETRY_SECONDS_MIN: Final = 1.0
RETRY_SECONDS_MAX: Final = 30.0
#: More requests of clients than this: bodies leave them their share of the time (see link.SHARE).
BUSY_PER_SECOND: Final = 10.0
BUSY_SECONDS: Final = 1.0
YIELD_SECONDS_MAX: Final = 5.0
#: Codes of a fetch that mean: the target does not have that version's name (any more).
_NO_NAME: Final = frozenset({"no-such-version", "no-such-key", "no-such-bucket"})


class _Part(NamedTuple):
    """Of a body of `size` bytes these segments go; None: the whole, though its row is shorter."""

    size: int
    segments: frozenset[int] | None


class BodySender:
    """One per target."""

    def __init__(self, target: Target) -> None:
        parts = target.parts
        self._target = target
        self._parts = parts
        self.order = BodyOrder(parts.heats_of, parts.lost_devices)
        self._loaded = 0                # rows up to here are, or were, in the window
        self._retries: dict[int, tuple[QueueRow, float, int]] = {}
        self._elsewhere: dict[int, QueueRow] = {}       # bodies of other sites, which have not come here yet
        self._ready_at = 0.0            # of the bandwidth
        self._asked = (parts.clock.monotonic(), parts.foreground())
        self._was_busy = False

    def _streams(self, now: float) -> int:
        """How many parcels may be on their way. Names go first, and the order of bodies wants to know them all, but not
        for ever; a hot one whose name was sent need not wait for the names of all others."""
        if not self._target.may_send:
            return 0
        if 0 <= now - self._target.names_since < NAMES_FIRST_SECONDS:
            return NAMES_STREAMS if self.order.is_hot else 0
        return STREAMS

    async def turn(self) -> None:
        """Parcels until nothing is left, STREAMS at a time."""
        running: set[asyncio.Task[None]] = set()
        ranked_at = self._parts.clock.monotonic()
        try:
            while True:
                self._target.has_bodies.clear()
                if self._target.may_send and self._window_rows <= WINDOW_ROWS - WINDOW_PAGE:
                    await self._load_window()
                await self._take_back()
                now = self._parts.clock.monotonic()
                if now - ranked_at >= RANK_SECONDS:
                    await self._look_elsewhere()
                    for _ in self.order.ranking():
                        await asyncio.sleep(0)      # requests between the slices
                    ranked_at = now
                while len(running) < self._streams(now) and (parcel := self._parcel()):
                    running.add(asyncio.ensure_future(self._deliver(parcel)))
                running -= await self._pause(running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _pause(self, running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
        """Until a parcel is there, or there may be more to send, or for a while; the parcels that are done."""
        woken = asyncio.ensure_future(self._target.has_bodies.wait())
        try:
            done, _ = await asyncio.wait(
                {*running, woken}, timeout=IDLE_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            woken.cancel()
        for task in running & done:
            task.result()
        return running & done

    @property
    def _window_rows(self) -> int:
        return len(self.order) + len(self._elsewhere)

    async def _load_window(self) -> None:
        for _ in range(PAGES_AT_ONCE):
            found = await self._parts.database.scan(self._load_page)
            await self._sort_in(found)
            self._loaded = found[-1].row.sequence if found else self._loaded
            if len(found) < WINDOW_PAGE or self._window_rows > WINDOW_ROWS - WINDOW_PAGE:
                return
        self._target.has_bodies.set()       # there is more

    def _load_page(self, c: Connection) -> list[Loaded]:
        return load_bodies(c, self._target.name, self._loaded, WINDOW_PAGE, now_ms=self._parts.clock.now_ms())

    async def _sort_in(self, found: Sequence[Loaded]) -> None:
        """Each row to where it belongs: finished, later, elsewhere, or among those that wait for their turn."""
        finished, waiting = [], []
        now = self._parts.clock.monotonic()
        for loaded in found:
            row = loaded.row
            if row.kind == schema.CHANGE_DELETE:
                waiting.append(Waiting(row, [], ()))        # its name was parked there: nothing else says it again
                continue
            if loaded.held is None or self._is_delivered(row):
                finished.append(row.sequence)       # replaced or deleted since: the newer name says so; or pushed
                continue
            if loaded.is_pushed or self._is_under_way(row):
                self._retries[row.sequence] = (row, now + PUSH_GRACE_MS / 1000, 0)
                continue
            hot = self._parts.hot.chunks(body_of(self._target.name, row))
            if not loaded.is_here and not hot and self._parts.clock.now_ms() - row.at_ms < ELSEWHERE_MS:
                self._elsewhere[row.sequence] = row
            else:
                self._elsewhere.pop(row.sequence, None)
                waiting.append(Waiting(row, hot or loaded.chunks, loaded.homes))
        self.order.add(waiting)
        for sequence in finished:
            self._elsewhere.pop(sequence, None)
        await self._finish(finished)

    def _is_delivered(self, row: QueueRow) -> bool:
        return self._parts.is_delivered(self._target.name, row.bucket_id, row.key, row.version)

    def _is_under_way(self, row: QueueRow) -> bool:
        return self._parts.is_under_way(self._target.name, row.bucket_id, row.key, row.version)

    async def _take_back(self) -> None:
        """Rows whose time to be tried again has come."""
        now = self._parts.clock.monotonic()
        due = [row for row, at, _ in self._retries.values() if at <= now][:WINDOW_PAGE]
        if not due:
            return
        for row in due:
            self._retries[row.sequence] = (row, math.inf, self._retries[row.sequence][2])
        await self._sort_in(await self._parts.database.scan(lambda c: look_at(c, due)))

    async def _look_elsewhere(self) -> None:
        """Bodies that this site passes on go once it has them; after ELSEWHERE_MS the target's fetch makes it bring
        them. The oldest first, a page at a time."""
        rows = list(self._elsewhere.values())[:WINDOW_PAGE]
        if not rows:
            return
        for row in rows:        # to the back, so that the next look takes others
            self._elsewhere[row.sequence] = self._elsewhere.pop(row.sequence)
        await self._sort_in(await self._parts.database.scan(lambda c: look_at(c, rows)))

    def _parcel(self) -> list[QueueRow]:
        rows: list[QueueRow] = []
        size = 0
        while len(rows) < PARCEL_ITEMS and (not rows or size + self.order.peek_bytes() <= PARCEL_BYTES):
            taken = self.order.take()
            if taken is None:
                break
            rows.append(taken.row)
            size += taken.row.size
        return rows

    async def _deliver(self, rows: list[QueueRow]) -> None:
        """Bring a parcel there; then, while clients are busy here, leave this stream to them for their share."""
        began = self._parts.clock.monotonic()
        await self._bring(rows)
        share = float(self._target.row.link.get("share", SHARE))
        if share < 1 and self._is_busy():
            took = self._parts.clock.monotonic() - began
            await self._parts.clock.sleep(min(took * (1 - share) / share, YIELD_SECONDS_MAX))

    def _is_busy(self) -> bool:
        """Whether clients asked more than BUSY_PER_SECOND of this process lately."""
        now, count = self._parts.clock.monotonic(), self._parts.foreground()
        since, before = self._asked
        if now - since >= BUSY_SECONDS:
            self._was_busy = count - before > BUSY_PER_SECOND * (now - since)
            self._asked = (now, count)
        return self._was_busy

    async def _bring(self, rows: list[QueueRow]) -> None:
        """Bring the bodies of these rows to the target, then let go of the rows."""
        try:
            names, parts = await self._parts.database.read(lambda c: self._look(c, rows))
            gone = [row.sequence for row in rows if row.bucket_id not in names]
            await self._finish(gone)
            whole = [row for row in rows if row.bucket_id in names and row.sequence not in parts]
            for row in whole:
                if row.kind == schema.CHANGE_DELETE:
                    await self._name_again(row, names)
            whole = [row for row in whole if row.kind != schema.CHANGE_DELETE]
            small = [row for row in whole if row.size <= SEGMENT_BYTES]
            if small:
                items = [
                    FetchItem(names[row.bucket_id].name, row.key, row.version, 0, max(row.size, 1)) for row in small
                ]
                codes = await self._fetch(items, sum(row.size for row in small))
                await self._judge(small, codes, names)
            for row in whole:
                if row.size > SEGMENT_BYTES:
                    items = items_of(names[row.bucket_id].name, row, row.size, None)
                    await self._judge([row], [await self._fetch_each(items)], names)
            for row in rows:
                if (part := parts.get(row.sequence)) is not None:
                    await self._bring_part(names[row.bucket_id], row, part)
        except TierstoreError as error:
            self._target.failed(error)
            if isinstance(error, UnavailableError) and error.code in ("unreachable", "deadline"):
                self._target.status.is_reachable = False        # the next hello says when it is back
            for row in rows:
                self._retry(row)

    def _look(self, c: Connection, rows: Sequence[QueueRow]) -> tuple[dict[int, Bucket], dict[int, _Part]]:
        """The buckets of these rows, and of which of them (by sequence) less than the whole body goes."""
        names = sites.buckets_of(c, {row.bucket_id for row in rows})
        target, hot = self._target.name, self._parts.hot
        some = [
            row for row in rows
            if row.kind == schema.CHANGE_PUT and row.bucket_id in names and may_be_less(names[row.bucket_id], target)
        ]  # fmt: skip
        found = sites.versions_of(c, {(row.bucket_id, row.key, row.version) for row in some})
        parts = {}
        for row in some:
            held = found.get((row.bucket_id, row.key, row.version))
            if held is None:
                continue        # the target's answer will say that it is gone
            segments = segments_of(names[row.bucket_id], row, held, target, hot)
            if segments is not None or row.size < held.size:
                parts[row.sequence] = _Part(held.size, segments)
        return names, parts

    async def _bring_part(self, bucket: Bucket, row: QueueRow, part: _Part) -> None:
        """What is hot of a body, or nothing of it: the row was queued under other rules, or for its name's sake."""
        if part.segments is None or part.segments:
            code = await self._fetch_each(items_of(bucket.name, row, part.size, part.segments))
            if code:
                await self._judge([row], [code], {bucket.id: bucket})
                return
            body = body_of(self._target.name, row)
            self._parts.hot.arrived(body, part.segments or self._parts.hot.segments(body))
            self._target.status.bodies_sent += 1
        elif row.size >= part.size:     # else others have taken what it stood for
            await self._name_again(row, {bucket.id: bucket})
            return
        await self._finish_as_judged(row, bucket)

    async def _finish_as_judged(self, row: QueueRow, bucket: Bucket) -> None:
        if await self._target.finish_as_judged([row.sequence], bucket):
            self._retries.pop(row.sequence, None)
        else:
            self._retry(row)

    async def _fetch_each(self, items: Sequence[FetchItem]) -> str:
        """Segment by segment, SEGMENTS_AT_ONCE on their way; those that the target has do not travel. The first code
        that is not ""."""
        left = iter(items)
        codes: list[str] = []

        async def bring() -> None:
            for item in left:       # shared: each segment is taken once
                codes.extend(code for code in await self._fetch([item], item.length) if code)
                if codes:
                    return

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(SEGMENTS_AT_ONCE, len(items))):
                    group.create_task(bring())
        except* TierstoreError as errors:
            raise next(error for error in errors.exceptions if isinstance(error, TierstoreError)) from None
        return codes[0] if codes else ""

    async def _fetch(self, items: Sequence[FetchItem], size: int) -> list[str]:
        await self._pace(size)
        answer = await self._parts.courier.send(
            self._target.row, "/v1/sites/fetch", FetchBatch(list(items)), FetchAnswer, seconds=PARCEL_SECONDS
        )
        moved = sum(result.bytes for result in answer.results)
        self._target.moved(moved)
        for result in answer.results:
            if result.code and result.code not in _NO_NAME:
                self._target.status.error = f"{result.code}: {result.detail}"
        return [result.code for result in answer.results]

    async def _judge(self, rows: Sequence[QueueRow], codes: Sequence[str], names: dict[int, Bucket]) -> None:
        done = [row for row, code in zip(rows, codes, strict=True) if not code]
        self._target.status.bodies_sent += len(done)
        await self._finish([row.sequence for row in done])
        for row, code in zip(rows, codes, strict=True):
            if code in _NO_NAME:
                await self._name_again(row, names)
            elif code:
                self._retry(row)

    async def _name_again(self, row: QueueRow, names: dict[int, Bucket]) -> None:
        """The target does not know this version: it was replaced there (then the row is done), or its name was parked
        or lost with an older catalog (then it goes again)."""
        wanted = [(row.bucket_id, row.key, row.version)]
        held = (await self._parts.database.read(lambda c: sites.versions_of(c, wanted))).get(wanted[0])
        bucket = names[row.bucket_id]
        record = record_of(bucket, row, held)
        if record is None:
            await self._finish([row.sequence])
            return
        batch = name_batch(self._parts.me().name, [record], [bucket])
        answer = await self._parts.courier.send(
            self._target.row, "/v1/sites/names", batch, NameAnswer, seconds=NAMES_SECONDS
        )
        if answer.applied or answer.parked:
            self._retry(row)
        else:
            await self._finish_as_judged(row, bucket)

    def _retry(self, row: QueueRow) -> None:
        _, _, times = self._retries.get(row.sequence, (row, 0.0, 0))
        wait = min(RETRY_SECONDS_MAX, RETRY_SECONDS_MIN * 2**times)
        self._retries[row.sequence] = (row, self._parts.clock.monotonic() + wait, min(times + 1, 10))

    async def _finish(self, sequences: list[int]) -> None:
        await self._target.finish(sequences)
        for sequence in sequences:
            self._retries.pop(sequence, None)

    async def _pace(self, size: int) -> None:
        """Wait for this many bytes' turn under the target's bandwidth."""
        clock = self._parts.clock
        rate = bandwidth(self._target.row.link, clock.now_ms())
        if not rate:
            return
        now = clock.monotonic()
        at = max(self._ready_at, now)
        self._ready_at = at + size / rate
        if at > now:
            await clock.sleep(at - now)
