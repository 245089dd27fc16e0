"""Bodies under a sync rule, read from their object servers while the catalog commits them.

A writer under a sync rule waits for the local commit and then for the other site. What its chunks are is known by their
receipts before the commit, so the bytes are fetched beside it. Nothing of them is said to anybody before the commit has
judged the receipts: they serve a push only when the row that was committed names these very copies, and are let go of
with the message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from metadata.catalog.packed import INLINE_CHUNKS_MAX
from metadata.services.names.receipts import Opened
from metadata.services.sites.read import BodyReader
from tierstore.errors import TierstoreError
from tierstore.transport.byte_budget import ByteBudget
from tierstore.wire.names import CommitItem, Put
from tierstore.wire.sites import SEGMENT_BYTES

#: Bytes held for commits under way; what is beyond it is read after its commit.
AHEAD_BYTES_MAX: Final = 32 << 20


class Ahead:
    """The bodies of one message. Leave it (`with`) when its items are answered."""

    def __init__(self, reader: AheadReader, budget: ByteBudget) -> None:
        self._reader = reader
        self._budget = budget
        self._held: dict[bytes, tuple[int, asyncio.Task[bytes]]] = {}

    def begin(self, body: bytes, size: int, task: asyncio.Task[bytes]) -> None:
        """body: packed; the budget has been asked for `size` bytes."""
        self._held[body] = (size, task)

    async def body(self, packed: bytes | None) -> bytes | None:
        """The bytes of a committed body; None: they are to be read."""
        held = self._held.get(packed) if packed is not None else None
        if held is None:
            return None
        task = held[1]
        await asyncio.wait([task])
        return None if task.cancelled() or task.exception() is not None else task.result()

    def __enter__(self) -> Self:
        self._reader.open += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.open -= 1
        for size, task in self._held.values():
            task.cancel()
            task.add_done_callback(_retrieve)
            self._budget.give_back(size)
        self._held.clear()


class AheadReader:
    """One per process. opened: the receipts of what an item brings, as its commit opens them."""

    def __init__(
        self, body: BodyReader, opened: Callable[[CommitItem], list[Opened] | TierstoreError | None]
    ) -> None:
        self._body = body
        self._opened = opened
        self._budget = ByteBudget(AHEAD_BYTES_MAX)
        self.open = 0       # messages that have not been answered

    def begin(self, items: Sequence[CommitItem]) -> Ahead:
        """Read the bodies of these puts, as far as there is room."""
        ahead = Ahead(self, self._budget)
        for item in items:
            m = item.mutation
            if not isinstance(m, Put) or not 0 < m.size <= SEGMENT_BYTES or len(m.chunks) > INLINE_CHUNKS_MAX:
                continue
            opened = self._opened(item)
            if not isinstance(opened, list) or not all(chunk.packed for chunk in opened):
                continue        # the commit says why not
            packed = b"".join(chunk.packed for chunk in opened)
            if self._budget.try_take(m.size):
                reading = self._body.read_packed(packed, m.size, first=0, length=m.size)
                ahead.begin(packed, m.size, asyncio.get_running_loop().create_task(reading, name="read ahead"))
        return ahead


def _retrieve(task: asyncio.Task[bytes]) -> None:
    if not task.cancelled():
        task.exception()
