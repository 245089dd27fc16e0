"""The hot routes of metadata: lookup, allocate, commit, list, renew, bad-chunks. HTTP only, no rules.

A lookup or an allocation is answered in the call that brought its body whenever all it needs is at hand (SQLite,
known callers): no task, no wait. Everything else is a coroutine that owns the exchange.

Cost of a lookup of one item: decode 1 us, caller 0.3 us, row and tickets (services/names/lookup), encode 2 us.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from metadata.services.access.credentials import Credentials
from metadata.services.names.allocate import AllocateService
from metadata.services.names.commit import CommitService
from metadata.services.names.listing import ListingService
from metadata.services.names.lookup import ITEMS_MAX, LookupService
from metadata.services.names.uploads import UploadService
from metadata.services.sites.ahead import Ahead
from tierstore.auth.access import Principal
from tierstore.clock import Clock
from tierstore.errors import NotAuthenticated, RequestError, TierstoreError
from tierstore.serving.exchange import Exchange
from tierstore.serving.table import Route
from tierstore.wire import MEDIA_TYPE, decode, encode
from tierstore.wire.cluster import BadChunk
from tierstore.wire.names import (
    AllocateBatch,
    AllocateItem,
    AllocateReply,
    AllocateResult,
    CommitBatch,
    CommitItem,
    CommitReply,
    CommitResult,
    ListItem,
    LookupBatch,
    LookupItem,
    LookupReply,
    LookupResult,
    Renew,
    Renewed,
)

T = TypeVar("T")

BODY_BYTES_MAX: Final = 16 << 20
#: Items of one message that take the long way at the same time.
SLOW_ITEMS_MAX: Final = 64
_LINES: Final = b"content-type: " + MEDIA_TYPE.encode() + b"\r\n"


@dataclass(frozen=True, slots=True)
class Revisions:
    """Callables for what every answer carries, so that callers notice changes."""

    map: Callable[[], int]
    auth: Callable[[], int]
    policy: Callable[[], int]

    def now(self) -> tuple[int, int, int]:
        return self.map(), self.auth(), self.policy()


class SyncWaits(Protocol):
    """Commits of buckets with a sync rule wait here."""

    def holds_back(self, items: Sequence[CommitItem]) -> bool: ...

    def read_ahead(self, items: Sequence[CommitItem]) -> Ahead: ...

    async def confirm(
        self, items: Sequence[CommitItem], results: Sequence[CommitResult], ahead: Ahead | None = None
    ) -> list[CommitResult]: ...


class HotRoutes:
    """Handlers on the Exchange seam. One per process."""

    def __init__(
        self, *, credentials: Credentials, lookups: LookupService, allocations: AllocateService, commits: CommitService,
        listings: ListingService, uploads: UploadService, revisions: Revisions, clock: Clock,
        report_bad: Callable[[Sequence[BadChunk], Principal], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._credentials = credentials
        self._lookups = lookups
        self._allocations = allocations
        self._commits = commits
        self._listings = listings
        self._uploads = uploads
        self._revisions = revisions
        self._clock = clock
        self._report_bad = report_bad
        #: Holds back results until the sites of sync rules have what they must.
        self.sync: SyncWaits | None = None

    def routes(self) -> list[Route]:
        """The rows of the protocol class's table, in the order of `SUMMARIES`."""
        return [
            Route(b"POST", b"/v1/internal/lookup", self.lookup),
            Route(b"POST", b"/v1/internal/allocate", self.allocate),
            Route(b"POST", b"/v1/internal/commit", self.commit),
            Route(b"POST", b"/v1/internal/list", self.list),
            Route(b"POST", b"/v1/internal/renew", self.renew),
            Route(b"POST", b"/v1/internal/bad-chunks", self.bad_chunks),
        ]

    # -- lookup ---------------------------------------------------------------------------------------------
    def lookup(self, exchange: Exchange) -> None:
        header = exchange.header(b"authorization")
        caller = self._credentials.caller_now(header)

        def then(body: bytes) -> None:
            items = _items(decode(body, LookupBatch).items)
            if caller is not None:
                results = self._lookup_now(items, self._credentials.sending(caller, exchange.peer))
                if results is not None:
                    self._reply(exchange, LookupReply(results, *self._revisions.now()))
                    return
            exchange.spawn(self._lookup(exchange, items, header))

        exchange.collect(BODY_BYTES_MAX, then)

    def _lookup_now(self, items: list[LookupItem], caller: Principal) -> list[LookupResult] | None:
        results = []
        for item in items:
            try:
                who = self._credentials.behind_now(caller, item.access)
            except TierstoreError as error:
                results.append(LookupResult(code=error.code, detail=error.detail))
                continue
            result = self._lookups.lookup_now(item, who) if who is not None else None
            if result is None:
                return None
            results.append(result)
        return results

    async def _lookup(self, exchange: Exchange, items: list[LookupItem], header: bytes | None) -> None:
        caller = await self._caller(exchange, header)

        async def one(item: LookupItem) -> LookupResult:
            who, problem = await self._behind(caller, item.access)
            if problem is not None:
                return LookupResult(code=problem.code, detail=problem.detail)
            result = self._lookups.lookup_now(item, who)
            return result if result is not None else await self._lookups.lookup(item, who)

        self._reply(exchange, LookupReply(await _each(items, one), *self._revisions.now()))

    # -- allocate -------------------------------------------------------------------------------------------
    def allocate(self, exchange: Exchange) -> None:
        header = exchange.header(b"authorization")

        async def work(items: list[AllocateItem]) -> None:
            caller = await self._credentials.caller(header)

            async def one(item: AllocateItem) -> AllocateResult:
                who, problem = await self._behind(caller, item.access)
                if problem is not None:
                    return AllocateResult(code=problem.code, detail=problem.detail)
                return self._allocations.allocate(item, who)

            results = await _each(items, one)
            self._reply(exchange, AllocateReply(results, self._clock.now_ms(), *self._revisions.now()))

        self._spawn_with(exchange, AllocateBatch, lambda batch: work(_items(batch.items)))

    # -- commit ---------------------------------------------------------------------------------------------
    def commit(self, exchange: Exchange) -> None:
        header = exchange.header(b"authorization")
        caller = self._credentials.caller_now(header)

        def then(body: bytes) -> None:
            items = _items(decode(body, CommitBatch).items)
            sender = None if caller is None else self._credentials.sending(caller, exchange.peer)
            if sender is None or not self._commit_now(exchange, items, sender):
                exchange.spawn(self._commit(exchange, items, header))

        exchange.collect(BODY_BYTES_MAX, then)

    def _commit_now(self, exchange: Exchange, items: list[CommitItem], caller: Principal) -> bool:
        """Queue a message of known callers; its answer follows without a task. False: it is _commit()'s."""
        if self._waits(items):
            return False
        pairs = []
        try:
            for item in items:
                who = self._credentials.behind_now(caller, item.access)
                if who is None:
                    return False
                pairs.append((item, who))
        except TierstoreError:
            return False            # an item's own error: told with the others' results

        def answer(results: list[CommitResult]) -> None:
            if self._waits(items):
                exchange.spawn(self._confirm(exchange, items, results))     # a rule that came meanwhile
                return
            try:
                self._reply(exchange, CommitReply(results, *self._revisions.now()))
            except Exception as error:  # the commit is made: whatever is wrong with the answer is this exchange's
                exchange.fail(error)

        return self._commits.submit(pairs, answer)

    def _waits(self, items: Sequence[CommitItem]) -> bool:
        """Whether other sites must have some of it first. All others are answered before the queue is looked at, which
        their commit has just woken."""
        return self.sync is not None and self.sync.holds_back(items)

    async def _confirm(
        self, exchange: Exchange, items: Sequence[CommitItem], results: Sequence[CommitResult]
    ) -> None:
        assert self.sync is not None, "asked by the caller"
        self._reply(exchange, CommitReply(await self.sync.confirm(items, results), *self._revisions.now()))

    async def _commit(self, exchange: Exchange, items: list[CommitItem], header: bytes | None) -> None:
        caller = await self._caller(exchange, header)
        results: list[CommitResult | None] = [None] * len(items)
        ready = []
        for place, item in enumerate(items):
            who, problem = await self._behind(caller, item.access)
            if problem is not None:
                results[place] = CommitResult(code=problem.code, detail=problem.detail)
            else:
                ready.append((place, (item, who)))
        taken = [item for _, (item, _) in ready]
        with contextlib.ExitStack() as stack:
            ahead = None
            if self.sync is not None and self.sync.holds_back(taken):
                ahead = stack.enter_context(self.sync.read_ahead(taken))
            # Shielded: a client that goes away must not leave half of its message uncommitted.
            done = await asyncio.shield(self._commits.commit([pair for _, pair in ready]))
            if self.sync is not None and self.sync.holds_back(taken):
                done = await self.sync.confirm(taken, done, ahead)
        for (place, _), result in zip(ready, done, strict=True):
            results[place] = result
        self._reply(exchange, CommitReply(results, *self._revisions.now()))  # type: ignore[arg-type]

    # -- the rest -------------------------------------------------------------------------------------------
    def list(self, exchange: Exchange) -> None:
        header = exchange.header(b"authorization")

        async def work(item: ListItem) -> None:
            caller = await self._caller(exchange, header)
            who = await self._credentials.behind(caller, item.access)
            self._reply(exchange, await self._listings.page(item, who))

        self._spawn_with(exchange, ListItem, work)

    def renew(self, exchange: Exchange) -> None:
        header = exchange.header(b"authorization")

        async def work(message: Renew) -> None:
            caller = await self._credentials.caller(header)
            self._reply(exchange, Renewed(await self._uploads.renew(message, caller)))

        self._spawn_with(exchange, Renew, work)

    def bad_chunks(self, exchange: Exchange) -> None:
        header = exchange.header(b"authorization")

        async def work(bad: Sequence[BadChunk]) -> None:
            caller = await self._credentials.caller(header)
            await self._report_bad(_items(bad), caller)
            self._reply(exchange, {})

        self._spawn_with(exchange, _BadChunks, work)

    # -- shared steps ---------------------------------------------------------------------------------------
    async def _caller(self, exchange: Exchange, header: bytes | None) -> Principal:
        return self._credentials.sending(await self._credentials.caller(header), exchange.peer)

    async def _behind(self, caller: Principal, access: str) -> tuple[Principal, TierstoreError | None]:
        """For whom an item is, or why for nobody: an error of the item, not of the message."""
        try:
            return await self._credentials.behind(caller, access), None
        except NotAuthenticated as error:
            return caller, error
        except TierstoreError as error:
            if error.status >= 500:
                raise
            return caller, error

    def _spawn_with(
        self, exchange: Exchange, kind: type[T], work: Callable[[T], Any]
    ) -> None:
        self._credentials.caller_now(exchange.header(b"authorization"))     # refuses nobody before the body is read
        exchange.collect(BODY_BYTES_MAX, lambda body: exchange.spawn(work(decode(body, kind))))

    @staticmethod
    def _reply(exchange: Exchange, message: object) -> None:
        exchange.reply(200, encode(message), _LINES)


_BadChunks: Any = list[BadChunk]


def _items(items: Sequence[T]) -> Any:
    if len(items) > ITEMS_MAX:
        raise RequestError(f"{len(items)} items in one message, at most {ITEMS_MAX} are taken", code="too-many-items")
    return items


async def _each(items: Sequence[Any], one: Callable[[Any], Awaitable[T]]) -> Any:
    """Results in order, SLOW_ITEMS_MAX at a time."""
    if len(items) == 1:
        return [await one(items[0])]
    results: Any = []
    for at in range(0, len(items), SLOW_ITEMS_MAX):
        results += await asyncio.gather(*(one(item) for item in items[at : at + SLOW_ITEMS_MAX]))
    return results


SUMMARIES: Final = {
    "lookup": ("Look objects up", "LookupBatch", "LookupReply"),
    "allocate": ("Get places and tickets for chunks to come", "AllocateBatch", "AllocateReply"),
    "commit": ("Apply changes of names", "CommitBatch", "CommitReply"),
    "list": ("List a page of names", "ListItem", "ListResult"),
    "renew": ("Keep uploads and reads alive", "Renew", "{}"),
    "bad-chunks": ("Report copies that failed their check", "list[BadChunk]", "{}"),
}
