"""Tasks that nobody waits for."""

from __future__ import annotations

import asyncio

from metadata.background import AGAIN_SECONDS, Background
from tests.kit.meddling import until_idle
from tierstore.clock import ManualClock


async def test_a_background_task_outlives_a_bug_of_its_own() -> None:
    """It ended without a word: the process served on and never again heard what other processes had changed."""
    clock, begun, waiting = ManualClock(), 0, asyncio.Event()

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun == 1:
            raise RuntimeError("a bug")
        await waiting.wait()

    background = Background(clock)
    background.begin("work", work)
    await until_idle()
    assert (begun, background.failures) == (1, 1)
    clock.advance(AGAIN_SECONDS)
    await until_idle()
    assert (begun, background.failures) == (2, 1)
    await background.end()
    await background.end()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "metadata work"]
