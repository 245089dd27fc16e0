"""Tickets and receipts: what is signed cannot be changed, moved or kept too long."""

import base64

import pytest

from tierstore import ticket as t
from tierstore.errors import TicketRefused
from tierstore.names import ChunkId, DeviceId, ServerId, UploadId

KEYS = {1: b"a" * 32, 2: b"b" * 32}
READ = t.ReadTicket(ServerId(7), DeviceId(3), ChunkId(b"c" * 16), 5, 4096, 70_000, 1000, t.NO_HEAT)
WRITE = t.WriteTicket(ServerId(7), DeviceId(3), UploadId(b"u" * 12), 2, 4, 8 << 20, 1000)
RECEIPT = t.Receipt(ServerId(7), DeviceId(3), ChunkId(b"c" * 16), 5, 4096, 70_000, 123, 9)


def test_tickets_and_receipts_round_trip_with_either_key() -> None:
    """Two keys are valid while they rotate."""
    for key_id, key in KEYS.items():
        assert t.open_read(t.mint_read(READ, key_id=key_id, key=key), KEYS, server=READ.server, now_seconds=999) == READ
        text = t.mint_write(WRITE, key_id=key_id, key=key)
        assert t.open_write(text, KEYS, server=WRITE.server, now_seconds=1000) == WRITE
        receipt = t.sign_receipt(RECEIPT, key_id=key_id, key=key)
        assert t.open_receipt(receipt, KEYS) == RECEIPT
        assert t.receipt_server(receipt) == 7
        assert t.kind_of(receipt) == t.RECEIPT and t.kind_of(text) == t.WRITE


def test_every_flipped_bit_is_refused() -> None:
    """A changed range, size, chunk or expiry must not pass."""
    raw = bytearray(base64.urlsafe_b64decode(t.mint_read(READ, key_id=1, key=KEYS[1]) + b"=="))
    for at in range(len(raw) * 8):
        raw[at // 8] ^= 1 << at % 8
        text = base64.urlsafe_b64encode(bytes(raw)).rstrip(b"=")
        with pytest.raises(TicketRefused):
            t.open_read(text, KEYS, server=READ.server, now_seconds=0)
        raw[at // 8] ^= 1 << at % 8


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (t.mint_write(WRITE, key_id=1, key=KEYS[1]), "another act"),
        (t.mint_read(READ, key_id=1, key=b"z" * 32), "another key"),
        (t.mint_read(READ, key_id=9, key=KEYS[1]), "an unknown key"),
        (b"", "nothing"),
        (b"!!!!", "no base64"),
        (b"A" * 4096, "too long"),
    ],
)
def test_what_is_not_a_read_ticket_is_refused(text: bytes, why: str) -> None:
    """A write ticket must not read, a receipt must not write."""
    with pytest.raises(TicketRefused):
        t.open_read(text, KEYS, server=READ.server, now_seconds=0)
    assert why


def test_a_ticket_is_for_one_server_and_ends() -> None:
    """A stolen ticket is of no use elsewhere or later."""
    text = t.mint_read(READ, key_id=1, key=KEYS[1])
    with pytest.raises(TicketRefused, match="another server"):
        t.open_read(text, KEYS, server=ServerId(8), now_seconds=0)
    with pytest.raises(TicketRefused, match="expired"):
        t.open_read(text, KEYS, server=READ.server, now_seconds=1001)


def test_a_write_ticket_covers_only_its_chunks() -> None:
    """An upload's writer cannot fill chunk numbers that were not granted."""
    assert [i for i in range(10) if WRITE.covers(i)] == [2, 3, 4, 5]


@pytest.mark.parametrize("kind", [t.WRITE, t.RECEIPT])
def test_a_genuine_ticket_for_another_act_of_the_same_length_is_refused(kind: int) -> None:
    """The forms differ in length today; the act is checked by itself, so that a new form opens no door."""
    payload = t._READ.pack(kind, 1, 7, 3, b"c" * 16, 5, 70_000, 4096, 1000, 0)
    text = t._seal(payload, KEYS[1])
    with pytest.raises(TicketRefused, match="another kind"):
        t.open_read(text, KEYS, server=READ.server, now_seconds=0)
    with pytest.raises(TicketRefused, match="another kind"):
        t.read_fields(text, KEYS)
