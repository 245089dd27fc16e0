"""Group commit: one thread per device takes all that wait, syncs each segment they lie in once, wakes the loop once.

Invariant: items are settled in the order they were appended, and an item is settled as durable only if the fdatasync of
its segment began after its bytes were written. After the first failure nothing is ever settled as durable by this
committer again: the kernel may have dropped the dirty pages, a later sync on the descriptor would lie. One that was
given up begins no sync: a descriptor's number may by then be another file's, and a sync through it would take the
error that the file's own committer must see.

Cost: one hand-over (a wake-up of the thread, about 10 us) per turn of the loop and not per record, 1.2-1.6 us per
waiter to wake, one fdatasync per group. InlineCommitter does the same without a thread: for file systems in memory,
where a sync costs nothing, and for simulation.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from typing import Final, Protocol

from objectd.store.device import Location
from objectd.store.segments import Place
from objectd.store.slow import Spindle
from tierstore.failpoints import hit

GROUP_MAX: Final = 4096


class Appended:
    """One record that was written and waits for its sync."""

    __slots__ = ("chunk", "end", "fd", "future", "offset", "segment", "value")

    def __init__(self, future: asyncio.Future[Location], place: Place, chunk: bytes, value: bytes | None) -> None:
        self.future = future
        self.fd, self.segment, self.offset, self.end = place
        self.chunk = chunk
        self.value = value      # what the index will hold; b"" removes, None leaves it


#: Called in the loop: the group, and why it failed or None.
Settle = Callable[[list[Appended], OSError | None], None]


class Committer(Protocol):
    def submit(self, items: list[Appended]) -> None:
        """Sync what was appended in one turn of the loop, in order. The list is the committer's from now on."""
        ...

    def give_up(self) -> None:
        """Begin no further sync: the device failed."""
        ...

    def close(self) -> None:
        """Settle what waits and end. Blocking for one sync at most."""
        ...


def _sync(group: list[Appended], spindle: Spindle | None) -> None:
    """fdatasync of each segment of the group, in order of its first record."""
    hit("store.segment.before_sync")
    for fd in dict.fromkeys(item.fd for item in group):
        if spindle is not None:
            mine = [item for item in group if item.fd == fd]
            spindle.transfer(mine[0].segment, mine[0].offset, mine[-1].end - mine[0].offset)
        os.fdatasync(fd)
    hit("store.segment.after_sync")


class ThreadCommitter:
    def __init__(self, loop: asyncio.AbstractEventLoop, settle: Settle, *, name: str,
                 spindle: Spindle | None = None) -> None:
        self._loop = loop
        self._settle = settle
        self._spindle = spindle
        self._items: queue.SimpleQueue[list[Appended] | None] = queue.SimpleQueue()
        self._is_given_up = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, items: list[Appended]) -> None:
        self._items.put(items)

    def give_up(self) -> None:
        self._is_given_up = True

    def _run(self) -> None:
        items = self._items
        failure: OSError | None = None
        is_open = True
        while is_open:
            group = items.get()
            if group is None:
                return
            try:
                while len(group) < GROUP_MAX:
                    more = items.get_nowait()
                    if more is None:
                        is_open = False
                        break
                    group += more
            except queue.Empty:
                pass
            if failure is None and not self._is_given_up:
                try:
                    _sync(group, self._spindle)
                except OSError as error:
                    failure = error
            try:
                self._loop.call_soon_threadsafe(self._settle, group, failure)
            except RuntimeError:
                return      # the loop is closed: nobody is left to be told

    def close(self) -> None:
        self._items.put(None)
        self._thread.join(timeout=30)


class InlineCommitter:
    def __init__(self, settle: Settle) -> None:
        self._settle = settle
        self._failure: OSError | None = None

    def submit(self, items: list[Appended]) -> None:
        if self._failure is None:
            try:
                _sync(items, None)
            except OSError as error:
                self._failure = error
        self._settle(items, self._failure)

    def give_up(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Nothing to end: the device awaited what was submitted."""
