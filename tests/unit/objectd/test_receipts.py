"""Receipts of an earlier life, signed again: only for what is really there, only by the server that signed them."""

from __future__ import annotations

import random

import pytest

from objectd.agent_state import AgentState
from tests.unit.objectd.world import SECONDS, World, play
from tierstore.checksum import crc_of, sums_of
from tierstore.errors import ConflictError, NotFound, TicketRefused
from tierstore.names import chunk_id
from tierstore.ticket import Receipt, sign_receipt


@pytest.mark.parametrize("size", [5000, 300_000])
def test_a_receipt_of_a_past_life_is_signed_again_by_the_present_one(size: int) -> None:
    """A long upload must not fail because one of its servers restarted before the commit."""

    async def test(world: World) -> None:
        device = world.device(1)
        first = await world.start("one", device)
        data, upload = random.Random(size).randbytes(size), world.upload()
        ticket = world.write_ticket(first, 1, upload)
        old = await world.client.put_chunk(
            world.url(first), ticket, index=0, data=data, sums=sums_of(data), seconds=SECONDS
        )
        state = AgentState(name="one", instance=b"one".ljust(16, b"-"), incarnation=2)
        second = await world.start("one", device, state=state)
        renewed = await world.client.renew_receipt(world.url(second), old, seconds=SECONDS)
        before, after = world.receipt(first, old), world.receipt(second, renewed)
        assert (before.incarnation, after.incarnation) == (1, 2)
        assert (after.chunk, after.crc32c, after.chunk_bytes) == (chunk_id(upload, 0), crc_of(data), size)
        assert await world.client.renew_receipt(world.url(second), renewed, seconds=SECONDS) == renewed

    play(test)


def test_nothing_is_signed_that_is_not_there_or_was_not_signed_here() -> None:
    """A receipt is what the commit believes: a wrong one would acknowledge a copy that does not exist."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        url, data = world.url(server), b"x" * 1000
        chunk = await world.put(server, 1, data)

        def receipt(**changed: object) -> bytes:
            fields = {
                "server": server.standing.server, "device": 1, "chunk": chunk, "segment": 1, "offset": 0,
                "chunk_bytes": 1000, "crc32c": crc_of(data), "incarnation": 1,
            } | changed  # fmt: skip
            return sign_receipt(Receipt(**fields), key_id=1, key=world.key_of(server))  # type: ignore[arg-type]

        gone = chunk_id(world.upload(), 0)
        for text, error in (
            (receipt(chunk=gone), NotFound), (receipt(device=7), NotFound), (receipt(crc32c=1), ConflictError),
            (receipt(chunk_bytes=999), ConflictError), (receipt(server=9), TicketRefused),
            (receipt()[:-4] + b"AAAA", TicketRefused), (b"?", TicketRefused), (b"", TicketRefused),
        ):  # fmt: skip
            with pytest.raises(error):
                await world.client.renew_receipt(url, text, seconds=SECONDS)
        await server.slots.slot(1).device.trash(chunk)
        with pytest.raises(NotFound):
            await world.client.renew_receipt(url, receipt(), seconds=SECONDS)
        assert server.receipts.renewed_total == 0

    play(test)
