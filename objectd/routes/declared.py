"""The FastAPI application of an object server: service pages, and the hot routes declared, so that OpenAPI is true.

Loaded with the first request that needs FastAPI (serving.lazy). Invariant: every hot route is declared; the handlers
are the same on both ways.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI, Request

from objectd.routes.receipts import RECEIPT_BYTES_MAX
from tierstore.config.sections import Telemetry
from tierstore.errors import NotAuthenticated
from tierstore.serving import pages, problem_handlers
from tierstore.serving.declared import declare
from tierstore.serving.table import Route
from tierstore.telemetry.metrics import REGISTRY
from tierstore.wire import MEDIA_TYPE

_TICKET: Final = {
    "name": "ticket", "in": "path", "required": True, "schema": {"type": "string", "maxLength": 128},
    "description": "minted by the metadata service for this act, server, device and chunk; expires within 5 minutes",
}  # fmt: skip
_PROBLEM: Final[dict[str, Any]] = {"application/problem+json": {"schema": {"type": "object"}}}


def application(
    table: list[Route], *, reasons_not_ready: Callable[[], list[str]], telemetry: Telemetry,
    own_secret: Callable[[], str],
) -> FastAPI:  # fmt: skip
    """The application. own_secret(): the server's secret as of now, "" before it has joined."""

    async def who_holds_it(request: Request) -> None:
        """An object server knows no users: beside the metrics token only who holds its own secret gets in."""
        shown, secret = request.headers.get("authorization", "").removeprefix("Bearer "), own_secret()
        if not secret or not hmac.compare_digest(shown.encode("latin-1"), secret.encode()):
            raise NotAuthenticated("metrics need telemetry.metrics_token or this server's secret as bearer token")

    app = FastAPI(title="tierstore object server", docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json")
    problem_handlers.install(app)
    guard = pages.metrics_guard(telemetry, who_holds_it)
    pages.install(app, reasons_not_ready=reasons_not_ready, guard=guard, registry=REGISTRY)
    declare_routes(app, table)
    return app


def declare_routes(app: FastAPI, table: list[Route]) -> None:
    """Declare them in FastAPI."""
    get, put, put_set, renew = table
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    declare(
        app, get, "/v1/chunks/{ticket}", summary="Read blocks of a chunk", operation_id="read_chunk", tags=["chunks"],
        openapi_extra={
            "parameters": [
                _TICKET,
                {"name": "blocks", "in": "query", "required": False, "schema": {"type": "string"},
                 "description": "A-B: blocks of 64 KiB, both included; all when left out"},
            ]
        },
        responses={
            200: {
                "description": "All block sums of the chunk (CRC32C, u32 little-endian), then the data of the blocks",
                "content": binary,
                "headers": {
                    "x-tierstore-sums": {"schema": {"type": "integer"}, "description": "bytes of sums in front"},
                    "x-tierstore-tier": {"schema": {"type": "string"}, "description": "tier of the device"},
                },
            },
            403: _problem("The ticket is wrong or has expired"),
            404: _problem("The chunk is not on this device"),
            416: _problem("No such blocks"),
            500: _problem("The copy is damaged"),
            503: _problem("Too many reads wait for the disk, or it does not answer"),
        },
    )  # fmt: skip
    declare(
        app, put, "/v1/chunks/{ticket}", summary="Store a chunk durably", operation_id="put_chunk", tags=["chunks"],
        openapi_extra={
            "parameters": [
                _TICKET,
                {"name": "index", "in": "query", "required": True, "schema": {"type": "integer", "minimum": 0},
                 "description": "number of the chunk in its upload"},
                {"name": "name", "in": "query", "required": False, "schema": {"type": "string"},
                 "description": "bucket/key, a hint for a rebuild of the catalog"},
            ],
            "requestBody": {
                "required": True, "description": "the data, then one CRC32C per block of 64 KiB", "content": binary,
            },
        },
        responses={
            200: {"description": "The receipt: the chunk is durable", "content": {"text/plain": {}}},
            400: _problem("Length, index or sums are wrong; nothing was kept"),
            403: _problem("The ticket is wrong or has expired"),
            404: _problem("No such device here"),
            409: _problem("The chunk is here with other bytes"),
            413: _problem("Larger than the ticket allows"),
            503: _problem("Too many uploads, or the device failed"),
            507: _problem("The device is full"),
        },
    )  # fmt: skip
    message = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
    declare(
        app, put_set, "/v1/chunks", summary="Store several small chunks durably", operation_id="put_chunks",
        tags=["chunks"],
        openapi_extra={"requestBody": {"required": True, "description": "wire ChunkSet", "content": message}},
        responses={
            200: {"description": "wire StoredSet: a receipt or a problem for each chunk, in order", "content": message},
            400: _problem("The message cannot be read; nothing was kept"),
            413: _problem("The message is too large"),
            503: _problem("Too many uploads"),
        },
    )  # fmt: skip
    text = {"text/plain": {"schema": {"type": "string", "maxLength": RECEIPT_BYTES_MAX}}}
    declare(
        app, renew, "/v1/receipts", summary="Sign a receipt of an earlier life of this server again",
        operation_id="renew_receipt", tags=["chunks"],
        openapi_extra={"requestBody": {"required": True, "description": "the old receipt", "content": text}},
        responses={
            200: {"description": "The receipt of the server's present life: the chunk is durable", "content": text},
            403: _problem("The receipt is not of this server"),
            404: _problem("The chunk is not here any more"),
            409: _problem("The chunk is here with other bytes"),
            413: _problem("No receipt is that long"),
            503: _problem("The device failed or does not answer"),
        },
    )  # fmt: skip


def _problem(description: str) -> dict[str, Any]:
    return {"description": description, "content": _PROBLEM}
