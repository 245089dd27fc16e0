"""Chunks that a writer on the same machine hands over in shared memory (tierstore.wire.handovers), not by TCP.

Owns the Unix socket and the chunks under way on it. Each is admitted, bounded, stored and signed for as one that comes
by the network (routes.uploads, routes.streams). Invariants: every byte is copied into memory of this process before it
is summed and written, so nothing that the writer does to its memory meanwhile can be stored unnoticed; only memory is
taken (a file of a disk could hang the loop); each descriptor is closed exactly once; what was begun when the server
stops is waited for, within a bound.

Cost of 1 MiB: one message each way and two reads of 512 KiB out of the memory; by TCP it is five to ten turns of the
loop, with a read of the socket and the HTTP parser in each.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from typing import Final

from objectd.routes.machine_door import MachineDoor
from objectd.routes.streams import ChunkStream
from objectd.routes.uploads import NAME_BYTES_MAX, ChunkUploads
from tierstore.errors import IntegrityError, RequestError, TierstoreError
from tierstore.serving import problem
from tierstore.wire.handovers import (
    HANDOVERS_MAX,
    MESSAGE_BYTES_MAX,
    Answer,
    Chunk,
    pack_answer,
    socket_name,
    unpack_chunk,
)

#: Copied at once: both copies stay in the processor's cache while they are summed.
PIECE_BYTES: Final = 512 * 1024
#: Copied without a turn of the loop at most: others wait meanwhile (about 0.3 ms).
TURN_BYTES: Final = 2 * 1024 * 1024
#: For chunks under way when the server stops.
STOP_SECONDS: Final = 5.0


class HandoverDoor(MachineDoor):
    """One per object server. Event loop only."""

    def __init__(self, uploads: ChunkUploads) -> None:
        super().__init__(message_bytes_max=MESSAGE_BYTES_MAX, messages_max=HANDOVERS_MAX, descriptors_max=1)
        self._uploads = uploads
        self._scratch = memoryview(bytearray(PIECE_BYTES))
        #: Bounded by the uploads that the server admits.
        self._under_way: set[asyncio.Task[None]] = set()
        #: Chunks that were handed over, for metrics.
        self.handovers_total = 0

    def open(self, url: str) -> None:
        """Listen under the name of the server's address."""
        self.open_under(socket_name(url), url=url, without="chunks are not taken from memory on this machine")

    async def close(self) -> None:
        """Take no more; wait for those under way, STOP_SECONDS at most. Harmless to repeat."""
        self.pause()
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=STOP_SECONDS)
        for task in self._under_way:
            task.cancel()
        self.shut()

    def received(self, connection: socket.socket, message: bytes, descriptors: list[int]) -> bool:
        """False: the writer does not keep to the form, or does not take its answers."""
        try:
            chunk = unpack_chunk(message)
            if len(descriptors) != 1:
                raise RequestError("a chunk handed over without its memory", code="bad-request")
        except RequestError:
            for descriptor in descriptors:
                os.close(descriptor)
            return False
        handed = _Handed(self, connection, chunk, descriptors[0])
        try:
            stream = self._begin(handed, chunk)
        except TierstoreError as error:
            handed.close()
            return self.answer(connection, _refusal(chunk.number, error))
        task = asyncio.get_running_loop().create_task(handed.run(stream))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        self.handovers_total += 1
        handed.feed(stream, self._scratch)
        return True

    def _begin(self, handed: _Handed, chunk: Chunk) -> ChunkStream:
        handed.check()
        uploads = self._uploads
        if chunk.chunk_bytes <= uploads.small_bytes_max:
            raise RequestError("small chunks come by the network", code="bad-request")
        slot, name = uploads.admit(chunk.ticket, chunk.place, chunk.chunk_bytes)
        uploads.check_room(chunk.chunk_bytes)
        hint = chunk.name.encode()[:NAME_BYTES_MAX].decode("utf-8", "replace")
        return uploads.begin(handed, slot, name, chunk.chunk_bytes, hint)

    def answer(self, connection: socket.socket, answer: Answer) -> bool:
        """False: the writer is gone or does not take it; it looks for its chunk on another way."""
        try:
            connection.send(pack_answer(answer))
        except OSError:
            return False
        return True


class _Handed:
    """One chunk in a writer's memory: the Source of its stream."""

    def __init__(self, door: HandoverDoor, connection: socket.socket, chunk: Chunk, fd: int) -> None:
        self._door = door
        self._connection = connection
        self._chunk = chunk
        self._fd = fd
        self._at = 0
        self._is_paused = False
        self._stream: ChunkStream | None = None
        self._scratch = memoryview(b"")

    def check(self) -> None:
        """Raises RequestError for anything but memory."""
        try:
            fcntl.fcntl(self._fd, fcntl.F_GET_SEALS)        # refused by all other kinds of files (fcntl(2))
        except OSError:
            raise RequestError("what was handed over is no shared memory", code="bad-request") from None

    def close(self) -> None:
        """Harmless to repeat."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    async def run(self, stream: ChunkStream) -> None:
        """Until the answer is given."""
        try:
            await stream.run()
        except Exception as error:      # nobody else would answer, and the writer would wait for its deadline
            self._answer(_refusal(self._chunk.number, error))
        finally:
            self.close()
            # stream and source know each other: left so, each chunk's state waits for the collector of cycles
            self._stream = None

    def feed(self, stream: ChunkStream, scratch: memoryview) -> None:
        """Copy, sum and store as long as the device keeps up."""
        self._stream, self._scratch = stream, scratch
        self._go_on()

    def _go_on(self) -> None:
        stream, size, turn = self._stream, self._chunk.chunk_bytes, 0
        if stream is None:
            return      # it ended meanwhile
        while self._at < size and not self._is_paused and self._fd >= 0:
            if turn >= TURN_BYTES:
                asyncio.get_running_loop().call_soon(self._go_on)
                return
            view = self._scratch[: min(PIECE_BYTES, size - self._at)]
            try:
                count = os.preadv(self._fd, (view,), self._at)
            except OSError:
                count = 0
            if count != len(view):
                stream.aborted(IntegrityError("the memory handed over is shorter than its chunk", code="bad-length"))
                return
            stream.data(view)
            self._at += count
            turn += count
        if self._at == size and self._fd >= 0:
            self.close()
            stream.data(memoryview(self._chunk.sums))
            stream.complete()

    # -- Source ---------------------------------------------------------------------------------------------------
    def pause_body(self) -> None:
        self._is_paused = True

    def resume_body(self) -> None:
        self._is_paused = False
        self._go_on()

    def reply(self, status: int, body: bytes, lines: bytes) -> None:
        self._answer(Answer(self._chunk.number, status, body))

    def _answer(self, answer: Answer) -> None:
        if not self._door.answer(self._connection, answer):
            self._door.drop(self._connection)


def _refusal(number: int, error: BaseException) -> Answer:
    status, members = problem.document(error, f"handover-{number}")
    return Answer(number, status, problem.encoder.encode(members))
