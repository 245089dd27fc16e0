"""Two sites that make each other known: with a site of the release before, of the next one, with something else at the
address."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from metadata.catalog import accounts, sites
from metadata.services.access.credentials import Credentials
from metadata.services.sites.courier import Courier
from metadata.services.sites.registry import Self, Sites
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.errors import ConflictError, TierstoreError, UnavailableError
from tierstore.transport.peer import PeerReply

#: What the first release takes in a join: it refuses all else.
FIRST_RELEASE = {"name", "number", "gateways", "token", "replace"}


@dataclass
class Gateway:
    """Another site's gateway, as the courier's transport reaches it. more: members of its answers that this release
    does not know; page: what stands at that address instead of a site."""

    name: str
    more: dict[str, Any] = field(default_factory=dict)
    page: bytes = b""
    joined: list[dict[str, Any]] = field(default_factory=list)

    async def call(
        self, base: str, method: bytes, target: bytes, headers: Any = (), body: bytes = b"", seconds: float = 0
    ) -> PeerReply:
        assert (b"authorization", b"Bearer tst.theirs.admin") in headers
        if self.page:
            return PeerReply(200, [], self.page)
        if (method, target) == (b"GET", b"/v1/admin/sites"):
            mine = {"name": self.name, "number": 2, "is_local": True, "gateways": ["http://there"], **self.more}
            other = {"name": "site9", "number": 9, "is_local": False, "gateways": ["http://far"]}
            return PeerReply(200, [], json.dumps({"sites": [other, mine]}).encode())
        assert (method, target) == (b"POST", b"/v1/admin/sites/join")
        wish = json.loads(body)
        if unknown := wish.keys() - FIRST_RELEASE:
            problem = {"code": "bad-request", "detail": f"unknown field {sorted(unknown)}", "status": 400}
            return PeerReply(400, [], json.dumps(problem).encode())
        self.joined.append(wish)
        answer = {"name": self.name, "number": 2, "gateways": ["http://there"], "token": "tst.ours", **self.more}
        return PeerReply(200, [], json.dumps(answer).encode())


def _run(test: Callable[[NamesWorld], Awaitable[None]]) -> None:
    async def main() -> None:
        world = await NamesWorld.open("sqlite://", threads=False)
        try:
            async with asyncio.timeout(300):
                await test(world)
        finally:
            await world.close()

    asyncio.run(main())


async def _join(w: NamesWorld, gateway: Gateway, name: str) -> Sites:
    """This site after `admin sites add NAME`."""
    made = iter(range(100))
    keys = Credentials(
        w.database, w.clock, daemon=lambda secret: None, random_bytes=lambda n: bytes([next(made)]) * n
    )
    transport: Any = gateway
    members = Sites(
        w.database, w.names, w.clock, keys, Courier(transport), me=lambda: Self("site1", 1, ["http://here"]),
        random_hex=lambda: f"{next(made):04x}",
    )  # fmt: skip
    await members.add(name, "http://there/", "tst.theirs.admin", own_gateways=[], who=ADMIN)
    return members


async def _kept(w: NamesWorld) -> tuple[int, int]:
    """Sites that are known, and live keys of sites."""
    return await w.database.read(
        lambda c: (len(sites.others(c)), sum(row.user.startswith("site:") for row in accounts.everyone(c)))
    )


@pytest.mark.parametrize("more", [{}, {"of_the_next_release": [1, 2]}], ids=["before", "after"])
def test_sites_of_the_release_before_and_after_join(more: dict[str, Any]) -> None:
    """Sites are upgraded one after another: one that could be added only by its own release would stay alone."""

    async def check(w: NamesWorld) -> None:
        gateway = Gateway("site2", more)
        members = await _join(w, gateway, "site2")
        assert members.names() == ["site2"] and members.known.get("site2").gateways == ["http://there"]
        assert [wish["name"] for wish in gateway.joined] == ["site1"]

    _run(check)


@pytest.mark.parametrize(
    "gateway, raises, says",
    [
        (Gateway("lyon"), ConflictError, "is called 'lyon', not 'site2'"),
        (Gateway("site2", page=b"<html>It works!</html>"), UnavailableError, "no gateway of a site"),
        (Gateway("site2", page=b"[1]"), UnavailableError, "no gateway of a site"),
        (Gateway("site2", page=b'{"sites": []}'), UnavailableError, "no gateway of a site"),
    ],
    ids=["another name", "a page", "json", "no site"],
)
def test_a_wrong_address_leaves_nothing_behind(gateway: Gateway, raises: type[TierstoreError], says: str) -> None:
    """What either side had kept would refuse the right command afterwards: known already."""

    async def check(w: NamesWorld) -> None:
        with pytest.raises(raises, match=says):
            await _join(w, gateway, "site2")
        assert not gateway.joined and await _kept(w) == (0, 0)

    _run(check)
