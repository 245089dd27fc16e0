"""The hot routes of an object server, and their declaration in FastAPI, so that the published OpenAPI is true.

Owns the paths. Invariant: every hot route is declared; the handlers are the same on both ways.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI

from objectd.routes.reads import ChunkReads
from objectd.routes.receipts import RECEIPT_BYTES_MAX, ReceiptRenewals
from objectd.routes.sets import ChunkSets
from objectd.routes.uploads import ChunkUploads
from tierstore.serving.asgi import declare
from tierstore.serving.table import Route
from tierstore.wire import MEDIA_TYPE

CHUNKS: Final = b"/v1/chunks/"
CHUNK_SET: Final = b"/v1/chunks"
RECEIPTS: Final = b"/v1/receipts"
_TICKET: Final = {
    "name": "ticket", "in": "path", "required": True, "schema": {"type": "string", "maxLength": 128},
    "description": "minted by the metadata service for this act, server, device and chunk; expires within 5 minutes",
}  # fmt: skip
_PROBLEM: Final[dict[str, Any]] = {"application/problem+json": {"schema": {"type": "object"}}}


def _problem(description: str) -> dict[str, Any]:
    return {"description": description, "content": _PROBLEM}


def routes(reads: ChunkReads, uploads: ChunkUploads, sets: ChunkSets, receipts: ReceiptRenewals) -> list[Route]:
    """The hot route table."""
    return [
        Route(b"GET", CHUNKS, reads.handle), Route(b"PUT", CHUNKS, uploads.handle),
        Route(b"PUT", CHUNK_SET, sets.handle), Route(b"POST", RECEIPTS, receipts.handle),
    ]  # fmt: skip


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
