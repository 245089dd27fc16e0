"""What-if as a service: the current and a proposed policy on recorded history, replayed in a process of its own.

Owns the one replay that may run at a time. The replay is policy/whatif.py, the very code that decides in production;
it takes a core for up to a minute, so it runs in a child (`python -m metadata.replay`) of low priority, and the
service goes on. Bounds: one at a time, REPLAY_SECONDS_MAX, the recorder's bytes.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Callable
from typing import Any, Final

import msgspec

from metadata.services.tiering.recorder import Recorder
from tierstore.errors import UnavailableError
from tierstore.policy.parser import parse
from tierstore.policy.rules import Policy
from tierstore.policy.segment import decode, header_of, unpack
from tierstore.policy.simulate import Fleet
from tierstore.policy.trace import OPERATIONS

REPLAY_SECONDS_MAX: Final = 300.0


class Question(msgspec.Struct, frozen=True):
    """What the child is asked. fleet: see Fleet; speeds: tier -> (seconds, bytes per second)."""

    current: dict[str, Any]
    proposed: dict[str, Any]
    hours: float
    has_curve: bool
    fast: dict[str, int]
    mem_bytes: int
    slow: str
    speeds: dict[str, tuple[float, float]]
    chunk_bytes: int
    rate_scale: float
    taken: dict[str, int]
    segments: list[bytes]


class WhatIf:
    """One per process."""

    def __init__(self, recorder: Recorder, *, policy: Callable[[], Policy], fleet: Callable[[], Fleet]) -> None:
        self.recorder = recorder
        self._policy = policy
        self._fleet = fleet
        self._is_busy = False

    async def compare(self, document: Any, *, hours: float, has_curve: bool = True) -> dict[str, Any]:
        """The answer of the simulate route. Raises RequestError (bad policy), UnavailableError (one runs already)."""
        proposed = parse(document)
        if self._is_busy:
            raise UnavailableError("another simulation runs; try again when it is over", code="simulation-busy")
        self._is_busy = True
        try:
            fleet = self._fleet()
            question = Question(
                self._policy().document(), proposed.document(), hours, has_curve, fleet.fast, fleet.mem_bytes,
                fleet.slow, {tier: (s.seconds, s.bytes_per_second) for tier, s in fleet.speeds.items()},
                fleet.chunk_bytes, fleet.rate_scale, fleet.taken,
                list(await self.recorder.segments()),
            )  # fmt: skip
            return await _ask(question)
        finally:
            self._is_busy = False

    async def history_csv(self, hours: float) -> str:
        """The recorded requests of the last hours as a trace file."""
        segments = await self.recorder.segments()
        return await asyncio.to_thread(_csv, segments, hours)


async def _ask(question: Question) -> dict[str, Any]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "metadata.replay", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(REPLAY_SECONDS_MAX):
            answer, errors = await child.communicate(msgspec.msgpack.encode(question))
    except TimeoutError:
        raise UnavailableError(
            f"the replay took more than {REPLAY_SECONDS_MAX:.0f} s; ask for fewer hours", code="simulation-too-long"
        ) from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        last = errors.decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
        raise UnavailableError(f"the replay failed: {last[0]}", code="simulation-failed")
    found: dict[str, Any] = msgspec.json.decode(answer)
    return found


def _csv(segments: tuple[bytes, ...], hours: float) -> str:
    """One segment after the other: their requests as objects would take a hundred times the log."""
    since_ms = int(unpack(segments[-1]).at_ms[-1]) - hours * 3_600_000 if segments else 0
    text, start_ms, last_ms = io.StringIO(), None, 0
    text.write("time,key,size,op\n")
    for segment in segments:
        if header_of(segment).last_ms < since_ms:
            continue
        for access in decode(segment):
            if access.at_ms < since_ms or "," in access.key:
                continue
            start_ms = access.at_ms if start_ms is None else start_ms
            last_ms = max(last_ms, access.at_ms - start_ms)
            key = access.key.replace("\r", " ").replace("\n", " ")
            text.write(f"{last_ms / 1000:.3f},{access.bucket}/{key},{access.size},{OPERATIONS[access.op]}\n")
    return text.getvalue()
