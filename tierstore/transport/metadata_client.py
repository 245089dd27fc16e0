"""Typed calls to the metadata service: lookups, allocations and commits in batches, the rest one by one.

Owns the coalescing lanes, the estimate of catalog time, and the cluster map with its revisions (refetched once, in the
background, when an answer shows a newer one). Does not know what the items mean. Requests outlast a restart of metadata
(metadata_calls.py): lookups may be repeated freely; mutations carry operation ids, so a repeat gets the first one's
result (rule 12).
A commit that was sent and not answered ends as UnavailableError(code="outcome-unknown"), never as a plain failure.

Cost of a lookup among others: a future, 1/n of a request (about 25 us of client CPU), no timer.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tierstore import wire
from tierstore.clock import Clock
from tierstore.errors import UnavailableError, from_code
from tierstore.names import (
    OPERATION_ID_BYTES,
    UPLOAD_ID_BYTES,
    UploadId,
    allocated_at_ms,
    operation_id,
    operation_of,
)
from tierstore.transport.batches import BatchLane, Waiter
from tierstore.transport.metadata_calls import MetadataCalls, MetadataLimits, decoded
from tierstore.transport.peer import PeerTransport
from tierstore.wire.cluster import BadChunk, ClusterMap, Credential, Heartbeat, HeartbeatAnswer, Register, Registered
from tierstore.wire.names import (
    UNDER_WAY,
    WAITED,
    AllocateBatch,
    AllocateItem,
    AllocateReply,
    AllocateResult,
    CommitBatch,
    CommitChunk,
    CommitItem,
    CommitReply,
    CommitResult,
    ListItem,
    ListResult,
    LookupBatch,
    LookupItem,
    LookupReply,
    LookupResult,
    Mutation,
    Renew,
    Renewed,
)

T = TypeVar("T")

#: An upload older than this is committed under an operation of its own.
UPLOAD_YOUNG_MS = 600_000
#: Results of one item after which the same operation is sent again.
_REPEATED_RESULTS = frozenset({"outcome-unknown", "unavailable", "catalog-unavailable"})
_COMMIT_REPEATS = 4
#: Commits that wait for other sites (sync rules) travel apart from all others, which would wait with them: so many
#: messages at a time, of the buckets whose commits did lately.
FAR_DEPTH = 64
FAR_BUCKETS_MAX = 1_000


class MetadataClient:
    """One per process. `urls`: metadata processes of this site, tried in turn; `token`: user's or daemon's."""

    def __init__(
        self, transport: PeerTransport, urls: Sequence[str], *, token: str, clock: Clock, rng: random.Random,
        limits: MetadataLimits | None = None,
    ) -> None:  # fmt: skip
        self._clock = clock
        self._rng = rng
        self.limits = bounds = limits or MetadataLimits()
        self._calls = MetadataCalls(transport, urls, token=token, rng=rng, limits=bounds)
        self._catalog_ahead_ms = 0
        self._map: ClusterMap | None = None
        self._map_task: asyncio.Task[ClusterMap] | None = None
        self.auth_revision = 0
        self._revisions_seen = (0, 0)
        #: Called with no argument when the revision of keys or rights has changed (caches of credentials are stale).
        self.on_auth_change: list[Callable[[], None]] = []
        #: Called with the new map (servers, states, policy) after it was fetched.
        self.on_map_change: list[Callable[[ClusterMap], None]] = []
        self._lookups: BatchLane[LookupItem, LookupResult] = self._lane(
            "lookup", self._send_lookups, bounds, patience_seconds=bounds.lookup_patience_seconds
        )
        self._allocations: BatchLane[AllocateItem, AllocateResult] = self._lane(
            "allocate", self._send_allocates, bounds, patience_seconds=bounds.lookup_patience_seconds
        )
        self._commits: BatchLane[CommitItem, CommitResult] = self._lane(
            "commit", self._send_commits, bounds, patience_seconds=bounds.commit_patience_seconds
        )
        # What is under way is asked again apart from new ones: its messages are answered when something has arrived.
        self._far_commits, self._asked_again = (
            BatchLane[CommitItem, CommitResult](
                "commit", self._send_commits, depth=FAR_DEPTH, items_max=bounds.items_max,
                waiting_max=bounds.waiting_max,
            )
            for _ in range(2)
        )  # fmt: skip
        self._far_buckets: OrderedDict[str, None] = OrderedDict()
        self._bad: dict[tuple[bytes, int], BadChunk] = {}
        self._bad_task: asyncio.Task[None] | None = None

    @staticmethod
    def _lane(name: str, send: Any, bounds: MetadataLimits, *, patience_seconds: float) -> BatchLane[Any, Any]:
        return BatchLane(
            name, send, depth=bounds.depth, eager=1, patience_seconds=patience_seconds, items_max=bounds.items_max,
            waiting_max=bounds.waiting_max,
        )  # fmt: skip

    def set_token(self, token: str) -> None:
        """The credential of every later call (a daemon gets its secret at registration)."""
        self._calls.set_token(token)

    # -- the batched three ----------------------------------------------------------------------------------
    async def lookup(self, item: LookupItem, *, seconds: float = 10.0) -> LookupResult:
        """Raises NotFound, AccessDenied, ..., UnavailableError (deadline, metadata-unreachable)."""
        result = await self._lookups.submit(item, seconds)
        if result.code:
            raise from_code(result.code, result.detail)
        return result

    async def allocate(self, item: AllocateItem, *, seconds: float = 10.0) -> AllocateResult:
        """Raises UnavailableError(not-enough-servers), CapacityError(cluster-full), ... The first has a field
        `returning` when servers are expected back in a moment."""
        result = await self._allocations.submit(item, seconds)
        if result.code:
            error = from_code(result.code, result.detail)
            if result.returning:
                error.fields["returning"] = result.returning
            raise error
        return result

    async def commit(
        self, mutation: Mutation, *, access: str = "", operation: bytes = b"", seconds: float = 10.0
    ) -> CommitResult:
        """Apply one mutation, once, whatever is repeated on the way. Durable when it returns.

        `operation`: names.OperationId when the caller wants to repeat the call itself, else one is made. Raises
        PreconditionFailed, NotFound, ConflictError, ..., UnavailableError(code="outcome-unknown")."""
        item = CommitItem(
            operation=operation or self.new_operation(),
            deadline_ms=self.catalog_ms() + int(seconds * 1000),
            mutation=mutation,
            access=access,
        )
        assert len(item.operation) == OPERATION_ID_BYTES
        loop = asyncio.get_running_loop()
        until, began = loop.time() + seconds, loop.time()
        repeats = 0
        lane = self._far_commits if mutation.bucket in self._far_buckets else self._commits
        while True:
            result = await lane.submit(item, max(until - loop.time(), 0.0))
            self._note_wait(mutation.bucket, result)
            if result.code not in _REPEATED_RESULTS or result.waits == WAITED:
                break       # what a sync rule has decided is not asked again
            if result.waits == UNDER_WAY and loop.time() < began + self.limits.under_way_seconds:
                until = max(until, loop.time() + seconds)       # another site is taking it: metadata says when not
                lane = self._asked_again
                continue
            repeats += 1
            if repeats == _COMMIT_REPEATS:
                break
            # the same operation id: if it was applied after all, its result comes back
            await asyncio.sleep(self.limits.pause_seconds_min * (1 + self._rng.random()))
        if result.code:
            raise from_code(result.code, result.detail)
        return result

    def _note_wait(self, bucket: str, result: CommitResult) -> None:
        """Remember the buckets whose commits wait for other sites."""
        if not result.waits:
            if not result.code:
                self._far_buckets.pop(bucket, None)
            return
        self._far_buckets[bucket] = None
        self._far_buckets.move_to_end(bucket)
        if len(self._far_buckets) > FAR_BUCKETS_MAX:
            self._far_buckets.popitem(last=False)

    def new_operation(self) -> bytes:
        return operation_id(self.catalog_ms(), self._rng.getrandbits(80))

    def operation_for(self, chunks: Sequence[CommitChunk]) -> bytes:
        """An operation to commit these chunks under, once: their upload's own when there is only one and it is young
        (an operation's deadline may lie no more than an hour behind its id's time)."""
        uploads = {chunk.id[:UPLOAD_ID_BYTES] for chunk in chunks}
        if len(uploads) == 1:
            upload = UploadId(uploads.pop())
            if self.catalog_ms() - allocated_at_ms(upload) < UPLOAD_YOUNG_MS:
                return operation_of(upload)
        return self.new_operation()

    async def _send_lookups(self, batch: Sequence[Waiter[LookupItem, LookupResult]]) -> Sequence[LookupResult]:
        body = wire.encode(LookupBatch([waiter.item for waiter in batch]))
        reply = await self._batch(b"/v1/internal/lookup", body, batch, LookupReply)
        self._note(reply)
        return reply.results

    async def _send_allocates(self, batch: Sequence[Waiter[AllocateItem, AllocateResult]]) -> Sequence[AllocateResult]:
        body = wire.encode(AllocateBatch([waiter.item for waiter in batch]))
        reply = await self._batch(b"/v1/internal/allocate", body, batch, AllocateReply)
        self.note_catalog_ms(reply.now_ms)
        self._note(reply)
        return reply.results

    async def _send_commits(self, batch: Sequence[Waiter[CommitItem, CommitResult]]) -> Sequence[CommitResult]:
        body = wire.encode(CommitBatch([waiter.item for waiter in batch]))
        try:
            reply = await self._batch(b"/v1/internal/commit", body, batch, CommitReply)
        except UnavailableError as error:
            if error.code not in ("metadata-unreachable", "deadline"):
                raise
            raise UnavailableError(
                f"metadata did not say whether the commit was made ({error}); read before repeating",
                code="outcome-unknown",
            ) from error
        self._note(reply)
        return reply.results

    async def _batch(self, target: bytes, body: bytes, batch: Sequence[Waiter[Any, Any]], kind: type[T]) -> T:
        """One batch, repeated until its last waiter's deadline."""
        until = max(waiter.until for waiter in batch)
        reply = await self._calls.held(
            b"POST", target, body, until, is_pointless=lambda: all(waiter.future.done() for waiter in batch)
        )
        return decoded(reply.body, kind)

    # -- one by one; seconds None: as long as a request is held for a restart, and an attempt more ------------
    async def list(self, item: ListItem, *, seconds: float | None = None) -> ListResult:
        result = await self._calls.ask(b"/v1/internal/list", item, ListResult, seconds)
        if result.code:
            raise from_code(result.code, result.detail)
        return result

    async def renew(self, renew: Renew, *, seconds: float | None = None) -> Renewed:
        """Durable when it returns. Raises ConflictError(upload-lapsed)."""
        return await self._calls.ask(b"/v1/internal/renew", renew, Renewed, seconds)

    async def bad_chunks(self, bad: Sequence[BadChunk], *, seconds: float | None = None) -> None:
        await self._calls.ask(b"/v1/internal/bad-chunks", list(bad), dict[str, object], seconds)

    async def credential(
        self, *, access: str = "", token_sha256: bytes = b"", seconds: float | None = None
    ) -> Credential:  # fmt: skip
        """The key with this access id or token hash. Raises NotAuthenticated or NotFound when there is none."""
        question: dict[str, object] = {"access": access} if access else {"token_sha256": token_sha256}
        return await self._calls.ask(b"/v1/internal/credential", question, Credential, seconds)

    async def register(self, register: Register, *, seconds: float = 10.0) -> Registered:
        """Join, or come back. The secret becomes this client's credential."""
        registered = await self._calls.ask(b"/v1/internal/register", register, Registered, seconds)
        if registered.secret:       # "": who comes back keeps the secret it has
            self.set_token(registered.secret)
        self.note_catalog_ms(registered.now_ms)
        return registered

    async def heartbeat(self, beat: Heartbeat, *, seconds: float = 5.0) -> HeartbeatAnswer:
        """A gateway's sign of life (object servers have their own agent)."""
        answer = await self._calls.ask(b"/v1/internal/heartbeat", beat, HeartbeatAnswer, seconds)
        self.note_catalog_ms(answer.now_ms)
        if answer.auth_revision >= 0:
            self._note_auth(answer.auth_revision)
        if answer.policy_revision >= 0 and not answer.reregister:
            # or the first write after a pause would go where an older policy says
            self._note_map(answer.map_revision, answer.policy_revision)
        return answer

    def forget_rights(self) -> None:
        """Keys or rights were changed by way of this process: caches of credentials are stale before any answer."""
        for on_auth in self.on_auth_change:
            on_auth()

    async def ask(
        self, target: bytes, question: object, kind: type[T], *, seconds: float | None = None, access: str = ""
    ) -> T:
        """One message of another conversation (tierstore.files has its own) under this client's retries. access: the
        user for whom a daemon asks."""
        return await self._calls.ask(target, question, kind, seconds, access)

    # -- what answers say beside their results --------------------------------------------------------------
    def catalog_ms(self) -> int:
        """Catalog time, ms since 1970, as this client estimates it."""
        return self._clock.now_ms() + self._catalog_ahead_ms

    def note_catalog_ms(self, now_ms: int) -> None:
        self._catalog_ahead_ms = now_ms - self._clock.now_ms()

    def _note(self, reply: LookupReply | AllocateReply | CommitReply) -> None:
        self._note_auth(reply.auth_revision)
        self._note_map(reply.map_revision, reply.policy_revision)

    def _note_map(self, map_revision: int, policy_revision: int) -> None:
        # remembered apart from the map held, so that a metadata process that is behind does not cause a fetch per reply
        if (map_revision, policy_revision) != self._revisions_seen:
            self._revisions_seen = (map_revision, policy_revision)
            if not self._map_is_current():
                self.refresh_map()

    def _note_auth(self, revision: int) -> None:
        if revision != self.auth_revision:
            self.auth_revision = revision
            for on_auth in self.on_auth_change:
                on_auth()

    def _map_is_current(self) -> bool:
        held = self._map
        return held is not None and (held.revision, held.policy_revision) == self._revisions_seen

    @property
    def map(self) -> ClusterMap | None:
        """The cluster map as last fetched."""
        return self._map

    async def cluster_map(self) -> ClusterMap:
        """The map held, or the first one."""
        return self._map if self._map is not None else await asyncio.shield(self.refresh_map())

    def refresh_map(self) -> asyncio.Task[ClusterMap]:
        """Fetch the map anew in the background; one fetch at a time."""
        if self._map_task is None or self._map_task.done():
            self._map_task = asyncio.get_running_loop().create_task(self._fetch_map())
            self._map_task.add_done_callback(_retrieve)
        return self._map_task

    async def _fetch_map(self) -> ClusterMap:
        until = asyncio.get_running_loop().time() + self.limits.hold_seconds
        while True:
            seen = self._revisions_seen
            reply = await self._calls.held(b"GET", b"/v1/cluster", b"", until, accept_packed=True)
            fresh = decoded(reply.body, ClusterMap)
            self._map = fresh
            self._note_auth(fresh.auth_revision)
            for on_map in self.on_map_change:
                on_map(fresh)
            if seen == self._revisions_seen or self._map_is_current():
                return fresh

    # -- bad copies -----------------------------------------------------------------------------------------
    def report_bad(self, bad: BadChunk) -> None:
        """Tell metadata about a bad copy in the background: together with others, each copy once at a time."""
        if len(self._bad) < self.limits.bad_chunks_max:
            self._bad[bad.chunk, bad.device] = bad
        if self._bad_task is None or self._bad_task.done():
            self._bad_task = asyncio.get_running_loop().create_task(self._send_bad())
            self._bad_task.add_done_callback(_retrieve)

    async def _send_bad(self) -> None:
        while self._bad:
            batch, self._bad = self._bad, {}
            await self.bad_chunks(list(batch.values()))

    async def close(self) -> None:
        for lane in (self._lookups, self._allocations, self._commits, self._far_commits, self._asked_again):
            await lane.close()
        for task in (self._map_task, self._bad_task):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Look at the outcome of a background fetch, so that a failure is not also logged as never retrieved: whoever
    needs the result awaits the task; the next answer that shows a new revision starts another one."""
    if not task.cancelled():
        task.exception()
