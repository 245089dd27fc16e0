"""Coalescing: items that arise while batches are under way wait and travel together in the next one.

Owns the queue of one kind of question to one peer (a lane). With fewer than `eager` batches under way, a batch leaves
at the end of this turn of the event loop with all that arose in it. While that many are, items wait for one of them to
come back; when none does within `patience_seconds`, further ones leave, up to `depth`: a batch that hangs (a restart,
a slow disk, another site) must not hold up those behind it. Few large batches cost less than many small ones.

Invariants: an item joins only a batch whose body is built after it arrived (rule 9: an answer is never older than the
question); results come back in the order of the items; every waiter gets a result or an error, at the latest at its
deadline; at most `waiting_max` items wait, more are refused at once.

Cost: one future and about 2 us per item, one task and one request per batch; no task for what is asked alone (ask).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tierstore.errors import TierstoreError, UnavailableError

Item = TypeVar("Item")
Result = TypeVar("Result")

#: How often a lane looks for items whose deadline passed while they waited behind a batch that hangs.
SWEEP_SECONDS = 0.25


@dataclass(slots=True)
class Waiter(Generic[Item, Result]):
    """One item on its way. `until` is event loop time."""

    item: Item
    future: asyncio.Future[Result]
    until: float


@dataclass(slots=True)
class BatchLane(Generic[Item, Result]):
    """`send` takes the waiters of one batch and returns one result per waiter, in order; an error among them is raised
    to its waiter. It must return or raise by the latest `until` among them; it may drop waiters from the work whose
    futures are done. peer: for people."""

    name: str
    send: Callable[[Sequence[Waiter[Item, Result]]], Awaitable[Sequence[Result | TierstoreError]]]
    peer: str = "metadata"
    depth: int = 2
    eager: int = 0                      # 0: as many as `depth`
    patience_seconds: float = 0.0
    items_max: int = 256
    waiting_max: int = 8192
    _waiting: deque[Waiter[Item, Result]] = field(default_factory=deque)
    _under_way: set[asyncio.Task[Any]] = field(default_factory=set)
    _flush_due: bool = False
    _sweep: asyncio.TimerHandle | None = None
    _impatient: asyncio.TimerHandle | None = None
    _closed: bool = False

    def __post_init__(self) -> None:
        self.eager = self.eager or self.depth

    def submit(self, item: Item, seconds: float) -> asyncio.Future[Result]:
        """Queue one item. The future fails with UnavailableError(code="deadline") when `seconds` have passed."""
        loop = asyncio.get_running_loop()
        if self._closed or len(self._waiting) >= self.waiting_max:
            why = "is closed" if self._closed else f"already has {self.waiting_max} items waiting"
            raise UnavailableError(f"the {self.name} queue to {self.peer} {why}", code="metadata-busy")
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append(Waiter(item, future, loop.time() + seconds))
        if not self._flush_due:
            if len(self._under_way) < self.eager:
                self._flush_due = True
                loop.call_soon(self._flush)
            else:
                self._be_patient()
        if self._sweep is None:
            self._sweep = loop.call_later(SWEEP_SECONDS, self._expire)
        return future

    async def ask(self, item: Item, seconds: float) -> Result:
        """submit() and its result. When nothing of this lane is about, the item is sent in the caller's own task:
        without a task and two turns of the loop, which is what a program that waits for each answer pays for.
        Cancelling it then gives up the batch. What arises meanwhile waits or leaves as behind any other batch."""
        task = asyncio.current_task()
        if self._under_way or self._waiting or self._flush_due or self._closed or task is None:
            return await self.submit(item, seconds)
        loop = asyncio.get_running_loop()
        waiter: Waiter[Item, Result] = Waiter(item, loop.create_future(), loop.time() + seconds)
        self._under_way.add(task)
        try:
            results = await self.send([waiter])
        except asyncio.CancelledError:
            if not self.is_closed:
                raise
            task.uncancel()         # by close(): the caller is not what was meant
            raise UnavailableError("shutting down", code="draining") from None
        finally:
            self._under_way.discard(task)
            self._go_on()
        if len(results) != 1:
            raise self._broken(results, 1)
        if isinstance(results[0], TierstoreError):
            raise results[0]
        return results[0]

    def _broken(self, results: Sequence[object], count: int) -> UnavailableError:
        detail = f"{self.peer} answered {len(results)} results for {count} items"
        return UnavailableError(detail, code="broken-answer")

    def _be_patient(self) -> None:
        """See to it that what waits behind batches that hang leaves all the same."""
        if self._waiting and self._impatient is None and self.eager <= len(self._under_way) < self.depth:
            self._impatient = asyncio.get_running_loop().call_later(self.patience_seconds, self._flush_one_more)

    def _flush_one_more(self) -> None:
        """What waits has been patient enough with the batches under way."""
        self._impatient = None
        if self._waiting and not self._flush_due:
            self._flush(min(len(self._under_way) + 1, self.depth))
            self._be_patient()

    def _flush(self, under_way_max: int = 0) -> None:
        self._flush_due = False
        while self._waiting and len(self._under_way) < (under_way_max or self.eager):
            batch: list[Waiter[Item, Result]] = []
            while self._waiting and len(batch) < self.items_max:
                waiter = self._waiting.popleft()
                if not waiter.future.done():
                    batch.append(waiter)
            if batch:
                task = asyncio.get_running_loop().create_task(self._run(batch))
                self._under_way.add(task)
                task.add_done_callback(self._ended)

    async def _run(self, batch: list[Waiter[Item, Result]]) -> None:
        try:
            results = await self.send(batch)
            if len(results) != len(batch):
                raise self._broken(results, len(batch))
        except TierstoreError as error:
            for waiter in batch:
                if not waiter.future.done():
                    waiter.future.set_exception(error)
            return
        except BaseException as error:
            # a bug or a cancellation must not leave callers waiting for ever
            why = UnavailableError(f"the {self.name} batch was given up ({type(error).__name__})", code="metadata-busy")
            for waiter in batch:
                if not waiter.future.done():
                    waiter.future.set_exception(why)
            raise
        for waiter, result in zip(batch, results, strict=True):
            if waiter.future.done():
                continue
            if isinstance(result, TierstoreError):
                waiter.future.set_exception(result)
            else:
                waiter.future.set_result(result)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler({"message": f"{self.name} batch", "exception": error})
        self._go_on()

    def _go_on(self) -> None:
        """A batch has come back: the next ones may leave."""
        if self._waiting and not self._closed:
            self._flush()
            self._be_patient()

    def _expire(self) -> None:
        """Fail what waits behind hung batches; go on looking while anything is about."""
        self._sweep = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for waiter in self._waiting:
            if waiter.until <= now and not waiter.future.done():
                waiter.future.set_exception(
                    UnavailableError(f"no {self.name} answer from {self.peer} in time", code="deadline")
                )
        while self._waiting and self._waiting[0].future.done():
            self._waiting.popleft()
        if self._waiting or self._under_way:
            self._sweep = loop.call_later(SWEEP_SECONDS, self._expire)

    @property
    def is_closed(self) -> bool:
        """close() was called."""
        return self._closed

    @property
    def is_idle(self) -> bool:
        """Nothing waits and nothing is under way."""
        return not self._waiting and not self._under_way

    async def close(self) -> None:
        """Cancel what is under way and fail what waits."""
        self._closed = True
        for timer in (self._sweep, self._impatient):
            if timer is not None:
                timer.cancel()
        self._sweep = self._impatient = None
        tasks = list(self._under_way)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.future.done():
                waiter.future.set_exception(UnavailableError("shutting down", code="draining"))
