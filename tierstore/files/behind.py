"""Files that were closed and are not committed yet, in a mount that was told not to wait for it (`--sync interval`).

They are committed in rounds, many side by side, so that they share messages to the object servers and transactions of
the catalog: that is what makes a file cheap that nobody waits for. A round begins GATHER_SECONDS after the first file
came, or at once when it is full. What fails for a reason that passes (a server or the cluster is away) is tried again
for as long as the mount lives; what is refused for good is given up, with a line in the log: its program has gone.

Bounds: ROUND_MAX files of a round, one round at a time; FILES_MAX files that wait, then a close waits too, ROOM_SECONDS
at most; their bytes are within the mount's budget. After a round that failed there is a pause. Progress: waiting,
committed, given_up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from tierstore.errors import TierstoreError, UnavailableError
from tierstore.files.node import Node
from tierstore.telemetry.log import get_logger

log = get_logger("mount")

#: A file waits so long for others before its round begins.
GATHER_SECONDS: Final = 0.25
ROUND_MAX: Final = 128
FILES_MAX: Final = 2048
RETRY_SECONDS: Final = 1.0
#: How long a close waits while FILES_MAX files wait: none of them could be committed in all that time.
ROOM_SECONDS: Final = 30.0


class Behind:
    """One per mount. Event loop only."""

    def __init__(
        self, commit: Callable[[Node], Awaitable[None]], give_up: Callable[[Node], Awaitable[None]]
    ) -> None:
        """commit: all that the node has, trying what failed before again. give_up: forget what it has."""
        self._commit = commit
        self._give_up = give_up
        self._nodes: dict[int, Node] = {}
        #: Those of the round under way. They never wait for room: it is their own round that makes it.
        self._in_round: set[int] = set()
        self._some = asyncio.Event()
        self._full = asyncio.Event()
        self._room = asyncio.Event()
        self.committed = 0
        self.given_up = 0

    @property
    def waiting(self) -> int:
        """Files that are not committed yet; those of the round under way are among them."""
        return len(self._nodes) + sum(ino not in self._nodes for ino in self._in_round)

    async def add(self, node: Node) -> None:
        """Have it committed soon. Waits while too many wait; raises UnavailableError when they still do after
        ROOM_SECONDS."""
        try:
            async with asyncio.timeout(ROOM_SECONDS):
                while self._is_full_for(node):
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            raise UnavailableError(
                f"{FILES_MAX} closed files wait to be committed, and none could be for {ROOM_SECONDS:g} s: is the "
                "cluster there?"
            ) from None
        self._nodes[node.ino] = node
        self._some.set()
        if len(self._nodes) >= ROUND_MAX:
            self._full.set()

    def _is_full_for(self, node: Node) -> bool:
        """Those of the round count: they come back when the cluster is away."""
        if node.ino in self._nodes or node.ino in self._in_round:
            return False
        return self.waiting >= FILES_MAX

    async def run(self) -> None:
        """For as long as the mount lives."""
        while True:
            await self._some.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GATHER_SECONDS):
                    await self._full.wait()
            if await self._round():
                await asyncio.sleep(RETRY_SECONDS)

    async def _round(self) -> int:
        """Commit those that came first; how many are to be tried again."""
        nodes = [self._nodes[ino] for ino in list(self._nodes)[:ROUND_MAX]]
        for node in nodes:
            del self._nodes[node.ino]
        self._in_round = {node.ino for node in nodes}
        if not self._nodes:
            self._some.clear()
        if len(self._nodes) < ROUND_MAX:
            self._full.clear()
        kept = [node for node in await asyncio.gather(*(self._one(node) for node in nodes)) if node is not None]
        self._in_round.clear()
        for node in kept:
            self._nodes[node.ino] = node
            self._some.set()
        self._room.set()
        return len(kept)

    async def _one(self, node: Node) -> Node | None:
        """Commit one; the node when it is to be tried again."""
        try:
            await self._commit(node)
        except TimeoutError:
            return node
        except TierstoreError as error:
            if error.retryable:
                return node
            log.error("a closed file could not be committed and is lost", file=_name(node), error=str(error))
            self.given_up += 1
            await self._give_up(node)
        except Exception as error:  # a bug must not end the rounds of all other files
            log.exception("a closed file could not be committed", file=_name(node), error=str(error))
            return node
        else:
            self.committed += 1
        return None


def _name(node: Node) -> str:
    return node.names[-1][1] if node.names else f"{node.number:016x}"
