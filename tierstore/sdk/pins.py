"""The pins of a long read: its chunks stay, and its tickets hold, until it has read them (rule 14).

A read must be able to finish, also when its object was replaced meanwhile and can no longer be looked up. Owns a timer,
then one task that renews what the walk still has before it, `pins_at_once` chunks in a message, every `pin_seconds`.
Nothing is lost by a message that failed: pins outlive three of them, and a lookup gives new tickets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from tierstore.errors import TierstoreError
from tierstore.sdk.limits import StoreLimits
from tierstore.transport.metadata_client import MetadataClient
from tierstore.wire.names import ChunkView, Renew


class Pins:
    """Of one walk. Always close() it."""

    def __init__(
        self, client: MetadataClient, limits: StoreLimits, chunks: Callable[[], Sequence[ChunkView]],
        renewed: Callable[[dict[int, ChunkView]], None],
    ) -> None:  # fmt: skip
        """chunks: what is still to be read; renewed: told of them with their new tickets, by where they start."""
        self._client = client
        self._limits = limits
        self._chunks = chunks
        self._renewed = renewed
        self._task: asyncio.Task[None] | None = None
        # no task before it is needed: nearly all reads end sooner
        self._timer = asyncio.get_running_loop().call_later(limits.pin_seconds, self._start)

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def _keep(self) -> None:
        limits = self._limits
        while True:
            for at in range(0, len(self._chunks()), limits.pins_at_once):
                await self._pin(list(self._chunks())[at : at + limits.pins_at_once])
            await asyncio.sleep(limits.pin_seconds)

    async def _pin(self, chunks: list[ChunkView]) -> None:
        tickets = [replica.ticket for chunk in chunks for replica in chunk.replicas]
        try:
            renewed = await self._client.renew(
                Renew(pins=[chunk.id for chunk in chunks], tickets=tickets), seconds=self._limits.request_seconds
            )
        except TierstoreError:
            return
        fresh = dict(zip(tickets, renewed.tickets, strict=False))
        self._renewed({chunk.start: _with_tickets(chunk, fresh) for chunk in chunks})

    async def close(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def _with_tickets(chunk: ChunkView, fresh: dict[bytes, bytes]) -> ChunkView:
    """The chunk with renewed tickets; where one was refused the old one stays (whoever reads then looks up anew)."""
    replicas = [
        msgspec.structs.replace(replica, ticket=fresh.get(replica.ticket) or replica.ticket)
        for replica in chunk.replicas
    ]
    return msgspec.structs.replace(chunk, replicas=replicas)
