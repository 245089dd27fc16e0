"""A deterministic event loop: virtual time (waiting costs nothing) and a seeded choice of which ready callback is next.

The same seed gives the same run. There is no real I/O and there are no threads: run_in_executor is refused, or runs
in-line, so that nothing undetermined slips in.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _NoSelector(selectors.BaseSelector):
    """Knows the loop's own wake-up socket and never finds anything ready; moves time instead of waiting."""

    def __init__(self, wait: Callable[[float | None], None]) -> None:
        self._map: dict[int, selectors.SelectorKey] = {}
        self._wait = wait

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        number = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        key = selectors.SelectorKey(fileobj, number, events, data)
        self._map[number] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._map.pop(fileobj if isinstance(fileobj, int) else fileobj.fileno())

    def get_map(self) -> dict[int, selectors.SelectorKey]:  # type: ignore[override]
        return self._map

    def close(self) -> None:
        self._map.clear()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._wait(timeout)
        return []


class _NumberedTask(asyncio.Task[Any]):
    """Hashes by its number and not by its address: a set of tasks is walked in the same order in every run."""

    def __init__(self, *arguments: Any, number: int, **named: Any) -> None:
        self._number = number
        super().__init__(*arguments, **named)

    def __hash__(self) -> int:
        return self._number


class _NumberedFuture(asyncio.Future[Any]):
    """The same for futures."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop, number: int) -> None:
        self._number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.SelectorEventLoop):
    """Raises RuntimeError on a deadlock (nothing ready, no timer) and on a livelock (steps_max).

    is_shuffled False: callbacks that are ready run in the order in which they were registered, as asyncio documents it
    (some code rests on it); what varies is then the time that messages and disks take.
    `on_task` is called with every task that is made, in the context of who makes it."""

    def __init__(self, seed: int, *, steps_max: int = 20_000_000, is_shuffled: bool = True,
                 runs_blocking_inline: bool = False) -> None:  # fmt: skip
        self._now = 0.0
        super().__init__(_NoSelector(self._pass_time))
        self.random = random.Random(seed)
        self._steps = 0
        self._steps_max = steps_max
        self._is_shuffled = is_shuffled
        self._runs_blocking_inline = runs_blocking_inline
        self._clock_resolution = 1e-9
        self._made = 0
        self.on_task: Callable[[asyncio.Task[Any]], None] = lambda task: None
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]

    def _make_task(self, loop: asyncio.AbstractEventLoop, coro: Any, context: Any = None) -> asyncio.Task[Any]:
        self._made += 1
        task = _NumberedTask(coro, loop=loop, context=context, number=self._made)
        self.on_task(task)
        return task

    def create_future(self) -> asyncio.Future[Any]:
        self._made += 1
        return _NumberedFuture(loop=self, number=self._made)

    def time(self) -> float:
        return self._now

    def _pass_time(self, timeout: float | None) -> None:
        if timeout is None:
            raise RuntimeError("deadlock: nothing is ready and no timer is set")
        if timeout > 0:
            self._now += timeout

    def _run_once(self) -> None:
        self._steps += 1
        if self._steps > self._steps_max:
            raise RuntimeError("livelock: too many steps")
        ready = self._ready  # type: ignore[attr-defined]
        if self._is_shuffled and len(ready) > 1:
            shuffled = list(ready)
            self.random.shuffle(shuffled)
            ready.clear()
            ready.extend(shuffled)
        super()._run_once()  # type: ignore[misc]

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        if self._runs_blocking_inline:
            return self._inline(func, *args)
        raise RuntimeError(f"threads are not deterministic: {func!r}")

    def _inline(self, func: Any, *args: Any) -> asyncio.Future[Any]:
        """What a thread would do, done now: the caller still gives way once, as it would to a thread."""
        future = self.create_future()
        try:
            result = func(*args)
        except Exception as error:  # handed to who awaits it, as an executor does
            self.call_soon(_settle, future, None, error)
        else:
            self.call_soon(_settle, future, result, None)
        return future


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def run(seed: int, main: Callable[[VirtualLoop], Coroutine[Any, Any, T]], *, simulation: bool = False) -> T:
    """Run main(loop) to its end in virtual time. simulation: callbacks in order, blocking calls in-line."""
    loop = VirtualLoop(seed, is_shuffled=not simulation, runs_blocking_inline=simulation)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main(loop))
    finally:
        asyncio.set_event_loop(None)
        loop.close()
