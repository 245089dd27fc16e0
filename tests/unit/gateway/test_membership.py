"""The gateway's identity over its lives: what it keeps, what it shows, when it waits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tierstore.errors import AccessDenied, ConflictError, NotAuthenticated
from tierstore.gateway.membership import FILE_NAME, Membership
from tierstore.wire.cluster import Heartbeat, HeartbeatAnswer, Register, Registered


class Registry:
    """Answers registrations from a list; an exception is raised. Remembers what was shown."""

    def __init__(self, *answers: str | Exception) -> None:
        self._answers = list(answers)
        self.shown: list[tuple[str, Register]] = []
        self.token = ""
        self.heartbeats: list[str] = []     # the credentials they came with

    def set_token(self, token: str) -> None:
        self.token = token

    async def heartbeat(self, beat: Heartbeat) -> HeartbeatAnswer:
        self.heartbeats.append(self.token)
        if self.token != "tsd.7.second":
            raise NotAuthenticated("the server's credential is not known")
        return HeartbeatAnswer(now_ms=1, sequence=1, map_revision=1)

    async def register(self, message: Register) -> Registered:
        self.shown.append((self.token, message))
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        self.token = answer or self.token
        return Registered(
            cluster_id="c", server=7, secret=answer, site="site1", site_id=1, now_ms=1, devices=[], ticket_keys=[],
            heartbeat_seconds=1.0,
        )  # fmt: skip


def membership(
    registry: Any, directory: Path, heard: list[str], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> Membership:
    return Membership(
        registry, directory=str(directory), name="gateway1", join_token="join", heartbeat_seconds=1.0,
        on_secret=heard.append, in_flight=lambda: 0, is_leaving=lambda: False, sleep=sleep,
    )  # fmt: skip


def test_a_secret_that_metadata_does_not_repeat_is_kept(tmp_path: Path) -> None:
    """Metadata gives the secret once; a gateway that forgot it at its next start was locked out of the cluster."""
    heard: list[str] = []
    asyncio.run(membership(Registry("tsd.7.first"), tmp_path, heard).join("http://g"))
    registry = Registry("")
    asyncio.run(membership(registry, tmp_path, heard).join("http://g"))
    third = Registry("")
    asyncio.run(membership(third, tmp_path, heard).join("http://g"))
    assert heard == ["tsd.7.first"] * 3
    assert registry.shown[0][0] == third.shown[0][0] == "tsd.7.first"
    kept = json.loads((tmp_path / FILE_NAME).read_bytes())
    assert kept["secret"] == "tsd.7.first" and kept["incarnation"] == 3


def test_it_waits_while_its_name_is_held_by_its_own_lost_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state directory is gone: the name is free again when metadata has seen the old life dead, 20 s later."""
    monkeypatch.setattr("tierstore.gateway.membership._RETRY_SECONDS", 0)
    heard: list[str] = []
    taken = ConflictError("held by another server", code="server-name-taken")
    registry = Registry(taken, taken, "tsd.7.new")
    asyncio.run(membership(registry, tmp_path, heard).join("http://g"))
    assert heard == ["tsd.7.new"] and len(registry.shown) == 3


def test_a_refused_gateway_says_why_and_joins_when_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator mends the token of the cluster, or removes the server that has the name: nobody restarts gateways."""
    monkeypatch.setattr("tierstore.gateway.membership._REFUSED_SECONDS", 0)
    refused = NotAuthenticated("the join token is wrong")
    door = membership(Registry(refused, refused, "tsd.7.new"), tmp_path, [])
    seen: list[str] = []
    monkeypatch.setattr(door, "_tell", lambda why, tell=door._tell: (tell(why), seen.append(door.waits_for)))
    asyncio.run(door.join_whatever_comes("http://g"))
    assert len(seen) == 2 and all("the join token is wrong" in why for why in seen)
    assert door.waits_for == "" and len(caplog.records) == 1, "the same reason is logged once a minute"


def test_a_wrong_join_token_is_told_at_once(tmp_path: Path) -> None:
    """Waiting would hide a mistake of the operator."""
    with pytest.raises(NotAuthenticated):
        asyncio.run(membership(Registry(NotAuthenticated("wrong")), tmp_path, []).join("http://g"))


def test_a_secret_that_does_not_hold_any_more_is_replaced_by_the_join_token(tmp_path: Path) -> None:
    """Registrations that were given up here wait in the socket of a metadata that is slow to start, and are all taken:
    the one whose answer was heard need not be the last, and only the last one's secret holds."""
    heard: list[str] = []

    async def main() -> None:
        registry = Registry("tsd.7.first", NotAuthenticated("the server's credential is not known"), "tsd.7.second")
        member = membership(registry, tmp_path, heard)
        await member.join("http://g")
        await member._beat_once()
        await member._beat_once()
        assert registry.heartbeats == ["tsd.7.first", "tsd.7.second"]
        assert [token for token, _ in registry.shown] == ["", "tsd.7.first", ""]

    asyncio.run(main())
    assert heard == ["tsd.7.first", "tsd.7.second"]
    assert json.loads((tmp_path / FILE_NAME).read_bytes())["secret"] == "tsd.7.second"


def test_a_gateway_that_was_removed_asks_ever_more_seldom(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It asked to join again with every heartbeat, a second apart, for as long as it was left running; taken back, it
    beats as before."""
    removed = AccessDenied("server 'gateway1' was removed from the cluster", code="server-removed")
    # it is refused by its secret and by its join token at first, then by its token alone; at last it is taken back
    registry = Registry("tsd.7.first", *[removed] * 10, "tsd.7.second")
    pauses: list[float] = []
    told: list[str] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        told.append(door.waits_for)
        if len(pauses) > 12:
            await asyncio.Event().wait()
        await asyncio.sleep(0)

    door = membership(registry, tmp_path, [], sleep)

    async def main() -> None:
        await door.join("http://g")
        door.start()
        async with asyncio.timeout(60):
            while len(pauses) <= 12:
                await asyncio.sleep(0)
        await door.stop()

    asyncio.run(main())
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 1, 1, 1]
    assert ["was removed" in why for why in told] == [False] + [True] * 9 + [False] * 3
    assert sum("was removed" in record.message for record in caplog.records) == 1
