"""PUT /v1/chunks: several small chunks in one message, each with its ticket; answered when all of them are settled.

Owns the way of one such message. Each chunk is judged and stored as by routes.uploads, whose bounds and counts these
are too; what is wrong with one becomes its result and touches no other. Invariants: nothing of a message is stored
before it has come as a whole; the receipt of a chunk is signed after its device said "durable"; the bytes of the
message are held until its answer and given back exactly once. A client that goes away changes nothing: what was begun
is stored and, when nobody commits it, collected.

Cost of a chunk among n, us: decoding 1, ticket 4, CRC 0.3, the store's share of a group commit 5, receipt 3, and 1/n of
a request, a wake-up of the committer and an answer (about 40).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from objectd.routes.streams import mismatch
from objectd.routes.uploads import BACK_PRESSURE_EVERY, NAME_BYTES_MAX, ChunkUploads
from objectd.slots import Slot
from objectd.store.device import Location
from tierstore.checksum import sums_of
from tierstore.errors import RequestError, TierstoreError, TooLarge
from tierstore.failpoints import hit
from tierstore.names import ChunkId
from tierstore.serving import problem
from tierstore.serving.exchange import Exchange
from tierstore.wire import MEDIA_TYPE, decode, encode
from tierstore.wire.chunks import SET_BYTES_MAX, SET_ITEMS_MAX, ChunkSet, SmallChunk, StoredChunk, StoredSet

_LINES: Final = b"content-type: " + MEDIA_TYPE.encode() + b"\r\n"
_NO_RESULT: Final = StoredChunk(status=503, code="unavailable")


class ChunkSets:
    """The handler of the route. Event loop only."""

    def __init__(self, uploads: ChunkUploads) -> None:
        self._uploads = uploads

    def handle(self, exchange: Exchange) -> None:
        """Refuse what is too large or too much before its body."""
        body_bytes = exchange.content_length
        if body_bytes is None:
            raise RequestError("a set of chunks needs a Content-Length", code="length-required")
        if body_bytes > SET_BYTES_MAX:
            raise TooLarge(f"the message has {body_bytes} bytes, at most {SET_BYTES_MAX} are taken here")
        self._uploads.check_room(body_bytes)
        exchange.receive(_Set(self._uploads, exchange, body_bytes))


class _Set:
    """One message: collects it, stores its chunks, answers when the last one is settled."""

    __slots__ = ("_body_bytes", "_exchange", "_is_held", "_left", "_pieces", "_results", "_uploads", "_waits")

    def __init__(self, uploads: ChunkUploads, exchange: Exchange, body_bytes: int) -> None:
        self._uploads = uploads
        self._exchange = exchange
        self._body_bytes = body_bytes
        self._pieces: list[bytes] = []
        self._results: list[StoredChunk] = []
        self._left = 0
        #: Puts that wait for the device's index: they are tasks, and belong to the message.
        self._waits: list[asyncio.Task[Location]] = []
        self._is_held = True
        uploads.hold(body_bytes)

    def _give_back(self) -> None:
        if self._is_held:
            self._is_held = False
            self._uploads.give_back(self._body_bytes)

    def __del__(self) -> None:
        # a message whose futures are dropped with their device has no other end
        self._give_back()

    def data(self, piece: memoryview) -> None:
        # the parser's pieces are bytes already, alone in their view: keep them without a copy
        whole = piece.obj
        self._pieces.append(whole if type(whole) is bytes and len(whole) == piece.nbytes else bytes(piece))

    def aborted(self, error: BaseException) -> None:
        self._pieces.clear()
        self._give_back()

    def complete(self) -> None:
        """Begin all puts in one turn of the loop, so that they share a sync."""
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        try:
            items = decode(body, ChunkSet).items
            if not 0 < len(items) <= SET_ITEMS_MAX:
                raise RequestError(f"{len(items)} chunks in one message, 1 to {SET_ITEMS_MAX} are taken",
                                   code="too-many-items")  # fmt: skip
        except TierstoreError:
            self._give_back()
            raise
        self._left = len(items)
        self._results = [_NO_RESULT] * len(items)
        for place, item in enumerate(items):
            try:
                self._begin(place, item)
            except Exception as error:  # one chunk's failure is its own result; a bug of ours is logged there
                self._settle(place, self._refusal(error))

    def _begin(self, place: int, item: SmallChunk) -> None:
        uploads, data = self._uploads, item.data
        if len(data) > uploads.small_bytes_max or not len(data):
            raise TooLarge(f"a chunk of {len(data)} bytes is sent by itself")
        slot, chunk = uploads.admit(item.ticket, item.index, len(data))
        if sums_of(data) != item.sums:
            raise mismatch(chunk)
        name = item.name if len(item.name) <= NAME_BYTES_MAX else item.name[:NAME_BYTES_MAX]
        slot.puts += 1
        future: asyncio.Future[Location]
        if slot.puts % BACK_PRESSURE_EVERY:
            future = slot.device.submit_small(chunk, data, item.sums, name_hint=name)
        else:
            put = slot.device.put_small(chunk, data, item.sums, name_hint=name)
            future = task = asyncio.get_running_loop().create_task(put)
            self._waits.append(task)
        slot.waiting += 1
        future.add_done_callback(partial(self._stored, place, slot, chunk, item))

    def _stored(
        self, place: int, slot: Slot, chunk: ChunkId, item: SmallChunk, future: asyncio.Future[Location]
    ) -> None:
        slot.waiting -= 1
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        if error is not None:
            self._settle(place, self._refusal(error))
            return
        try:
            hit("objectd.upload.before_receipt")
            receipt = self._uploads.receipt(slot, chunk, len(item.data), item.sums, future.result())
        except Exception as refused:  # in a callback nobody else would answer for it, and the message would hang
            self._settle(place, self._refusal(refused))
        else:
            self._settle(place, StoredChunk(receipt))

    def _refusal(self, error: BaseException) -> StoredChunk:
        status, members = problem.document(error, self._exchange.request_id)
        return StoredChunk(status=status, code=str(members["code"]), detail=str(members["detail"]))

    def _settle(self, place: int, result: StoredChunk) -> None:
        self._results[place] = result
        self._left -= 1
        if not self._left:
            self._give_back()
            self._exchange.reply(200, encode(StoredSet(self._results)), _LINES)
