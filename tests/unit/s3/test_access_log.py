"""Lines of access logs in memory: bounded, delivered when due, kept when a delivery fails, counted when lost."""

from __future__ import annotations

import asyncio

import pytest

from tests.kit.waits import until
from tierstore.clock import SystemClock
from tierstore.errors import UnavailableError
from tierstore.gateway.s3 import access_log
from tierstore.gateway.s3.access_log import AccessLog, Batch, Refused
from tierstore.gateway.s3.log_rules import LogRule

_RULE = LogRule("target", "logs/")


class _Target:
    """Takes batches, or raises what it is told to."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.bodies: list[bytes] = []

    async def deliver(self, batch: Batch) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.bodies.append(b"".join(batch.lines))


def _log_of(target: _Target, *, every: float = 0.01, is_paused: bool = False) -> AccessLog:
    return AccessLog(target.deliver, SystemClock(), every_seconds=every, is_paused=is_paused)


def test_lines_are_delivered_when_they_are_due() -> None:
    """One object for the lines of a bucket and day, another for another's; then nothing is held."""

    async def run() -> None:
        target = _Target()
        log = _log_of(target)
        for line in ("a\n", "b\n"):
            log.add("one", _RULE, line, at_ms=0)
        log.add("two", _RULE, "c\n", at_ms=0)
        log.add("one", _RULE, "d\n", at_ms=86_400_000)
        await until(lambda: log.lines_total["delivered"] == 4)
        assert sorted(target.bodies) == [b"a\nb\n", b"c\n", b"d\n"]
        assert log.waiting_bytes == 0
        log.add("one", _RULE, "e\n", at_ms=0)      # the duty that had ended begins anew
        await until(lambda: log.lines_total["delivered"] == 5)
        await log.close()

    asyncio.run(run())


def test_a_failed_delivery_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that cannot be written for a moment must not cost lines; what came meanwhile goes with them."""

    async def run() -> None:
        monkeypatch.setattr(access_log, "RETRY_SECONDS", 0.01)
        target = _Target(UnavailableError("busy", code="busy"), ValueError("whatever"))
        log = _log_of(target)
        log.add("one", _RULE, "a\n", at_ms=0)
        await until(lambda: len(target.errors) < 2)
        log.add("one", _RULE, "b\n", at_ms=0)
        await until(lambda: log.lines_total["delivered"] == 2)
        assert b"".join(target.bodies) == b"a\nb\n"
        assert log.lines_total["dropped"] == 0
        await log.close()

    asyncio.run(run())


def test_what_the_target_refuses_is_dropped_and_counted() -> None:
    """Lines for a bucket that takes none must not fill the memory for an hour."""

    async def run() -> None:
        log = _log_of(_Target(Refused("no")))
        log.add("one", _RULE, "a\n", at_ms=0)
        await until(lambda: log.lines_total["refused"] == 1)
        assert log.waiting_bytes == 0
        await log.close()

    asyncio.run(run())


def test_the_memory_of_lines_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway whose targets are away must not die of its logs."""

    async def run() -> None:
        monkeypatch.setattr(access_log, "WAITING_BYTES_MAX", 4)
        log = _log_of(_Target(), is_paused=True)
        for _ in range(3):
            log.add("one", _RULE, "a\n", at_ms=0)
        assert (log.waiting_bytes, log.lines_total["dropped"]) == (4, 1)
        await log.close()
        assert log.lines_total == {"delivered": 0, "dropped": 3, "refused": 0}

    asyncio.run(run())


def test_the_end_delivers_what_waits() -> None:
    """A planned restart loses no line."""

    async def run() -> None:
        target = _Target()
        log = _log_of(target, every=3600)
        log.add("one", _RULE, "a\n", at_ms=0)
        await log.close()
        assert target.bodies == [b"a\n"]
        assert log.oldest_seconds == 0

    asyncio.run(run())


def test_the_end_delivers_what_was_just_being_delivered() -> None:
    """The batch under way when a gateway stops is not the one that is lost."""

    async def run() -> None:
        began, bodies = asyncio.Event(), []

        async def deliver(batch: Batch) -> None:
            if not began.is_set():
                began.set()
                await asyncio.Event().wait()
            bodies.append(b"".join(batch.lines))

        log = AccessLog(deliver, SystemClock(), every_seconds=0.01, is_paused=False)
        log.add("one", _RULE, "a\n", at_ms=0)
        await began.wait()
        await log.close()
        assert bodies == [b"a\n"]

    asyncio.run(run())
