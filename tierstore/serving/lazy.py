"""An ASGI application that is built with the first request that needs it.

FastAPI and pydantic are a third of what an object server's start costs, in time and in memory, and its hot routes and
health pages never ask for them: OpenAPI, metrics and paths that do not exist do. Built in a thread, because the
loading takes some 300 ms in which the loop serves chunks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class LazyApplication:
    """`build` is called in a thread with the first request; requests that come meanwhile wait for the same build, one
    that failed is tried again with the next request. Lifespan events are answered here: nothing is to be done before
    the first request."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build
        self._built: Any = None
        self._building: asyncio.Task[Any] | None = None

    @property
    def is_built(self) -> bool:
        return self._built is not None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        application = self._built if self._built is not None else await self._shared_build()
        await application(scope, receive, send)

    async def _shared_build(self) -> Any:
        """The application, built once for all who wait for it. A request that is given up leaves the build to the
        others: a thread cannot be stopped, and its work is wanted."""
        if self._building is None:
            self._building = asyncio.create_task(asyncio.to_thread(self._build), name="lazy-application")
            self._building.add_done_callback(self._end)
        return await asyncio.shield(self._building)

    def _end(self, building: asyncio.Task[Any]) -> None:
        self._building = None
        if not building.cancelled() and building.exception() is None:
            self._built = building.result()
