"""Hot routes declared in FastAPI, so that the published OpenAPI is true and odd requests find them too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request

from tierstore.serving.asgi import hot_application
from tierstore.serving.table import Route


class HotAPIRoute(APIRoute):
    """A FastAPI route whose answer comes from a hot handler through the adapter."""

    def serve_by(self, route: Route) -> None:
        self.app = hot_application(route)


def declare(
    app: FastAPI, route: Route, path: str, *, summary: str, operation_id: str,
    responses: Mapping[int | str, dict[str, Any]] | None = None, openapi_extra: dict[str, Any] | None = None,
    tags: list[str] | None = None, include_in_schema: bool = True,
) -> None:  # fmt: skip
    """Declare a hot route in FastAPI: it appears in OpenAPI with `path`, and is served there by the adapter.

    path: FastAPI's form of the route ("/v1/chunks/{ticket}"); parameters in braces are described as strings unless
    openapi_extra describes them."""

    async def never(request: Request) -> None:
        raise AssertionError("served by the adapter")

    row = HotAPIRoute(
        path, never, methods=[route.method.decode("ascii")], summary=summary, operation_id=operation_id,
        responses=dict(responses) if responses else None, openapi_extra=openapi_extra, tags=list(tags or ()),
        include_in_schema=include_in_schema, response_model=None,
    )  # fmt: skip
    row.serve_by(route)
    app.router.routes.append(row)
