"""Small chunks on their way to object servers: those that arise while others are under way travel together.

Owns one lane per device (transport.batches): while no message to it is under way, one leaves at the end of this turn of
the event loop with all chunks that arose in it. A chunk that is alone goes as it always did, by
`PUT /v1/chunks/{ticket}`; several go by `PUT /v1/chunks`. A server that does not know the second gets them one by one
for ALONE_SECONDS; then it is asked again, for it may be a newer one by now.

Invariants: each chunk has its own result, a receipt or the server's error; nobody looks at its bytes when its future is
done. Bounds: LANES_MAX lanes, WAITING_MAX chunks in each; their bytes are the callers', who have a budget.

Cost of a chunk among n: a future, 1/n of a request on both sides (about 60 us here, 40 there), one copy of its bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from tierstore import wire
from tierstore.errors import RequestError, TierstoreError, UnavailableError, from_answer
from tierstore.transport.batches import BatchLane, Waiter
from tierstore.transport.peer import PeerReply, PeerTransport
from tierstore.wire.chunks import SET_ITEMS_MAX, ChunkSet, SmallChunk, StoredSet

#: Messages to one device under way at the same time; beyond the first one only when it has not come back within the
#: patience: a disk that takes long to sync is given more meanwhile.
DEPTH: Final = 4
PATIENCE_SECONDS: Final = 0.004
WAITING_MAX: Final = 4096
#: Devices with a lane; beyond it those without work are forgotten.
LANES_MAX: Final = 1024
_TARGET: Final = b"/v1/chunks"
_HEADERS: Final = ((b"content-type", wire.MEDIA_TYPE.encode()),)
#: How long a server that does not know the route is taken for one of the release before. A roll takes minutes; asking
#: costs one refused message.
ALONE_SECONDS: Final = 60.0
#: Answers of a server of the release before, which has no such route.
_UNKNOWN: Final = frozenset({404, 405})


Lane = BatchLane[SmallChunk, bytes]


class ChunkLanes:
    """One per ObjectClient. Event loop only."""

    def __init__(
        self, transport: PeerTransport, put_alone: Callable[[str, SmallChunk, float], Awaitable[bytes]],
        error_of: Callable[[PeerReply, str], TierstoreError],
    ) -> None:  # fmt: skip
        """put_alone: how one chunk is sent by itself within so many seconds; error_of: what an error answer says."""
        self._transport = transport
        self._put_alone = put_alone
        self._error_of = error_of
        self._lanes: dict[tuple[str, int], Lane] = {}
        #: Servers without the route -> until when (loop time) they are not asked again. As many as have lanes.
        self._alone_until: dict[str, float] = {}

    def submit(self, url: str, device: int, chunk: SmallChunk, seconds: float) -> asyncio.Future[bytes]:
        """The receipt, later. Raises UnavailableError when too many wait for that device."""
        lane = self._lanes.get((url, device))
        if lane is None:
            lane = self._new_lane(url, device)
        return lane.submit(chunk, seconds)

    def _new_lane(self, url: str, device: int) -> Lane:
        if len(self._lanes) >= LANES_MAX:
            self._lanes = {place: lane for place, lane in self._lanes.items() if not lane.is_idle}
            urls = {place[0] for place in self._lanes}
            self._alone_until = {url: until for url, until in self._alone_until.items() if url in urls}

        async def send(batch: Sequence[Waiter[SmallChunk, bytes]]) -> Sequence[bytes | TierstoreError]:
            return await self._send(url, batch)

        lane = Lane(
            "chunk", send, peer=url, depth=DEPTH, eager=1, patience_seconds=PATIENCE_SECONDS, items_max=SET_ITEMS_MAX,
            waiting_max=WAITING_MAX,
        )  # fmt: skip
        self._lanes[url, device] = lane
        return lane

    async def _send(
        self, url: str, batch: Sequence[Waiter[SmallChunk, bytes]]
    ) -> Sequence[bytes | TierstoreError]:
        now = asyncio.get_running_loop().time()
        if len(batch) == 1:
            return [await self._put_alone(url, batch[0].item, batch[0].until - now)]
        if self._alone_until.get(url, 0.0) > now:
            return await self._one_by_one(url, batch)
        body = wire.encode(ChunkSet([waiter.item for waiter in batch]))
        reply = await self._transport.call(
            url, b"PUT", _TARGET, headers=_HEADERS, body=body, seconds=max(waiter.until for waiter in batch) - now
        )
        if reply.status in _UNKNOWN:
            self._alone_until[url] = asyncio.get_running_loop().time() + ALONE_SECONDS
            return await self._one_by_one(url, batch)
        if reply.status != 200:
            raise self._error_of(reply, url)
        try:
            results = wire.decode(reply.body, StoredSet).results
        except RequestError as error:
            raise UnavailableError(f"{url}: {error.detail}", code="broken-answer", url=url) from error
        return [
            stored.receipt if not stored.code else from_answer(stored.status, stored.code, stored.detail)
            for stored in results
        ]

    async def _one_by_one(
        self, url: str, batch: Sequence[Waiter[SmallChunk, bytes]]
    ) -> Sequence[bytes | TierstoreError]:
        async def one(waiter: Waiter[SmallChunk, bytes]) -> bytes | TierstoreError:
            try:
                seconds = waiter.until - asyncio.get_running_loop().time()
                return await self._put_alone(url, waiter.item, seconds)
            except TierstoreError as error:
                return error

        return await asyncio.gather(*(one(waiter) for waiter in batch))

    async def close(self) -> None:
        """Fail what waits and cancel what is under way."""
        for lane in self._lanes.values():
            await lane.close()
