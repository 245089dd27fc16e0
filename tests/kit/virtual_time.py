"""A deterministic event loop: virtual time (waiting costs nothing) and a seeded choice of which ready callback is next.

The same seed gives the same run. There is no real I/O and there are no threads: run_in_executor is refused, so that
nothing undetermined slips in.
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


class VirtualLoop(asyncio.SelectorEventLoop):
    """Raises RuntimeError on a deadlock (nothing ready, no timer) and on a livelock (steps_max)."""

    def __init__(self, seed: int, *, steps_max: int = 20_000_000) -> None:
        self._now = 0.0
        super().__init__(_NoSelector(self._pass_time))
        self.random = random.Random(seed)
        self._steps = 0
        self._steps_max = steps_max
        self._clock_resolution = 1e-9

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
        if len(ready) > 1:
            shuffled = list(ready)
            self.random.shuffle(shuffled)
            ready.clear()
            ready.extend(shuffled)
        super()._run_once()  # type: ignore[misc]

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        raise RuntimeError(f"threads are not deterministic: {func!r}")


def run(seed: int, main: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Run main(loop) to its end in virtual time."""
    loop = VirtualLoop(seed)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main(loop))
    finally:
        asyncio.set_event_loop(None)
        loop.close()
