"""A machine that stands still now and then: what a busy one does to a test once in a thousand runs, in every run.

TIERSTORE_UNSTEADY=SEED turns it on (`make test-unsteady`). Callbacks of event loops and jobs of thread pools are held
up before they run, and processes that the tests started are stopped and continued, for a few milliseconds mostly, for
a second seldom. A test that then fails has taken two things for one (waited for a fact and asserted another that comes
a moment later) or has guessed how long something takes. The delays come from the seed; where they fall depends on the
machine as well, so that a run is no exact replay.

Processes that a test itself has stopped are left alone.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

#: One callback or job of so many is held up.
CALLBACKS_EACH: Final = 250
JOBS_EACH: Final = 10
#: The delays, in seconds: mostly about the first, one of LONG_EACH about the second.
SHORT_SECONDS: Final = 0.008
LONG_SECONDS: Final = 0.8
LONG_EACH: Final = 40
#: Between two stops of a process.
PAUSE_SECONDS: Final = 0.05


def begin(seed: int) -> None:
    """Make this process, and those it starts from now on, unsteady until it ends."""
    chance = random.Random(f"{seed}:{os.environ.get('PYTEST_XDIST_WORKER', '')}")
    _hold_up(asyncio.events.Handle, "_run", chance, CALLBACKS_EACH)
    _hold_up(concurrent.futures.thread._WorkItem, "run", chance, JOBS_EACH)
    threading.Thread(target=_stop_children, args=(chance,), name="unsteady", daemon=True).start()


def _delay(chance: random.Random, *, short: float = SHORT_SECONDS) -> float:
    if chance.randrange(LONG_EACH) == 0:
        return min(3 * LONG_SECONDS, chance.expovariate(1 / LONG_SECONDS))
    return chance.expovariate(1 / short)


def _hold_up(owner: Any, name: str, chance: random.Random, each: int) -> None:
    run = getattr(owner, name)

    def later(self: Any) -> None:
        if chance.randrange(each) == 0:
            time.sleep(min(0.1, _delay(chance)))   # the loop itself stands still: that is the point
        run(self)

    setattr(owner, name, later)


def _stop_children(chance: random.Random) -> None:
    while True:
        time.sleep(chance.expovariate(1 / PAUSE_SECONDS))
        children = list(_descendants(os.getpid()))
        if children:
            _stop_for(chance.choice(children), _delay(chance, short=10 * SHORT_SECONDS))


def _descendants(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield int(child)
                yield from _descendants(int(child))


def _stop_for(pid: int, seconds: float) -> None:
    """By a pidfd: the number may belong to somebody else by the time it is to go on."""
    with suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            if _state(pid) in "TtZX":
                return
            signal.pidfd_send_signal(handle, signal.SIGSTOP)
            try:
                time.sleep(seconds)
            finally:
                signal.pidfd_send_signal(handle, signal.SIGCONT)
        finally:
            os.close(handle)


def _state(pid: int) -> str:
    """One letter, as proc(5) names them."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
