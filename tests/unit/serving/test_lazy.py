"""What a daemon needs of FastAPI is loaded when somebody asks for it; its health is told without."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading

from fastapi import FastAPI

from tests.contract.exchange_subjects import run
from tests.kit.waits import until
from tierstore.serving import pages
from tierstore.serving.health import health_routes
from tierstore.serving.inprocess import InProcessServer
from tierstore.serving.lazy import LazyApplication
from tierstore.transport.inprocess import Network


def test_an_object_server_and_the_supervisor_start_without_what_they_seldom_need() -> None:
    """FastAPI is more than half of an object server's start, and a cluster has many of them; an import at the top of
    one module would bring it back unseen. Alembic is the same for a metadata service with nothing to migrate."""
    unwanted = {
        "objectd.__main__": ("fastapi", "pydantic", "httpx", "numpy"),
        "tierstore.gateway.run": ("httpx", "numpy", "rich"),
        "tierstore.up.supervisor": ("fastapi", "httpx", "rich"),
        "metadata.run": ("alembic", "mako", "httpx", "rich", "sqlalchemy.dialects.postgresql"),
    }
    for module, names in unwanted.items():
        code = f"import sys, {module}; print([name for name in {names!r} if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "[]", f"{module} loads {done.stdout}{done.stderr}"


def test_the_health_pages_say_the_same_hot_and_through_fastapi() -> None:
    """The supervisor asks the one, a test client or a pipelined request gets the other."""

    async def main() -> None:
        reasons: list[str] = []
        app = FastAPI()
        pages.install(app, reasons_not_ready=lambda: reasons, guard=None)
        network = Network(random.Random(1))
        network.register("http://hot:1", InProcessServer(health_routes(lambda: reasons)))
        network.register("http://app:1", InProcessServer(app=app))
        transport = network.transport("me")
        for found in ([], ["a restart is announced", 'disk "é" has failed']):
            reasons[:] = found
            for path in (b"/-/healthz", b"/-/readyz"):
                said = []
                for url in ("http://hot:1", "http://app:1"):
                    reply = await transport.call(url, b"GET", path, seconds=60)
                    said.append((reply.status, reply.header(b"content-type"), reply.body))
                assert said[0] == said[1]
                assert said[0][0] == (503 if found and path == b"/-/readyz" else 200)

    run(main())


def test_requests_of_one_moment_share_one_build() -> None:
    """Each was a thread of its own that built the application anew, and the last one to end was kept: half-used objects
    of the others stayed behind. One client that goes away must not take the build from the rest."""

    async def main() -> None:
        began, may_end = threading.Event(), threading.Event()
        answered: list[str] = []
        builds = 0

        async def application(scope: dict[str, str], receive: object, send: object) -> None:
            answered.append(scope["path"])

        def build() -> object:
            nonlocal builds
            builds += 1
            began.set()
            assert may_end.wait(300)
            if builds == 1:
                raise OSError("a module could not be read")
            return application

        lazy = LazyApplication(build)

        def requests() -> list[asyncio.Task[None]]:
            return [
                asyncio.create_task(lazy({"type": "http", "path": f"/{n}"}, None, None)) for n in range(3)
            ]  # fmt: skip

        asked = requests()
        may_end.set()
        failed = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(error) for error in failed] == [OSError] * 3
        assert (builds, lazy.is_built) == (1, False)

        began.clear()
        may_end.clear()
        asked = requests()
        await until(began.is_set)
        asked[0].cancel()
        may_end.set()
        await asyncio.gather(*asked, return_exceptions=True)
        assert (builds, lazy.is_built, answered) == (2, True, ["/1", "/2"])

    run(main())


def test_an_application_is_built_with_the_first_request_and_only_once() -> None:
    """A process that is never asked for OpenAPI never pays for it."""

    async def main() -> None:
        app = FastAPI()
        pages.install(app, reasons_not_ready=list, guard=None)
        built: list[FastAPI] = []

        def build() -> FastAPI:
            built.append(app)
            return app

        lazy = LazyApplication(build)
        server = InProcessServer(app=lazy)
        network = Network(random.Random(1))
        network.register("http://p:1", server)
        transport = network.transport("me")
        assert not lazy.is_built and not built
        for _ in range(3):
            reply = await transport.call("http://p:1", b"GET", b"/-/metrics", seconds=60)
            assert reply.status == 200 and b"python_info" in reply.body
        assert lazy.is_built and len(built) == 1

    run(main())
