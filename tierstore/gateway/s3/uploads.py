"""The body of an S3 upload, checked: length, signature, MD5, checksums; into a PutWalk or a small put.

Owns the common way of PutObject, UploadPart and POST forms. Invariant: nothing is committed before every digest that
the client sent was compared with what came.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from tierstore.auth.sigv4 import UNSIGNED_PAYLOAD, ChunkSigner
from tierstore.gateway.s3 import checksums
from tierstore.gateway.s3.auth import STREAMING, STREAMS, signed_chunks
from tierstore.gateway.s3.body import INLINE_BYTES, BodyPump, ChunkedDecoder, Collected, Hasher
from tierstore.gateway.s3.errors import S3Error
from tierstore.gateway.s3.request import Call
from tierstore.gateway.upload import Pushed

OBJECT_BYTES_MAX: Final = 5 << 40
PUT_BYTES_MAX: Final = 5 << 30
#: Sums that AWS has since 2026 and this door has not: passed over, a body would be kept that nobody compared.
_NOT_COMPARED: Final = frozenset(
    f"{checksums.PREFIX}{name}".encode() for name in ("sha512", "md5", "xxhash64", "xxhash3", "xxhash128")
)
_CHECKSUMS: Final = _NOT_COMPARED | {(checksums.PREFIX + name).encode() for name in checksums.ALGORITHMS}


@dataclass(slots=True)
class Promise:
    """What the head of an upload says about its body. size: decoded bytes, -1 unknown."""

    size: int
    md5: bytes | None
    sha256: str                       # of the payload, hex, "" when unsigned
    algorithm: str                    # "" none
    checksum: bytes | None            # None: in the trailer, or nowhere
    trailer: str
    is_chunked: bool


def promise_of(call: Call, *, sums_are_of_object: bool = False) -> Promise:
    """Raises S3Error before a byte of the body is read. sums_are_of_object: see BodyReader.small."""
    exchange = call.exchange
    is_chunked = call.payload in STREAMS
    raw = call.header(b"x-amz-decoded-content-length") if is_chunked else None
    if raw is not None and raw.isascii() and raw.isdigit() and len(raw) < 16:
        size = int(raw)
    elif is_chunked:
        raise S3Error("MissingContentLength")
    elif exchange.content_length is None and exchange.header(b"transfer-encoding") is not None:
        # its length must be known before: AWS takes such bodies as aws-chunked only, with their decoded length
        raise S3Error("NotImplemented", Header="Transfer-Encoding")
    else:
        size = exchange.content_length or 0
    if size > PUT_BYTES_MAX:
        raise S3Error("EntityTooLarge")
    algorithm, checksum = _checksum_header(call, may_count_parts=sums_are_of_object)
    trailer = (call.header(b"x-amz-trailer") or "").lower()
    if trailer and is_chunked:
        if not trailer.startswith(checksums.PREFIX) or trailer[len(checksums.PREFIX) :] not in checksums.ALGORITHMS:
            raise S3Error("InvalidRequest", "The value specified in the x-amz-trailer header is not supported")
        if algorithm:
            raise S3Error("InvalidRequest", "Expecting a single x-amz-checksum- header")
        algorithm = trailer[len(checksums.PREFIX) :]
    named = call.header(b"x-amz-sdk-checksum-algorithm")
    if named and checksums.algorithm_of(named) != algorithm:
        if algorithm:
            raise S3Error("InvalidRequest", "Value for x-amz-sdk-checksum-algorithm header is invalid.")
        raise S3Error("InvalidRequest", "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* "
                      "or x-amz-trailer headers were found.")  # fmt: skip
    sha256 = call.payload.lower() if call.payload and not is_chunked and call.payload != UNSIGNED_PAYLOAD else ""
    return Promise(size, _content_md5(call), sha256, algorithm, checksum, trailer if is_chunked else "", is_chunked)


def _content_md5(call: Call) -> bytes | None:
    value = call.header(b"content-md5")
    if value is None:
        return None
    try:
        raw = base64.b64decode(value.encode("ascii"), validate=True)
    except (ValueError, UnicodeEncodeError):
        raw = b""
    if len(raw) != 16:
        raise S3Error("InvalidDigest")
    return raw


def form_promise(call: Call) -> Promise:
    """What the fields of a form (as headers) say about its file. Raises S3Error."""
    algorithm, checksum = _checksum_header(call)
    return Promise(-1, _content_md5(call), "", algorithm, checksum, "", is_chunked=False)


def _checksum_header(call: Call, *, may_count_parts: bool = False) -> tuple[str, bytes | None]:
    """may_count_parts: "-3" may stand behind it, as behind the checksum of checksums of an upload of three parts."""
    if call.header_names.isdisjoint(_CHECKSUMS):
        return "", None
    if not call.header_names.isdisjoint(_NOT_COMPARED):
        raise S3Error("NotImplemented", "Checksums here are CRC32, CRC32C, CRC64NVME, SHA1 and SHA256.")
    found = [
        (name, value) for name in checksums.ALGORITHMS
        if (value := call.header((checksums.PREFIX + name).encode())) is not None
    ]  # fmt: skip
    if len(found) > 1:
        raise S3Error("InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple checksum Types are not "
                      "allowed.")  # fmt: skip
    if not found:
        return "", None
    name, value = found[0]
    said, _, parts = value.partition("-")
    return name, checksums.decode(name, said if may_count_parts and parts.isdecimal() else value)


@dataclass(slots=True)
class Received:
    """A checked body. checksum: base64 of the algorithm's, "" when none was asked for."""

    md5: str
    algorithm: str
    checksum: str
    size: int


class BodyReader:
    """Pumps bodies. One per gateway process."""

    def __init__(self, executor: Executor | None) -> None:
        self.executor = executor
        self._loading: asyncio.Future[None] | None = None
        self._is_loaded = False

    def load(self) -> asyncio.Future[None]:
        """Have the library of the checksums loaded beside the loop, once. The door calls it with its first request."""
        if self._loading is None:
            self._loading = asyncio.get_running_loop().run_in_executor(self.executor, checksums.preload)
            self._loading.add_done_callback(self._loaded)
        return self._loading

    def _loaded(self, loading: asyncio.Future[None]) -> None:
        # one that failed is not tried again: whoever needs the sums gets the error
        self._is_loaded = True
        if not loading.cancelled():
            loading.exception()

    async def small(self, call: Call, limit_bytes: int, *, sums_are_of_object: bool = False) -> bytes:
        """A body in memory, checked as its head promises. sums_are_of_object: x-amz-checksum-* speaks of something else
        (CompleteMultipartUpload: of the object that is put together)."""
        if call.exchange.content_length is not None and call.exchange.content_length > limit_bytes:
            raise S3Error("MaxMessageLengthExceeded", "Your request was too large.")
        promise = promise_of(call, sums_are_of_object=sums_are_of_object)
        if sums_are_of_object and not promise.trailer:
            promise.algorithm, promise.checksum = "", None
        target = Collected(limit_bytes)
        await self.receive(call, promise, target)
        return bytes(target.body)

    async def whole(self, call: Call, promise: Promise, *, algorithm: str = "") -> tuple[bytes, Received]:
        """A small body that comes as it is (not aws-chunked), and its sums. Raises S3Error."""
        came: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        call.exchange.receive(_Whole(promise.size, came))
        body = await came
        if not self._is_loaded:
            await asyncio.shield(self.load())
        if len(body) != promise.size:
            raise S3Error("IncompleteBody")
        wanted = _wanted(promise, algorithm)
        if len(body) <= INLINE_BYTES:
            digests = checksums.digests(wanted, body)
        else:
            digests = await asyncio.get_running_loop().run_in_executor(
                self.executor, checksums.digests, wanted, body
            )
        return body, checked(promise, digests, promise.checksum, algorithm, len(body))

    async def receive(
        self, call: Call, promise: Promise, target: Pushed, *, algorithm: str = ""
    ) -> Received:
        """Read the whole body into target. algorithm: to compute beside what the client sent. Raises S3Error."""
        if not self._is_loaded:
            await asyncio.shield(self.load())
        pump = BodyPump(call.exchange, target, Hasher(_wanted(promise, algorithm), self.executor))
        decoder: ChunkedDecoder | None = None
        if promise.is_chunked:
            signed = signed_chunks(call)
            signer = ChunkSigner(signed[1], signed[0]) if signed is not None else None
            decoder = pump.decode(signer, has_trailer=call.payload != STREAMING)
        call.exchange.receive(pump)
        digests = await pump.digests()
        if pump.size != promise.size:
            raise S3Error("IncompleteBody")
        expected = promise.checksum
        if promise.trailer and decoder is not None:
            value = decoder.trailers.get(promise.trailer)
            if value is None:
                raise S3Error("MalformedTrailerError", "The trailer that was announced did not come.")
            expected = checksums.decode(promise.algorithm, value)
        return checked(promise, digests, expected, algorithm, pump.size)


class _Whole:
    """The sink of a small body: all of it, once it is complete."""

    def __init__(self, limit_bytes: int, came: asyncio.Future[bytes]) -> None:
        self._limit_bytes = limit_bytes
        self._came = came
        self._pieces: list[bytes] = []
        self._size = 0

    def data(self, piece: memoryview) -> None:
        self._size += len(piece)
        if self._size > self._limit_bytes:
            raise S3Error("IncompleteBody")
        # the parser's pieces are bytes already, alone in their view: keep them without a copy
        held = piece.obj
        self._pieces.append(held if isinstance(held, bytes) and len(held) == len(piece) else bytes(piece))

    def complete(self) -> None:
        if not self._came.done():
            self._came.set_result(self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces))

    def aborted(self, error: BaseException) -> None:
        self._pieces.clear()
        if not self._came.done():
            self._came.set_exception(error)


def _wanted(promise: Promise, algorithm: str) -> set[str]:
    """The sums that a body needs: MD5 for its ETag, what the client sent, what is kept."""
    wanted = {"md5", promise.algorithm, algorithm, "sha256" if promise.sha256 else ""}
    wanted.discard("")
    return wanted


def checked(
    promise: Promise, digests: dict[str, bytes], expected: bytes | None, algorithm: str, size: int
) -> Received:
    """What came, after every promise of the head was compared with it. Raises S3Error."""
    if promise.sha256 and not hmac.compare_digest(digests["sha256"].hex(), promise.sha256):
        raise S3Error("XAmzContentSHA256Mismatch")
    if promise.md5 is not None and digests["md5"] != promise.md5:
        raise S3Error("BadDigest")
    if expected is not None and digests[promise.algorithm] != expected:
        raise S3Error("BadDigest", f"The {promise.algorithm.upper()} you specified did not match the calculated "
                      "checksum.")  # fmt: skip
    used = promise.algorithm or algorithm
    checksum = checksums.encode(digests[used]) if used else ""
    return Received(digests["md5"].hex(), used, checksum, size)
