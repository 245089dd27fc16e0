"""POST /v1/receipts: a receipt that this server signed in an earlier life -> one of its present life.

For a long upload whose object server restarted between store and commit: the commit refuses receipts of a past
incarnation (what came back may be another disk), and the bytes are no longer in the writer's memory. The old receipt
is the right to ask: it was signed with this server's key for exactly this chunk, and all that comes of it is the same
statement, made again after the chunk was found on the device it names, whole by its sums.

Cost: one index look-up; one read of the footer or the record when it is not open.
"""

from __future__ import annotations

import asyncio
from typing import Final

from objectd.slots import Slots
from objectd.standing import Standing
from tierstore.checksum import combine_sums
from tierstore.errors import ConflictError, TicketRefused, UnavailableError
from tierstore.serving.exchange import Exchange
from tierstore.ticket import Receipt, open_receipt

RECEIPT_BYTES_MAX: Final = 256
_LINES: Final = b"content-type: text/plain\r\n"


class ReceiptRenewals:
    """The handler. Event loop only."""

    def __init__(self, *, standing: Standing, slots: Slots, device_timeout: float) -> None:
        self._standing = standing
        self._slots = slots
        self._device_timeout = device_timeout
        self.renewed_total = 0

    def handle(self, exchange: Exchange) -> None:
        exchange.collect(RECEIPT_BYTES_MAX, lambda body: exchange.spawn(self._renew(exchange, bytes(body))))

    async def _renew(self, exchange: Exchange, text: bytes) -> None:
        standing = self._standing
        old = open_receipt(text, standing.keys)
        if old.server != standing.server:
            raise TicketRefused(f"the receipt is of server {old.server}")
        await self._check_stored(old)
        receipt = standing.sign(
            device=old.device, chunk=old.chunk, segment=old.segment, offset=old.offset, chunk_bytes=old.chunk_bytes,
            crc32c=old.crc32c,
        )  # fmt: skip
        self.renewed_total += 1
        exchange.reply(200, receipt, _LINES)

    async def _check_stored(self, old: Receipt) -> None:
        """Raises NotFound when the chunk is not on that device of this server any more, ConflictError when what is
        there is not what the receipt says."""
        slot = self._slots.slot(old.device)
        if slot.grant == "removed" or slot.device.state == "failed":
            raise UnavailableError(f"device {slot.id} cannot vouch for what it holds", code="device-failed")
        try:
            async with asyncio.timeout(self._device_timeout):
                stored = await slot.device.find(old.chunk)
        except TimeoutError:
            raise UnavailableError(f"device {slot.id} did not answer in time", code="device-slow") from None
        try:
            is_same = (stored.chunk_bytes, combine_sums(stored.sums, stored.chunk_bytes)) == (
                old.chunk_bytes, old.crc32c,
            )  # fmt: skip
        finally:
            stored.close()
        if not is_same:
            raise ConflictError(f"chunk {old.chunk.hex()} is here with other bytes", code="chunk-exists")
