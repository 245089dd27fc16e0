"""The service pages and the problem documents of FastAPI routes."""

from __future__ import annotations

import json
import random

from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry, Counter

from tests.contract.exchange_subjects import run
from tierstore.errors import NotAuthenticated, NotModified, UnavailableError
from tierstore.serving import pages, problem_handlers
from tierstore.serving.inprocess import InProcessServer
from tierstore.transport.inprocess import Network


def build(reasons: list[str], *, guarded: bool) -> FastAPI:
    app = FastAPI()
    problem_handlers.install(app)
    registry = CollectorRegistry()
    Counter("tierstore_tests", "Tests", registry=registry).inc()

    async def guard(request: Request) -> None:
        if request.headers.get("authorization") != "Bearer good":
            raise NotAuthenticated("metrics need a credential")

    pages.install(app, reasons_not_ready=lambda: reasons, guard=guard if guarded else None, registry=registry)

    @app.get("/bug")
    async def bug() -> None:
        raise ZeroDivisionError("a secret of the inside")

    @app.get("/busy")
    async def busy() -> None:
        raise UnavailableError("not now", code="draining", server=3, detail_of="x")

    @app.get("/same")
    async def same() -> None:
        raise NotModified("same")

    @app.get("/number")
    async def number(n: int) -> int:
        return n

    return app


def test_pages_and_problems() -> None:
    """Load balancers, operators and clients read these; each by its status and code."""

    async def main() -> None:
        reasons: list[str] = []
        server = InProcessServer(app=build(reasons, guarded=True))
        network = Network(random.Random(1))
        network.register("http://p:1", server)
        transport = network.transport("me")

        async def get(path: bytes, *headers: tuple[bytes, bytes]) -> tuple[int, dict[str, object], object]:
            reply = await transport.call("http://p:1", b"GET", path, headers=headers, seconds=60)
            body: dict[str, object] = json.loads(reply.body) if reply.body[:1] == b"{" else {"text": reply.body}
            return reply.status, body, reply

        assert (await get(b"/-/healthz"))[:2] == (200, {"status": "ok"})
        assert (await get(b"/-/readyz"))[:2] == (200, {"status": "ready"})
        reasons.append("draining")
        assert (await get(b"/-/readyz"))[:2] == (503, {"status": "not-ready", "reasons": ["draining"]})
        status, body, _ = await get(b"/-/metrics")
        assert (status, body["code"]) == (401, "not-authenticated")
        status, body, _ = await get(b"/-/metrics", (b"authorization", b"Bearer good"))
        assert status == 200 and b"tierstore_tests_total 1.0" in body["text"]  # type: ignore[operator]
        status, body, reply = await get(b"/busy")
        assert (status, body["code"], body["server"]) == (503, "draining", 3)
        assert reply.header(b"retry-after") == b"1"  # type: ignore[attr-defined]
        assert (await get(b"/same"))[0] == 304
        status, body, _ = await get(b"/number?n=x")
        assert status == 422 and body["code"] == "bad-request" and "query.n" in str(body["detail"])
        status, body, reply = await get(b"/bug")
        assert (status, body["code"]) == (500, "internal") and "secret" not in str(body)
        await server.close()

    run(main())
