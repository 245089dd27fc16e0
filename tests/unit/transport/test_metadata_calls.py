"""Calls to metadata outlast its restart for as long as the setting says, whatever is asked."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tests.kit import virtual_time
from tierstore import wire
from tierstore.errors import UnavailableError
from tierstore.transport.metadata_calls import MetadataCalls, MetadataLimits
from tierstore.transport.peer import PeerReply


class _Restarting:
    """A transport whose metadata refuses connections until `back_at`."""

    def __init__(self, back_at: float) -> None:
        self.back_at = back_at

    async def call(self, *_: Any, **__: Any) -> PeerReply:
        if asyncio.get_running_loop().time() < self.back_at:
            raise UnavailableError("connection refused", code="unreachable")
        return PeerReply(200, [], wire.encode({"is": "back"}))


def _asked_across(restart_seconds: float, *, hold_seconds: float) -> dict[str, str]:
    async def main(loop: virtual_time.VirtualLoop) -> dict[str, str]:
        transport: Any = _Restarting(loop.time() + restart_seconds)
        limits = MetadataLimits(hold_seconds=hold_seconds)
        calls = MetadataCalls(transport, ["http://metadata"], token="", rng=random.Random(1), limits=limits)
        return await calls.ask(b"/v1/internal/credential", {}, dict[str, str])

    return virtual_time.run(1, main)


def test_a_question_without_a_time_of_its_own_waits_as_long_as_the_setting_says() -> None:
    """Credentials and buckets were asked for during ten seconds, whatever `timers.metadata_restart` said: a slow
    restart failed the requests that had to ask again who their caller is."""
    assert _asked_across(50.0, hold_seconds=60.0) == {"is": "back"}


def test_a_restart_that_takes_longer_is_said_to() -> None:
    with pytest.raises(UnavailableError, match="did not answer"):
        _asked_across(50.0, hold_seconds=20.0)
