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
    """`build` is called in a thread with the first request, and must give the same application every time (a cached
    property does). Lifespan events are answered here: nothing is to be done before the first request."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build
        self._built: Any = None

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
        if self._built is None:
            self._built = await asyncio.to_thread(self._build)
        await self._built(scope, receive, send)
