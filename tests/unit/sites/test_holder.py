"""Several metadata processes, one of which speaks to other sites: whichever is asked answers as that one would."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from metadata.routes.holder import PASSED_ON, AskHolder
from metadata.routes.sites import add_counts
from metadata.routes.sites_models import ReplicationModel, SyncModel
from tierstore.errors import TierstoreError, UnavailableError
from tierstore.transport.peer import PeerReply


class Peers:
    """Metadata processes by address, as the transport reaches them; each with what it takes for the holder's."""

    def __init__(self, **holders: str) -> None:
        self._apps: dict[str, FastAPI] = {}
        self._names = list(holders)
        self.failure: TierstoreError | None = None
        self.passed_on: list[dict[str, str]] = []
        for name, holder in holders.items():
            self._apps[name] = self._app(name, holder)

    def _app(self, name: str, holder: str) -> FastAPI:
        app = FastAPI()
        transport: Any = self
        ask = AskHolder(transport, lambda: holder, lambda: [each for each in self._names if each != name])

        @app.api_route("/v1/x", methods=["GET", "POST"])
        async def answer(request: Request) -> Response:
            if PASSED_ON in request.headers:
                self.passed_on.append(dict(request.headers))
            if "refuses" in name:
                return Response("no", status_code=503)
            return await ask.answer(request) or Response(name.encode() + await request.body(), media_type="text/plain")

        @app.get("/v1/counts")
        async def counts(request: Request) -> Response:
            if "refuses" in name:
                return Response("no", status_code=503)
            told = await ask.answer(request)
            return told or Response(b" ".join(sorted([name.encode(), *await ask.of_others(request)])))

        return app

    async def call(
        self, base: str, method: bytes, target: bytes, headers: Any = (), body: bytes = b"", seconds: float = 0
    ) -> PeerReply:
        if self.failure is not None:
            raise self.failure
        assert seconds > 0
        answer = await self.ask(base, method.decode(), target.decode(), headers=list(headers), content=body)
        return PeerReply(answer.status_code, [(k.lower(), v) for k, v in answer.headers.raw], answer.content)

    async def ask(self, name: str, method: str = "GET", path: str = "/v1/x", **more: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self._apps[name])
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, path, **more)


def test_another_process_passes_the_question_on_as_the_caller_asked_it() -> None:
    """Its own picture is empty: an operator would read that nothing is replicated at all."""

    async def main() -> None:
        peers = Peers(holder="", other="holder")
        shown = {"authorization": "Bearer tsd.3.x", "x-tierstore-access": "root", "x-tierstore-near": "redirect"}
        answer = await peers.ask("other", headers=shown)
        assert (answer.text, answer.headers["content-type"]) == ("holder", "text/plain; charset=utf-8")
        (told,) = peers.passed_on
        assert told["authorization"] == "Bearer tsd.3.x" and told["x-tierstore-access"] == "root"
        assert "x-tierstore-near" not in told
        assert (await peers.ask("other", "POST", content=b" body")).text == "holder body"
        assert (await peers.ask("holder")).text == "holder" and len(peers.passed_on) == 2

    asyncio.run(main())


def test_two_processes_that_take_each_other_for_the_holder_still_answer() -> None:
    """While the lease changes hands each may know the other one's name: the question must not go round."""

    async def main() -> None:
        peers = Peers(one="two", two="one")
        assert (await peers.ask("one")).text == "two" and (await peers.ask("two")).text == "one"

    asyncio.run(main())


@pytest.mark.parametrize("holder", ["gone", "refuses"])
def test_the_one_that_is_asked_answers_when_the_holder_does_not(holder: str) -> None:
    """A holder that was killed a second ago must not take the status page along."""

    async def main() -> None:
        peers = Peers(other=holder, refuses="")
        if holder == "gone":
            peers.failure = UnavailableError("no answer", code="unreachable")
        assert (await peers.ask("other")).text == "other"

    asyncio.run(main())


def test_what_each_process_counts_for_itself_is_asked_of_all_whichever_is_asked() -> None:
    """Writes under a sync rule that were not confirmed are an alarm: counted at one process, they must not be
    missing from the picture of another."""

    async def main() -> None:
        peers = Peers(holder="", other="holder", third="holder", refuses="holder")
        for name in ("holder", "other", "third"):
            assert (await peers.ask(name, path="/v1/counts")).text == "holder other third"
        peers.failure = UnavailableError("no answer", code="unreachable")
        assert (await peers.ask("holder", path="/v1/counts")).text == "holder"

    asyncio.run(main())


def test_counts_of_processes_add_up() -> None:
    def one(*numbers: int) -> ReplicationModel:
        waits, degraded, failed, applied, lost, parked = numbers
        return ReplicationModel(
            targets=[], comparing=[], refusal="", sync=SyncModel(waits=waits, degraded=degraded, failed=failed),
            names_applied=applied, names_lost=lost, names_parked=parked,
        )  # fmt: skip

    whole = one(1, 2, 3, 4, 5, 6)
    add_counts(whole, one(10, 20, 30, 40, 50, 60))
    assert whole == one(11, 22, 33, 44, 55, 66)
