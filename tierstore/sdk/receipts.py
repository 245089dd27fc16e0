"""Receipts made anew: an object server restarted between storing a chunk and the commit that names it.

The commit takes receipts of a server's present life only (rule 11). The chunk is still there, so the server is asked
to find it and sign again; of one that cannot (unreachable, chunk gone, device failed) the old receipt is kept, and the
next commit judges. Owns nothing; at most `receipt_renewals_at_once` chunks are asked for at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from tierstore.errors import TierstoreError
from tierstore.ticket import receipt_server
from tierstore.wire.names import CommitChunk

if TYPE_CHECKING:
    from tierstore.sdk.put import PutParts


async def renew_receipts(parts: PutParts, chunks: Sequence[CommitChunk]) -> list[CommitChunk]:
    """The same chunks, in order, with receipts of the present life of each server that could give one."""
    step = parts.limits.receipt_renewals_at_once
    renewed: list[CommitChunk] = []
    for at in range(0, len(chunks), step):
        renewed += await asyncio.gather(*(_renew(parts, chunk) for chunk in chunks[at : at + step]))
    return renewed


async def _renew(parts: PutParts, chunk: CommitChunk) -> CommitChunk:
    async def ask(receipt: bytes) -> bytes:
        try:
            url = await parts.servers.url(receipt_server(receipt))
            return await parts.objects.renew_receipt(url, receipt, seconds=parts.limits.receipt_renew_seconds)
        except TierstoreError:
            return receipt      # the commit says what is wrong with it

    return msgspec.structs.replace(chunk, receipts=list(await asyncio.gather(*map(ask, chunk.receipts))))
