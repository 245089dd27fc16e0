"""What is refused in the middle of a request, after its body has come: answered at once, by every adapter.

The refusal is an error of a callback (the body's, not the handler's), where nobody awaits it: without the seam's
promise the client would wait for its deadline."""

from __future__ import annotations

import json
from typing import cast

import pytest

from metadata.routes.hot import HotRoutes, Revisions
from metadata.services.access.credentials import Credentials
from metadata.services.names import commit as commits
from tests.contract.exchange_subjects import KINDS, run, subject
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.auth.access import Principal
from tierstore.serving.exchange import Exchange
from tierstore.serving.table import Route
from tierstore.transport.peer import PeerReply
from tierstore.wire import decode, encode
from tierstore.wire.names import CommitBatch, CommitItem, CommitReply, Delete

SECONDS = 60.0
PATH = b"/v1/internal/commit"


class _Everybody:
    """Credentials of which each caller is known already, as on the hot path."""

    def caller_now(self, header: bytes | None) -> Principal:
        return ADMIN

    async def caller(self, header: bytes | None) -> Principal:
        return ADMIN

    def sending(self, caller: Principal, address: str) -> Principal:
        return caller

    def behind_now(self, caller: Principal, access: str) -> Principal:
        return caller

    async def behind(self, caller: Principal, access: str) -> Principal:
        return caller


async def _report(bad: object, caller: object) -> None: ...


def _routes(w: NamesWorld) -> list[Route]:
    def revision() -> int:
        return 1

    return HotRoutes(
        credentials=cast(Credentials, _Everybody()), lookups=w.lookups, allocations=w.allocations, commits=w.commits,
        listings=w.listings, uploads=w.uploads, revisions=Revisions(revision, revision, revision), clock=w.clock,
        report_bad=_report,
    ).routes()  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_commit_that_finds_the_queue_full_is_answered_503_at_once(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many wait: the client must hear of it and come again, not hang until its deadline. What waits goes on."""

    async def main() -> None:
        w = await NamesWorld.open("sqlite://", threads=False)
        await w.buckets.create("bbb", ADMIN)

        def item(key: str) -> CommitItem:
            return w.item(Delete("bbb", key))

        try:
            async with subject(kind, more=_routes(w)) as s:

                async def send(*keys: str) -> PeerReply:
                    body = encode(CommitBatch([item(key) for key in keys]))
                    return await s.transport.call(s.url, b"POST", PATH, body=body, seconds=SECONDS)

                monkeypatch.setattr(commits, "WAITING_MAX", 2)
                refused = await send("a", "b", "c")
                members = json.loads(refused.body)
                assert (refused.status, members["code"]) == (503, "unavailable")
                assert refused.header(b"retry-after")
                taken = await send("a", "b")
                results = decode(taken.body, CommitReply).results
                assert [result.code for result in results] == ["", ""]
        finally:
            await w.close()

    run(main())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [10, 300_000])
def test_an_error_of_who_takes_the_body_becomes_the_answer(kind: str, size: int) -> None:
    """A bug in a callback is a 500 with its request id; the connection serves the next request."""

    def taking(exchange: Exchange) -> None:
        def then(body: bytes) -> None:
            raise RuntimeError(f"secret {len(body)}")

        exchange.collect(600_000, then)

    async def main() -> None:
        async with subject(kind, more=[Route(b"POST", b"/hot/taking", taking)]) as s:
            reply = await s.transport.call(s.url, b"POST", b"/hot/taking", body=bytes(size), seconds=SECONDS)
            assert (reply.status, json.loads(reply.body)["code"]) == (500, "internal")
            assert b"secret" not in reply.body
            again = await s.transport.call(s.url, b"GET", b"/hot/small", seconds=SECONDS)
            assert again.body == b"small"

    run(main())
