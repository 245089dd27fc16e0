"""The hot routes of an object server. Owns the paths; objectd.routes.declared describes them in OpenAPI."""

from __future__ import annotations

from typing import Final

from objectd.routes.reads import ChunkReads
from objectd.routes.receipts import ReceiptRenewals
from objectd.routes.sets import ChunkSets
from objectd.routes.uploads import ChunkUploads
from tierstore.serving.table import Route

CHUNKS: Final = b"/v1/chunks/"
CHUNK_SET: Final = b"/v1/chunks"
RECEIPTS: Final = b"/v1/receipts"


def routes(reads: ChunkReads, uploads: ChunkUploads, sets: ChunkSets, receipts: ReceiptRenewals) -> list[Route]:
    """The hot route table."""
    return [
        Route(b"GET", CHUNKS, reads.handle), Route(b"PUT", CHUNKS, uploads.handle),
        Route(b"PUT", CHUNK_SET, sets.handle), Route(b"POST", RECEIPTS, receipts.handle),
    ]  # fmt: skip
