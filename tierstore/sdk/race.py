"""A hedged read: ask one replica, after a while or a failure the next as well; the first verified answer wins.

Owns the tasks of the attempts and one timer; all are finished or cancelled when `run` returns or raises.

Cost with a prompt first replica: one task, one future and one timer, about 8 us.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Generic, TypeVar

from tierstore.errors import UnavailableError

Candidate = TypeVar("Candidate")
Result = TypeVar("Result")


class Race(Generic[Candidate, Result]):
    """`attempt` asks one candidate; `failed` hears of every failure, `hedged` of
    every second replica asked because the first was slow; `discard` disposes of an answer that came second.

    An error is passed over as long as a candidate is left or running; when none is, the last one is raised.
    """

    def __init__(
        self, candidates: Sequence[Candidate], attempt: Callable[[Candidate], Coroutine[object, object, Result]], *,
        hedge_seconds: float, seconds: float,
        failed: Callable[[Candidate, Exception], None], discard: Callable[[Result], None] | None = None,
        hedged: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self._candidates = candidates
        self._attempt = attempt
        self._hedge_seconds = hedge_seconds
        self._seconds = seconds
        self._failed = failed
        self._discard = discard
        self._hedged = hedged
        self._next = 0
        self._running: dict[asyncio.Task[Result], Candidate] = {}
        self._loop = asyncio.get_running_loop()
        self._outcome: asyncio.Future[tuple[Candidate, Result]] = self._loop.create_future()
        self._until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> tuple[Candidate, Result]:
        """The winner and its answer. Raises the last error, or UnavailableError(code="deadline")."""
        self._until = self._loop.time() + self._seconds
        self._start()
        try:
            return await self._outcome
        except asyncio.CancelledError:
            # an answer that came in the same moment has no taker any more
            outcome = self._outcome
            if outcome.done() and not outcome.cancelled() and outcome.exception() is None and self._discard is not None:
                self._discard(outcome.result()[1])
            raise
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for task in self._running:
                task.cancel()

    def _start(self) -> None:
        if self._next >= len(self._candidates):
            raise UnavailableError("no replica is left to ask", code="no-replica")
        candidate = self._candidates[self._next]
        self._next += 1
        task = self._loop.create_task(self._attempt(candidate))
        self._running[task] = candidate
        task.add_done_callback(self._done)
        if self._timer is not None:
            self._timer.cancel()
        is_last = self._next >= len(self._candidates)
        wait = self._until - self._loop.time()
        self._timer = self._loop.call_later(wait if is_last else min(wait, self._hedge_seconds), self._tick)

    def _tick(self) -> None:
        if self._outcome.done():
            return
        if self._next < len(self._candidates) and self._loop.time() < self._until:
            if self._hedged is not None:
                self._hedged()
            self._start()
        elif self._loop.time() >= self._until:
            self._outcome.set_exception(UnavailableError("no replica answered in time", code="deadline"))

    def _done(self, task: asyncio.Task[Result]) -> None:
        candidate = self._running.pop(task)
        if task.cancelled():
            if not self._outcome.done() and not self._running:
                self._outcome.cancel()
            return
        error = task.exception()
        if error is None:
            if not self._outcome.done():
                self._outcome.set_result((candidate, task.result()))
            elif self._discard is not None:
                self._discard(task.result())
            return
        if not isinstance(error, Exception):
            raise error
        self._failed(candidate, error)
        if self._outcome.done():
            return
        if self._next < len(self._candidates) and self._loop.time() < self._until:
            self._start()
        elif not self._running:
            self._outcome.set_exception(error)
