"""A Store whose every byte goes through a gateway: for clients that can reach nothing else (a firewall with one port).

The same calls over the published REST. Reads come in frames with checksums (sdk.frames), so that also the last hop is
verified; a write carries the CRC32C of its body when it is in memory, and the answer's is compared with what was sent.
What REST has no call for (meta of an existing object, reads of a mount) raises ConfigError.

Cost: a body passes one process more; a read asks for the object's facts first.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterable
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import IO, Any, Final
from urllib.parse import quote

import msgspec

from tierstore.checksum import crc_of, encode_crc
from tierstore.clock import Clock
from tierstore.errors import ChecksumMismatch, ConfigError, NotFound, RangeNotSatisfiable, RequestError
from tierstore.names import check_bucket_name, check_key, parse_version, version_text
from tierstore.sdk.buckets import Buckets, broken
from tierstore.sdk.limits import StoreLimits
from tierstore.sdk.objects import ObjectInfo, ObjectReader, PutInfo, check_condition, make_meta
from tierstore.sdk.put import Buffer
from tierstore.sdk.remote import GatewaySource
from tierstore.sdk.store import Store
from tierstore.transport.metadata_calls import error_of
from tierstore.transport.metadata_client import MetadataClient
from tierstore.transport.object_client import ObjectClient
from tierstore.transport.peer import Headers, PeerReply, PeerTransport
from tierstore.units import MIB
from tierstore.wire.names import CommitResult, Condition, ListEntry, ListResult, LookupResult, ObjectMeta

#: One piece of an upload; each is a step with the deadline of a request.
_PIECE_BYTES: Final = 1 * MIB
#: A body of unknown length is gathered before it is sent, up to so much in memory, else in a temporary file.
_SPOOL_MEMORY_BYTES: Final = 64 * MIB
_META: Final = "x-tierstore-meta-"


class _Listed(msgspec.Struct):
    key: str
    size: int
    etag: str
    version: str
    modified_at: str
    tier: str = ""
    heat_per_hour: float = 0.0


class _Page(msgspec.Struct):
    objects: list[_Listed]
    prefixes: list[str]
    next_start_after: str | None = None


class GatewayStore(Store):
    """Objects of one cluster, through one gateway. Made by `connect` when only the gateway answers."""

    def __init__(
        self, transport: PeerTransport, endpoint: str, token: str, *, clock: Clock, limits: StoreLimits | None = None,
        owned: PeerTransport | None = None,
    ) -> None:  # fmt: skip
        client = MetadataClient(transport, [endpoint], token=token, clock=clock, rng=random.Random())
        super().__init__(
            client, ObjectClient(transport, clock), clock=clock, limits=limits,
            buckets=Buckets(transport, endpoint, token), owned=owned,
        )  # fmt: skip
        self._transport = transport
        self._endpoint = endpoint
        self._auth = (b"authorization", b"Bearer " + token.encode("latin-1"))
        self._source = GatewaySource(transport, [endpoint], token)
        self._wall = clock

    async def open(self) -> Store:
        """Nothing to fetch: the gateway has the map."""
        return self

    # -- put ------------------------------------------------------------------------------------------------
    async def put(
        self, bucket: str, key: str, body: Buffer | AsyncIterable[Buffer], *, size: int | None = None,
        content_type: str = "", user_meta: dict[str, str] | None = None, condition: Condition | None = None,
        crc32c: int | None = None, access: str = "",
    ) -> PutInfo:  # fmt: skip
        """See Store.put. A body of unknown size is gathered first."""
        check_bucket_name(bucket)
        check_key(key)
        headers = _put_headers(make_meta(content_type, user_meta), condition)
        if not isinstance(body, AsyncIterable):
            view = memoryview(body).cast("B")
            crc = crc_of(view)
            if crc32c is not None and crc32c != crc:
                raise ChecksumMismatch("the body is not the one that the checksum is of; nothing was stored")
            return await self._send(bucket, key, _pieces(view), len(view), headers=headers, crc32c=crc)
        if size is not None:
            return await self._send(bucket, key, body, size, headers=headers, crc32c=crc32c)
        with tempfile.SpooledTemporaryFile(_SPOOL_MEMORY_BYTES) as spool:
            length = 0
            async for piece in body:
                length += len(piece)
                await asyncio.to_thread(spool.write, piece)
            spool.seek(0)
            return await self._send(bucket, key, _spooled(spool), length, headers=headers, crc32c=crc32c)

    async def _send(
        self, bucket: str, key: str, pieces: AsyncIterable[Buffer], size: int, *,
        headers: list[tuple[bytes, bytes]], crc32c: int | None,
    ) -> PutInfo:  # fmt: skip
        if crc32c is not None:
            headers.append((b"x-tierstore-checksum-crc32c", encode_crc(crc32c).encode()))
        seconds = self.limits.gateway_step_seconds
        if not size:
            return self._put_info(_checked(await self._call(b"PUT", _target(bucket, key), headers=headers)), 0, 0)
        upload = await self._transport.upload(
            self._endpoint, b"PUT", _target(bucket, key), headers=[self._auth, *headers], length=size, seconds=seconds
        )
        sent, crc = 0, 0
        try:
            async for piece in pieces:
                sent, crc = sent + len(piece), crc_of(piece, crc)
                if sent > size:
                    raise RequestError(f"the body is longer than the {size} bytes declared", code="body-length")
                await upload.write(piece)
            if sent != size:
                raise RequestError(f"the body has {sent} bytes, {size} were declared", code="body-length")
            reply = _checked(await upload.finish())
        except BaseException:
            upload.abort()
            raise
        return self._put_info(reply, size, crc)

    def _put_info(self, reply: PeerReply, size: int, crc: int) -> PutInfo:
        said = _text(reply, b"x-tierstore-checksum-crc32c")
        if said and said != encode_crc(crc):
            raise ChecksumMismatch("what the gateway stored is not what was sent; put it again")
        return PutInfo(
            parse_version(_text(reply, b"x-tierstore-version")), _etag(reply), size, crc,
            _text(reply, b"x-tierstore-tier"), self._wall.now_ms(),
        )  # fmt: skip

    # -- get ------------------------------------------------------------------------------------------------
    async def head(self, bucket: str, key: str, *, version: int = 0, access: str = "") -> ObjectInfo:
        check_bucket_name(bucket)
        check_key(key)
        target = _target(bucket, key) + (f"?version={version_text(version)}".encode() if version else b"")
        reply = await self._call(b"GET", target, headers=[(b"range", b"bytes=0-0")])
        if reply.status == 416:     # an empty object has no first byte
            reply = await self._call(b"GET", target)
        return _info(bucket, key, _checked(reply))

    async def get(
        self, bucket: str, key: str, *, first: int = 0, length: int = -1, version: int = 0,
        condition: Condition | None = None, access: str = "",
    ) -> ObjectReader:  # fmt: skip
        info = await self.head(bucket, key, version=version)
        found = LookupResult(version=info.version, size=info.size, etag=info.etag)
        check_condition(found, condition)
        if first < 0 or first > info.size:
            raise RangeNotSatisfiable(f"byte {first} of an object of {info.size} bytes", size=info.size)
        count = info.size - first if length < 0 else min(length, info.size - first)
        walk = self._source.walk(bucket, key, found, first=first, length=count, access=access)
        try:
            await walk.start()
        except BaseException:
            await walk.close()
            raise
        return ObjectReader(info, walk, first, count)

    # -- names ----------------------------------------------------------------------------------------------
    async def delete(
        self, bucket: str, key: str, *, version: int = 0, condition: Condition | None = None, access: str = "",
        bypass_governance: bool = False,
    ) -> CommitResult:  # fmt: skip
        check_key(key)
        if bypass_governance:
            raise _not_here("going past a governance lock")
        target = _target(bucket, key) + (f"?version={version_text(version)}".encode() if version else b"")
        try:
            _checked(await self._call(b"DELETE", target, headers=_conditions(condition)))
        except NotFound as error:
            if error.code != NotFound.code:
                raise
            return CommitResult()
        return CommitResult(existed=True)

    async def copy(
        self, bucket: str, key: str, to_bucket: str, to_key: str, *, meta: ObjectMeta | None = None,
        condition: Condition | None = None, source_condition: Condition | None = None, from_version: int = 0,
        rename: bool = False, access: str = "",
    ) -> CommitResult:  # fmt: skip
        check_key(to_key)
        if meta is not None or source_condition is not None or from_version:
            raise _not_here("a copy with other metadata, of a version or under a condition on its source")
        if rename and bucket != to_bucket:
            raise RequestError("an object is renamed within its bucket", code="bad-rename")
        wish = {"rename_to": to_key} if rename else {"copy_to": f"{to_bucket}/{to_key}"}
        reply = _checked(await self._call(
            b"POST", _target(bucket, key), body=msgspec.json.encode(wish),
            headers=[(b"content-type", b"application/json"), *_conditions(condition)],
        ))  # fmt: skip
        made = _json(reply, dict[str, Any])
        return CommitResult(version=parse_version(str(made["version"])), etag=str(made["etag"]), size=int(made["size"]))

    async def set_meta(self, *asked: Any, **how: Any) -> CommitResult:
        raise _not_here("changing the metadata of an object")

    async def list_page(
        self, bucket: str, *, prefix: str = "", delimiter: str = "", start_after: str = "", limit: int = 1000,
        access: str = "", want_placement: bool = True, want_class: bool = False,
    ) -> ListResult:  # fmt: skip
        check_bucket_name(bucket)
        wanted = {"prefix": prefix, "delimiter": delimiter, "start_after": start_after, "limit": str(limit)}
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in wanted.items() if value)
        page = _json(_checked(await self._call(b"GET", f"/v1/objects/{bucket}?{query}".encode("ascii"))), _Page)
        entries = [
            ListEntry(e.key, e.size, e.etag, parse_version(e.version), _ms(e.modified_at), e.tier, e.heat_per_hour)
            for e in page.objects
        ]
        return ListResult(objects=entries, prefixes=page.prefixes, next_start_after=page.next_start_after)

    async def find(self, *asked: Any, **how: Any) -> LookupResult:
        raise _not_here("looking up chunks")

    async def reserve(self) -> None:
        """The gateway holds its own allocations."""

    async def _call(self, method: bytes, target: bytes, *, headers: Headers = (), body: bytes = b"") -> PeerReply:
        return await self._transport.call(
            self._endpoint, method, target, headers=[self._auth, *headers], body=body,
            seconds=self.limits.gateway_step_seconds,
        )  # fmt: skip


def _target(bucket: str, key: str) -> bytes:
    return b"/v1/objects/" + quote(f"{bucket}/{key}", safe="/").encode("ascii")


def _put_headers(meta: ObjectMeta | None, condition: Condition | None) -> list[tuple[bytes, bytes]]:
    headers = _conditions(condition)
    if meta is not None:
        if meta.content_type:
            headers.append((b"content-type", meta.content_type.encode()))
        headers += [((_META + name).encode(), value.encode()) for name, value in meta.user_meta.items()]
    return headers


def _conditions(condition: Condition | None) -> list[tuple[bytes, bytes]]:
    if condition is None:
        return []
    if condition.version:
        raise _not_here("a condition on a version")
    headers = []
    for name, etags in ((b"if-match", condition.if_match), (b"if-none-match", condition.if_none_match)):
        if etags:
            headers.append((name, ", ".join(tag if tag == "*" else f'"{tag}"' for tag in etags).encode("latin-1")))
    return headers


def _checked(reply: PeerReply) -> PeerReply:
    if reply.status >= 300:
        raise error_of(reply)
    return reply


def _info(bucket: str, key: str, reply: PeerReply) -> ObjectInfo:
    span = _text(reply, b"content-range").rpartition("/")[2]
    modified = _text(reply, b"last-modified")
    at = parsedate_to_datetime(modified).timestamp() if modified else 0.0
    kind = _text(reply, b"content-type")
    names = [(name.decode("latin-1"), value.decode("utf-8", "replace")) for name, value in reply.headers]
    return ObjectInfo(
        bucket, key, int(span) if span.isdigit() else len(reply.body), _etag(reply),
        parse_version(_text(reply, b"x-tierstore-version")), int(at * 1000),
        "" if kind == "application/octet-stream" else kind,
        {name.removeprefix(_META): value for name, value in names if name.startswith(_META)},
        _text(reply, b"x-tierstore-checksum-crc32c"), _text(reply, b"x-tierstore-tier"),
    )  # fmt: skip


def _text(reply: PeerReply, name: bytes) -> str:
    return (reply.header(name) or b"").decode("latin-1")


def _etag(reply: PeerReply) -> str:
    return _text(reply, b"etag").strip('"')


def _ms(rfc3339: str) -> int:
    return int(datetime.fromisoformat(rfc3339).timestamp() * 1000)


def _json(reply: PeerReply, kind: Any) -> Any:
    try:
        return msgspec.json.decode(reply.body, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise broken(error) from None


async def _pieces(view: memoryview) -> Any:
    for at in range(0, len(view), _PIECE_BYTES):
        yield view[at : at + _PIECE_BYTES]


async def _spooled(spool: IO[bytes]) -> Any:
    while piece := await asyncio.to_thread(spool.read, _PIECE_BYTES):
        yield piece


def _not_here(what: str) -> ConfigError:
    return ConfigError(f"{what} needs the metadata service, and only the gateway can be reached from here")
