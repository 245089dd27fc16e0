"""Calls to the metadata service that outlast its restarts: one request, sent again until an answer is there.

Does not know what is asked. A request that found nobody, lost its connection, ran out of its attempt's time or was
answered 503 is sent again, to the next of `urls`, after a growing pause, for at most `hold_seconds` and never past the
caller's deadline. Whether a repeat is harmless is the caller's to see to (lookups are; mutations carry operation ids).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from tierstore import wire
from tierstore.errors import RequestError, TierstoreError, UnavailableError, from_answer
from tierstore.transport.peer import PeerReply, PeerTransport

T = TypeVar("T")

#: Codes after which the same request may succeed elsewhere or a moment later.
RETRIED_CODES = frozenset({
    "unreachable", "broken-answer", "deadline", "unavailable", "draining", "metadata-unreachable", "metadata-busy",
    "busy", "not-ready", "starting", "catalog-unavailable",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class MetadataLimits:
    """Bounds of one client. attempt_seconds: one request; hold_seconds: how long a request is held for a restart;
    under_way_seconds: how long one goes on asking after a commit that metadata says is on its way to another site.
    depth: batches of one kind under way; beyond the first one only when it has not come back within the patience."""

    depth: int = 4
    lookup_patience_seconds: float = 0.002
    commit_patience_seconds: float = 0.01
    items_max: int = 256
    waiting_max: int = 8192
    attempt_seconds: float = 5.0
    under_way_seconds: float = 3600.0
    hold_seconds: float = 10.0
    pause_seconds_min: float = 0.02
    pause_seconds_max: float = 0.25
    bad_chunks_max: int = 1024


class MetadataCalls:
    """One per MetadataClient. `urls`: metadata processes of this site, tried in turn."""

    def __init__(
        self, transport: PeerTransport, urls: Sequence[str], *, token: str, rng: random.Random, limits: MetadataLimits
    ) -> None:
        if not urls:
            raise ValueError("at least one metadata url is needed")
        self._transport = transport
        self._urls = list(urls)
        self._at = 0
        self._rng = rng
        self._limits = limits
        self.set_token(token)

    def set_token(self, token: str) -> None:
        """The credential of every later call (a daemon gets its secret at registration)."""
        auth = ((b"authorization", b"Bearer " + token.encode("latin-1")),) if token else ()
        self._headers = (*auth, (b"content-type", wire.MEDIA_TYPE.encode()))
        self._map_headers = (*auth, (b"accept", wire.MEDIA_TYPE.encode()))

    async def ask(
        self, target: bytes, question: object, kind: type[T], seconds: float | None = None, access: str = ""
    ) -> T:
        """One message and its answer, within `seconds`; None: as long as a request is held, and an attempt more.
        access: the user for whom a daemon asks."""
        limits = self._limits
        seconds = limits.hold_seconds + limits.attempt_seconds if seconds is None else seconds
        until = asyncio.get_running_loop().time() + seconds
        headers = [*self._headers, (b"x-tierstore-access", access.encode("latin-1"))] if access else None
        reply = await self.held(b"POST", target, wire.encode(question), until, headers=headers)
        return decoded(reply.body, kind)

    async def held(
        self, method: bytes, target: bytes, body: bytes, until: float, *,
        is_pointless: Callable[[], bool] | None = None, headers: Any = None, accept_packed: bool = False,
    ) -> PeerReply:  # fmt: skip
        """Send until an answer that is not "come again" is there. Raises the error answer as it came, or
        "metadata-unreachable" when an attempt went unanswered: metadata may have received it all the same."""
        loop = asyncio.get_running_loop()
        hold_until = min(until, loop.time() + self._limits.hold_seconds)
        pause = self._limits.pause_seconds_min
        unanswered = False
        while True:
            left = until - loop.time()
            if left <= 0:
                raise UnavailableError("metadata did not answer in time", code="deadline")
            sent = headers or (self._map_headers if accept_packed else self._headers)   # the token may change meanwhile
            try:
                reply = await self._transport.call(
                    self._urls[self._at], method, target, headers=sent, body=body,
                    seconds=min(left, self._limits.attempt_seconds),
                )  # fmt: skip
                if reply.status < 300:
                    return reply
                failure = error_of(reply)
            except UnavailableError as error:
                failure = error
                unanswered = True
            if failure.code not in RETRIED_CODES:
                raise failure
            if loop.time() + pause >= hold_until or (is_pointless is not None and is_pointless()):
                if unanswered:
                    raise UnavailableError(f"metadata did not answer: {failure}", code="metadata-unreachable")
                raise failure
            self._at = (self._at + 1) % len(self._urls)
            await asyncio.sleep(pause * (0.5 + self._rng.random()))
            pause = min(pause * 1.6, self._limits.pause_seconds_max)


def error_of(reply: PeerReply) -> TierstoreError:
    """The exception for a problem+json answer of another process."""
    try:
        members = msgspec.json.decode(reply.body, type=dict[str, Any])
    except (msgspec.DecodeError, ValueError):
        members = {}
    code = str(members.get("code") or ("unavailable" if reply.status >= 502 or reply.status == 503 else "internal"))
    return from_answer(reply.status, code, str(members.get("detail") or f"status {reply.status}"))


def decoded(body: bytes, kind: type[T]) -> T:
    """An answer of metadata. One that cannot be read is metadata's fault, not the caller's: UnavailableError."""
    try:
        return wire.decode(body, kind)
    except RequestError as error:
        raise UnavailableError(f"metadata's answer cannot be read: {error.detail}", code="broken-answer") from error
