"""The native object routes, hot: GET, HEAD, PUT and DELETE /v1/objects/{bucket}/{key}.

Owns the way of one request: parse, who asks, may he, walk, answer. Statuses and headers are those of DESIGN.md,
section 10. Invariants: nothing of a body is read or looked up before the caller's rights were checked; nothing is
answered 200 before the commit; an upload that breaks off leaves nothing visible; requests under way and bytes of
uploads in memory are bounded.

Cost of a GET of 4 KiB here: parse and auth 10 us, one task, a share of a lookup, one read from an object server with
its CRC32C, one write. Of a PUT of 4 KiB: the same with two sends and a share of a commit; no allocation is waited for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Final

import msgspec

from tierstore.auth.access import Principal, authorize
from tierstore.checksum import encode_crc
from tierstore.errors import AccessDenied, NotFound, PreconditionFailed, RangeNotSatisfiable, UnavailableError
from tierstore.gateway.credentials import CredentialCache
from tierstore.gateway.object_answer import object_lines, put_lines, range_line, site_line
from tierstore.gateway.object_request import (
    CHECKSUM_HEADER,
    ByteRange,
    check_length,
    parse_checksum,
    parse_condition,
    parse_etags,
    parse_meta,
    parse_range,
    split_object_path,
)
from tierstore.gateway.rights import NativeRights
from tierstore.gateway.upload import UploadSink
from tierstore.names import parse_version
from tierstore.sdk.early import EarlyRead
from tierstore.sdk.objects import PutInfo
from tierstore.sdk.remote import BodyWalk
from tierstore.sdk.store import Store
from tierstore.serving import problem
from tierstore.serving.exchange import Exchange
from tierstore.wire.names import Condition, LookupResult, ObjectMeta
from tierstore.wire.s3 import is_sealed, shown_etag

PREFIX: Final = b"/v1/objects/"


#: (first, length) -> the walk over these plain bytes of one object.
OpenWalk = Callable[[int, int], BodyWalk]


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """requests_max: object requests under way in this process; more are answered 503 with Retry-After."""

    requests_max: int = 2000
    object_bytes_max: int = 5 << 40


@dataclass(frozen=True, slots=True)
class _PutRequest:
    """What a PUT says, parsed and checked, before its body."""

    bucket: str
    key: str
    principal: Principal
    meta: ObjectMeta | None
    condition: Condition | None
    crc32c: int | None


class ObjectDoor:
    """Handlers for the exchange. One per gateway process."""

    def __init__(
        self, store: Store, credentials: CredentialCache, rights: NativeRights, *, limits: DoorLimits | None = None
    ) -> None:
        self._store = store
        self._credentials = credentials
        self._rights = rights
        self._limits = limits or DoorLimits()
        self._site_line = b""
        self.budget = store.budget
        self.in_flight = 0
        self.answered_total = 0
        self.is_open = False
        #: Opens encrypted objects, for callers whose rights were judged; None: they are refused.
        self.sealed: Callable[[str, str, LookupResult], Awaitable[OpenWalk]] | None = None

    def open(self, site: str) -> None:
        """Take requests: the gateway has joined the cluster of this site."""
        self._site_line = site_line(site)
        self.is_open = True

    # -- handlers -------------------------------------------------------------------------------------------
    def get(self, exchange: Exchange) -> None:
        """GET and HEAD."""
        self.begin(exchange, self._read(exchange, exchange.route_arg))

    def delete(self, exchange: Exchange) -> None:
        self.begin(exchange, self._delete(exchange, exchange.route_arg))

    def put(self, exchange: Exchange) -> None:
        """Small bodies of known callers are collected and stored in one piece; all others stream."""
        if not self.is_open:
            raise UnavailableError("this gateway has not joined the cluster yet", code="not-ready")
        length = exchange.content_length
        if length is None and exchange.header(b"transfer-encoding") is None:
            length = 0
        check_length(length, self._limits.object_bytes_max)
        bucket, key = split_object_path(exchange.route_arg)
        principal = self._credentials.known(exchange.header(b"authorization"))
        if principal is None or length is None or length > self._store.small_bytes(bucket, key) or (
            not self._rights.is_plain(principal, bucket)
        ):  # fmt: skip
            self.begin(exchange, self._put_stream(exchange, bucket, key, principal, length))
            return
        authorize(principal, "write", bucket, key)
        request = self._put_request(exchange, bucket, key, principal)
        if not self.budget.try_take(length):
            # memory is short: the streaming way waits for its share
            self.begin(exchange, self._put_stream(exchange, bucket, key, principal, length))
            return
        collected = _Collected(self, exchange, request, length)
        exchange.receive(collected)

    def begin(self, exchange: Exchange, work: Coroutine[object, object, None]) -> None:
        """Run the rest of a request. Raises UnavailableError(busy) beyond the bound."""
        if not self.is_open:
            work.close()
            raise UnavailableError("this gateway has not joined the cluster yet", code="not-ready")
        if self.in_flight >= self._limits.requests_max:
            work.close()
            raise UnavailableError(f"{self.in_flight} requests are under way here, the bound", code="busy")
        exchange.spawn(self._counted(work))

    async def _counted(self, work: Coroutine[object, object, None]) -> None:
        self.in_flight += 1
        try:
            await work
        finally:
            self.in_flight -= 1
            self.answered_total += 1

    async def _principal(self, exchange: Exchange) -> Principal:
        header = exchange.header(b"authorization")
        return self._credentials.known(header) or await self._credentials.resolve(header)

    # -- reading --------------------------------------------------------------------------------------------
    async def _read(self, exchange: Exchange, rest: bytes) -> None:
        bucket, key = split_object_path(rest)
        is_head = exchange.method == b"HEAD"
        header = exchange.header
        wanted = None if is_head else parse_range(header(b"range"))
        version = exchange.query(b"version")
        principal = await self._principal(exchange)
        await self._rights.require(exchange, principal, "read", bucket, key, version=_version(version))
        first, length = (0, 1) if is_head else _window(wanted)
        is_plain = wanted is None and not (is_head or version or header(b"if-none-match") or header(b"if-match"))
        early = self._store.early.begin(bucket, key) if is_plain else None
        found = await self._store.find(
            bucket, key, version=_version(version), first=first, length=length, access=principal.access
        )
        stored, is_encrypted = found, is_sealed(found.etag)
        if is_encrypted:
            etag, size = shown_etag(found.etag, found.size)
            found = msgspec.structs.replace(found, etag=etag, size=size)
        if not _is_modified(found, header(b"if-match"), header(b"if-none-match")):
            exchange.reply(304, b"", object_lines(found, tier="", site_line=self._site_line))
            return
        if_range = header(b"if-range")
        if wanted is not None and if_range is not None and if_range.strip() != f'"{found.etag}"'.encode("latin-1"):
            wanted = None
            if (first or length >= 0) and not is_encrypted:
                found = await self._store.find(bucket, key, version=found.version, access=principal.access)
        if is_head:
            tier = found.chunks[0].replicas[0].tier if found.chunks and found.chunks[0].replicas else ""
            exchange.begin(200, object_lines(found, tier=tier, site_line=self._site_line), found.size)
            exchange.end()
            return
        plain: OpenWalk | None = None
        if is_encrypted:
            if self.sealed is None:
                raise AccessDenied("the object is encrypted; read it by the S3 API", code="encrypted-object")
            plain = await self.sealed(bucket, key, stored)
        await self._send(exchange, bucket, key, found, wanted=wanted, access=principal.access, plain=plain,
                         early=early)  # fmt: skip

    async def _send(
        self, exchange: Exchange, bucket: str, key: str, found: LookupResult, *, wanted: ByteRange | None,
        access: str, plain: OpenWalk | None = None, early: EarlyRead | None = None,
    ) -> None:  # fmt: skip
        size = found.size
        span = (0, size) if wanted is None else wanted.within(size)
        if span is None:
            error = RangeNotSatisfiable(f"the object has {size} bytes", size=size)
            status, body, lines = problem.render(error, exchange.request_id)
            exchange.reply(status, body, lines + b"content-range: bytes */%d\r\n" % size)
            return
        first, length = span
        walk: BodyWalk
        if plain is not None:
            walk = plain(first, length)
        else:
            walk = self._store.read_walk(
                bucket, key, found, first=first, length=length, access=access, early=early
            )
        try:
            await walk.start()
            site = site_line(walk.site) if walk.site else self._site_line
            lines = object_lines(found, tier=walk.tier, site_line=site)
            status = 200
            if wanted is not None:
                status = 206
                lines += range_line(first, length, size)
            if walk.whole is not None:
                exchange.reply(status, walk.whole, lines)
                return
            exchange.begin(status, lines, length)
            while piece := await walk.next_piece():
                await exchange.send(piece)
            exchange.end()
        finally:
            await walk.close()

    # -- writing --------------------------------------------------------------------------------------------
    def _put_request(self, exchange: Exchange, bucket: str, key: str, principal: Principal) -> _PutRequest:
        header = exchange.header
        return _PutRequest(
            bucket, key, principal, parse_meta(exchange.headers),
            parse_condition(header(b"if-match"), header(b"if-none-match")), parse_checksum(header(CHECKSUM_HEADER)),
        )  # fmt: skip

    async def put_collected(self, exchange: Exchange, request: _PutRequest, body: bytes) -> None:
        """A small body that is here as a whole."""
        made = await self._store.put_small(
            request.bucket, request.key, body, meta=request.meta, condition=request.condition,
            crc32c=request.crc32c, access=request.principal.access,
        )  # fmt: skip
        self._answer_put(exchange, made)

    async def _put_stream(
        self, exchange: Exchange, bucket: str, key: str, principal: Principal | None, length: int | None
    ) -> None:
        """A body of any size, by chunks, while it comes."""
        if principal is None:
            principal = await self._credentials.resolve(exchange.header(b"authorization"))
        await self._rights.require(exchange, principal, "write", bucket, key)
        request = self._put_request(exchange, bucket, key, principal)
        write = self._store.write_hint(
            meta=request.meta, condition=request.condition, crc32c=request.crc32c
        )
        walk = self._store.put_walk(bucket, key, size=length, access=principal.access,
                                    size_max=self._limits.object_bytes_max, write=write)  # fmt: skip
        try:
            sink = UploadSink(exchange, walk)
            exchange.receive(sink)
            await sink.run()
            result = await walk.finish(meta=request.meta, condition=request.condition, crc32c=request.crc32c)
            made = PutInfo(
                result.version, result.etag, walk.size, walk.crc32c(), walk.tier, result.created_at_ms
            )
        finally:
            await walk.abort()
        self._answer_put(exchange, made)

    def _answer_put(self, exchange: Exchange, made: PutInfo) -> None:
        lines = put_lines(made.version, made.etag, encode_crc(made.crc32c), made.tier, self._site_line)
        exchange.reply(200, b"", lines)

    async def _delete(self, exchange: Exchange, rest: bytes) -> None:
        bucket, key = split_object_path(rest)
        header = exchange.header
        version = _version(exchange.query(b"version"))
        condition = parse_condition(header(b"if-match"), header(b"if-none-match"))
        principal = await self._principal(exchange)
        await self._rights.require(exchange, principal, "delete", bucket, key, version=version)
        result = await self._store.delete(
            bucket, key, version=version, condition=condition, access=principal.access
        )
        if not result.existed:
            raise NotFound(f"there is no object {key!r} in bucket {bucket!r}", code="no-such-key")
        exchange.reply(204, b"", self._site_line)


class _Collected:
    """The sink of a small PUT: gathers the body within its share of the budget, then stores it."""

    def __init__(self, door: ObjectDoor, exchange: Exchange, request: _PutRequest, length: int) -> None:
        self._door = door
        self._exchange = exchange
        self._request = request
        self._length = length
        self._pieces: list[bytes] = []
        self._is_held = True

    def data(self, piece: memoryview) -> None:
        # the parser's pieces are bytes already, alone in their view: keep them without a copy
        whole = piece.obj
        self._pieces.append(whole if isinstance(whole, bytes) and len(whole) == len(piece) else bytes(piece))

    def complete(self) -> None:
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        try:
            self._door.begin(self._exchange, self._store(body))
        except UnavailableError:
            self._give_back()
            raise

    def aborted(self, error: BaseException) -> None:
        self._pieces.clear()
        self._give_back()

    async def _store(self, body: bytes) -> None:
        try:
            await self._door.put_collected(self._exchange, self._request, body)
        finally:
            self._give_back()

    def __del__(self) -> None:
        # a task that is cancelled before its first step runs no finally: the share must come back all the same
        self._give_back()

    def _give_back(self) -> None:
        if self._is_held:
            self._is_held = False
            self._door.budget.give_back(self._length)


def _window(wanted: ByteRange | None) -> tuple[int, int]:
    """first and length of the lookup for a range; a suffix needs the size first, so it asks from the start."""
    if wanted is None or wanted.first is None:
        return 0, -1
    return wanted.first, -1 if wanted.last is None else wanted.last - wanted.first + 1


def _version(raw: bytes | None) -> int:
    return 0 if raw is None else parse_version(raw.decode("latin-1"))


def _is_modified(found: LookupResult, if_match: bytes | None, if_none_match: bytes | None) -> bool:
    """RFC 9110, 13.2.2: If-Match first (raises PreconditionFailed), then If-None-Match (False: 304)."""
    if if_match is not None:
        etags = parse_etags(if_match, "If-Match")
        if "*" not in etags and found.etag not in etags:
            raise PreconditionFailed(f'If-Match does not hold: the ETag is "{found.etag}"')
    if if_none_match is not None:
        etags = parse_etags(if_none_match, "If-None-Match")
        return "*" not in etags and found.etag not in etags
    return True
