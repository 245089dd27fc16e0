"""Bodies of S3 uploads on their way: aws-chunked framing off, checksums beside the loop, bytes into a sink.

Owns the pump between exchange, hasher and a PutWalk. MD5 takes 1.2 ms a MiB, so sums are computed in a thread: of a
body that goes into a walk as it is, straight from its chunks' buffers, a MiB at a time and beside their sending
(docs/adr/0721); of others in copies of 256 KiB. A body waits when more than HASH_BYTES_MAX are not hashed yet.

Invariants: `digests` returns when every byte was taken, framing and signatures held and all sums are done; a difference
is an error before anything is committed; the decoder never holds more than one head line (LINE_BYTES_MAX).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final, Protocol

from tierstore.auth.sigv4 import ChunkSigner
from tierstore.errors import UnavailableError
from tierstore.gateway.s3 import checksums
from tierstore.gateway.s3.errors import S3Error
from tierstore.gateway.upload import Pushed, UploadSink
from tierstore.sdk.put import PutWalk
from tierstore.serving.exchange import Exchange
from tierstore.transport.pieces import PieceBuffers

HASH_STEP_BYTES: Final = 256 * 1024
HASH_BYTES_MAX: Final = 8 << 20
LINE_BYTES_MAX: Final = 4096
TRAILER_BYTES_MAX: Final = 16 * 1024
#: One chunk of an aws-chunked body.
CHUNK_BYTES_MAX: Final = 1 << 33
#: Sums of bodies up to this are computed in the loop: a thread's hop costs more.
INLINE_BYTES: Final = 32 * 1024


#: Memory of bodies on their way to a hasher, used again: fresh memory costs as much as copying into it.
_steps: Final = PieceBuffers(HASH_BYTES_MAX)


class Decoder(Protocol):
    """Makes the bytes of an object out of those of a body: `feed` calls `take`."""

    take: Callable[[memoryview], None]

    def feed(self, piece: memoryview, /) -> None: ...

    def finish(self) -> None: ...


class Collected:
    """A small body, whole. code: of the error when it is longer than limit_bytes."""

    def __init__(self, limit_bytes: int, *, code: str = "MaxMessageLengthExceeded") -> None:
        self.body = bytearray()
        self._limit_bytes = limit_bytes
        self._code = code

    def push(self, piece: memoryview) -> bool:
        self.body += piece
        if len(self.body) > self._limit_bytes:
            raise S3Error(self._code)
        return True

    async def has_room(self) -> None:
        return


class Hasher:
    """Sums of a stream, computed in order in a thread.

    Its bytes are either given (`update`: copied, a step of memory at a time) or shown where they lie (`show` and
    `seen`, as to a sdk.put.Onlooker), never both for one stream."""

    def __init__(self, algorithms: set[str], executor: Executor | None) -> None:
        self._sums = {name: checksums.new(name) for name in algorithms}
        self._executor = executor
        self._filling: bytearray | None = None      # the step that is not full: its first `_fill` bytes
        self._fill = 0
        self._waiting: list[bytearray | memoryview] = []    # full steps, or what was shown
        self._waiting_bytes = 0
        self._busy_bytes = 0
        self._done_bytes = 0
        self._task: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self.on_progress: Callable[[], None] | None = None

    def update(self, piece: memoryview) -> None:
        """The next bytes (copied)."""
        at = 0
        while at < len(piece):
            if self._filling is None:
                self._filling, self._fill = _steps.take(HASH_STEP_BYTES), 0
            count = min(HASH_STEP_BYTES - self._fill, len(piece) - at)
            self._filling[self._fill : self._fill + count] = piece[at : at + count]
            self._fill += count
            at += count
            if self._fill == HASH_STEP_BYTES:
                self._add(self._filling)
                self._filling = None

    def show(self, view: memoryview) -> None:
        """The next bytes (not copied): who shows them keeps them as they are until seen()."""
        if len(view):
            self._add(view)

    async def seen(self, size: int) -> None:
        """Return when the sums of the first `size` bytes are done. Raises what went wrong."""
        while self._done_bytes < size:
            self._check()
            assert self._task is not None, "those bytes were not shown"
            await asyncio.wait({self._task})    # not `await`: who is cancelled must not cancel it for others
            await asyncio.sleep(0)              # let _done run: it may start the next step

    @property
    def is_full(self) -> bool:
        return self._waiting_bytes + self._busy_bytes > HASH_BYTES_MAX

    def _add(self, step: bytearray | memoryview) -> None:
        self._waiting.append(step)
        self._waiting_bytes += len(step)
        if self._task is None:
            self._start()

    def _start(self) -> None:
        batch, self._waiting = self._waiting, []
        self._busy_bytes, self._waiting_bytes = self._waiting_bytes, 0
        task = asyncio.get_running_loop().run_in_executor(self._executor, self._work, batch)
        self._task = task
        task.add_done_callback(lambda _: self._done(task, batch))

    def _work(self, batch: list[bytearray | memoryview]) -> None:
        for step in batch:
            for total in self._sums.values():       # all sums of a step while it is in the cache
                total.update(step)

    def _done(self, task: asyncio.Future[None], batch: list[bytearray | memoryview]) -> None:
        self._task = None
        if task.cancelled():        # the thread may still look at them
            self._error = UnavailableError("the sums of a body were given up")
        elif (error := task.exception()) is not None:
            self._error = error
        else:
            self._done_bytes += self._busy_bytes
            for step in batch:
                if isinstance(step, bytearray):
                    _steps.give_back(step)
        self._busy_bytes = 0
        if self._waiting and self._error is None:
            self._start()
        if self.on_progress is not None:
            self.on_progress()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    async def finish(self) -> dict[str, bytes]:
        """All digests by algorithm. Raises what went wrong in the thread."""
        await self.seen(self._done_bytes + self._busy_bytes + self._waiting_bytes)
        self._check()
        if self._filling is not None:
            rest, self._filling = self._filling, None
            view = memoryview(rest)[: self._fill]
            if self._fill > INLINE_BYTES:
                self._add(view)
                await self.seen(self._done_bytes + self._fill)
            else:
                self._work([view])
            view.release()
            _steps.give_back(rest)
        return {name: total.digest() for name, total in self._sums.items()}


class ChunkedDecoder:
    """aws-chunked: `size[;chunk-signature=hex]CRLF data CRLF ... 0... CRLF [trailers] CRLF`. Push parser."""

    def __init__(self, signer: ChunkSigner | None, take: Callable[[memoryview], None], *, has_trailer: bool) -> None:
        self._signer = signer
        self._take = take
        self._has_trailer = has_trailer
        self._state = "head"
        self._line = bytearray()
        self._left = 0
        self._signature = ""
        self._sha256 = hashlib.sha256() if signer is not None else None
        self._signed_trailer = bytearray()
        self._trailer_bytes = 0
        self._trailer_signature = ""
        self.trailers: dict[str, str] = {}
        self.size = 0

    def feed(self, piece: memoryview) -> None:
        """Raises S3Error, SignatureError."""
        at, end = 0, len(piece)
        while at < end:
            if self._state == "data":
                count = min(self._left, end - at)
                part = piece[at : at + count]
                if self._sha256 is not None:
                    self._sha256.update(part)
                self._take(part)
                self._left -= count
                self.size += count
                at += count
                if not self._left:
                    self._state = "crlf"
                continue
            if self._state == "end":
                raise _malformed("bytes behind the last chunk")
            at = self._take_line(piece, at)

    def _take_line(self, piece: memoryview, at: int) -> int:
        """Move bytes up to a line feed into the line; handle it when it is whole."""
        chunk = bytes(piece[at : at + LINE_BYTES_MAX])
        found = chunk.find(b"\n")
        taken = len(chunk) if found < 0 else found + 1
        self._line += chunk[:taken]
        if len(self._line) > LINE_BYTES_MAX:
            raise _malformed("a line is too long")
        if found >= 0:
            line = bytes(self._line)
            self._line.clear()
            if not line.endswith(b"\r\n") and self._state != "trailer":
                raise _malformed("a line does not end with CRLF")
            self._handle(line.rstrip(b"\r\n"))
        return at + taken

    def _handle(self, line: bytes) -> None:
        if self._state == "crlf":
            if line:
                raise _malformed("no CRLF behind a chunk")
            self._check_chunk()
            self._state = "head"
        elif self._state == "head":
            self._begin_chunk(line)
        else:
            self._take_trailer(line)

    def _begin_chunk(self, line: bytes) -> None:
        size, _, extension = line.partition(b";")
        try:
            self._left = int(size, 16) if 0 < len(size) <= 16 and size.isalnum() else -1
        except ValueError:
            self._left = -1
        if not 0 <= self._left <= CHUNK_BYTES_MAX:
            raise _malformed("a chunk's size is not a hexadecimal number")
        name, _, value = extension.partition(b"=")
        self._signature = value.decode("latin-1") if name.strip() == b"chunk-signature" else ""
        if self._signer is not None and len(self._signature) != 64:
            raise S3Error("SignatureDoesNotMatch")
        if self._left:
            self._state = "data"
            return
        self._check_chunk()
        # without a trailer the last chunk is followed by one empty line, as any other
        self._state = "trailer"

    def _check_chunk(self) -> None:
        if self._signer is not None and self._sha256 is not None:
            self._signer.check_chunk(self._sha256.hexdigest(), self._signature)
            self._sha256 = hashlib.sha256()

    def _take_trailer(self, line: bytes) -> None:
        if not line:
            self._finish_trailer()
            return
        self._trailer_bytes += len(line)
        name, colon, value = line.partition(b":")
        if not self._has_trailer or not colon or self._trailer_bytes > TRAILER_BYTES_MAX:
            raise _malformed("a trailer that was not announced")
        key, text = name.strip().lower().decode("latin-1"), value.strip().decode("latin-1")
        if key == "x-amz-trailer-signature":
            self._trailer_signature = text
            return
        self._signed_trailer += f"{key}:{text}\n".encode("latin-1")
        self.trailers[key] = text

    def _finish_trailer(self) -> None:
        if self._signer is not None and self._has_trailer:
            # the signature stands in a line of its own: an empty line before it only separates
            if not self._trailer_signature and self._signed_trailer:
                return
            self._signer.check_trailer(bytes(self._signed_trailer), self._trailer_signature)
        self._state = "end"

    def finish(self) -> None:
        """The body has ended. Raises S3Error(IncompleteBody) in the middle of anything."""
        if self._state == "trailer" and not self._line and not (self._signer is not None and self._has_trailer):
            self._state = "end"     # some clients leave the last empty line out
        if self._state != "end":
            raise S3Error("IncompleteBody")


class BodyPump(UploadSink):
    """A BodySink: exchange -> (decoder) -> hasher and target. Use: exchange.receive(pump), await pump.digests()."""

    def __init__(self, exchange: Exchange, target: Pushed, hasher: Hasher) -> None:
        super().__init__(exchange, target)
        self._hasher = hasher
        self._is_shown = isinstance(target, PutWalk) and target.show_to(hasher)
        self._decoder: ChunkedDecoder | Decoder | None = None
        self.size = 0
        hasher.on_progress = self.wake

    def decode(self, signer: ChunkSigner | None, *, has_trailer: bool) -> ChunkedDecoder:
        """The body is aws-chunked."""
        decoder = self._decoder = ChunkedDecoder(signer, self._take, has_trailer=has_trailer)
        return decoder

    def take_from(self, decoder: Decoder) -> None:
        """The body is something else, of which a decoder makes the object's bytes."""
        self._decoder = decoder
        decoder.take = self._take

    def take(self, piece: memoryview) -> None:
        if self._decoder is not None:
            self._decoder.feed(piece)
        else:
            self._take(piece)

    def _take(self, piece: memoryview) -> None:
        self.size += len(piece)
        if not self._is_shown:
            self._hasher.update(piece)
        self.push(piece)

    @property
    def is_behind(self) -> bool:
        return self._hasher.is_full

    async def digests(self) -> dict[str, bytes]:
        """All sums, when the whole body has come. Raises what went wrong."""
        await self.run()
        if self._decoder is not None:
            self._decoder.finish()
        return await self._hasher.finish()


def _malformed(what: str) -> S3Error:
    return S3Error("InvalidRequest", f"The aws-chunked body is malformed: {what}.")
