"""Encrypted bodies: any size, any cut, any range; anything that was changed does not open."""

from __future__ import annotations

import asyncio
import base64
import os
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierstore.errors import ConfigError, IntegrityError
from tierstore.gateway.s3.errors import S3Error
from tierstore.gateway.s3.request import Call
from tierstore.gateway.s3.sse_format import (
    HEADER_BYTES,
    SEGMENT_BYTES,
    DecryptWalk,
    Encryptor,
    header_of,
    part_key,
    stream_bytes,
)
from tierstore.gateway.s3.sse_keys import MasterKeys, Vault, Wish

KEY = bytes(range(32))
MASTERS = "one:" + base64.b64encode(b"1" * 32).decode() + " two:" + base64.b64encode(b"2" * 32).decode()
SIZES = st.one_of(st.integers(0, 300), st.integers(SEGMENT_BYTES - 2, SEGMENT_BYTES + 2), st.integers(0, 200_000))


class Sink:
    def __init__(self) -> None:
        self.stored = bytearray()

    def push(self, piece: memoryview) -> bool:
        self.stored += piece
        return True

    async def has_room(self) -> None:
        return


class Stored:
    """A walk over bytes, in uneven pieces."""

    def __init__(self, body: bytes, step: int) -> None:
        self.whole = None
        self.tier = self.site = ""
        self._pieces = [body[at : at + step] for at in range(0, len(body), step)]

    async def start(self) -> None:
        return

    async def next_piece(self) -> memoryview:
        return memoryview(self._pieces.pop(0) if self._pieces else b"")

    async def close(self) -> None:
        return


def sealed(body: bytes, *, header: bytes = b"", cut: int = 1 << 30) -> bytes:
    sink = Sink()
    key = part_key(KEY, header) if header else KEY
    target = Encryptor(sink, key, len(body), header=header)
    for at in range(0, max(len(body), 1), cut):
        target.push(memoryview(body)[at : at + cut])
    assert len(sink.stored) == stream_bytes(len(body), has_header=bool(header))
    return bytes(sink.stored)


def opened(
    stored: bytes, runs: list[tuple[int, int]], first: int, length: int, *, has_header: bool = False, step: int = 1000
) -> bytes:  # fmt: skip
    async def run() -> bytes:
        walk = DecryptWalk(
            lambda at, count: Stored(stored[at : at + count], step), KEY, runs, has_header=has_header, first=first,
            length=length,
        )  # fmt: skip
        await walk.start()
        out = b""
        while piece := await walk.next_piece():
            out += piece
        await walk.close()
        return out

    return asyncio.run(run())


@settings(max_examples=60, deadline=None)
@given(size=SIZES, cut=st.integers(100, 70_000), step=st.integers(100, 200_000), data=st.data())
def test_any_range_of_any_body_comes_back(size: int, cut: int, step: int, data: st.DataObject) -> None:
    """Pushed in any pieces, read in any pieces."""
    body = os.urandom(size)
    first = data.draw(st.integers(0, max(size - 1, 0)))
    length = data.draw(st.integers(0, size - first))
    assert opened(sealed(body, cut=cut), [(size, 1)], first, length, step=step) == body[first : first + length]


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(SIZES, min_size=1, max_size=4), data=st.data())
def test_any_range_across_parts(sizes: list[int], data: st.DataObject) -> None:
    """Each part has a salt of its own, so equal parts do not look equal."""
    bodies = [os.urandom(size) for size in sizes]
    whole = b"".join(bodies)
    stored = b"".join(sealed(body, header=header_of(os.urandom(16))) for body in bodies)
    first = data.draw(st.integers(0, max(len(whole) - 1, 0)))
    length = data.draw(st.integers(0, len(whole) - first))
    runs = [(size, 1) for size in sizes]
    assert opened(stored, runs, first, length, has_header=True) == whole[first : first + length]


def test_what_was_changed_does_not_open() -> None:
    """Flipped, swapped, cut or taken from another object: an error, never bytes."""
    body = os.urandom(3 * SEGMENT_BYTES)
    stored = sealed(body)
    one = SEGMENT_BYTES + 16
    wrong = [
        stored[:100] + bytes([stored[100] ^ 1]) + stored[101:],
        stored[one : 2 * one] + stored[:one] + stored[2 * one :],
    ]
    for changed in wrong:
        with pytest.raises(IntegrityError):
            opened(changed, [(len(body), 1)], 0, len(body))
    with pytest.raises(IntegrityError):
        opened(stored[: 2 * one], [(2 * SEGMENT_BYTES, 1)], 0, 2 * SEGMENT_BYTES)
    with pytest.raises(IntegrityError):
        opened(b"X" * HEADER_BYTES + stored, [(len(body), 1)], 0, 10, has_header=True)


def call(**headers: str) -> Call:
    held = {name.replace("_", "-"): value for name, value in headers.items()}
    names = frozenset(name.encode() for name in held)
    shown = SimpleNamespace(header=lambda name: held.get(name.decode()), method="PUT", header_names=names)
    return cast("Call", shown)


def test_master_keys_and_their_names() -> None:
    """The first is the default; a key that is not there, or a line that is none, is said so."""
    vault = Vault(MasterKeys(MASTERS), customer_keys_over_http=False)
    held, data_key = vault.seal(Wish("aws:kms"))
    assert (held.key_id, vault.open(held, Wish())) == ("one", data_key)
    held, data_key = vault.seal(Wish("aws:kms", "arn:aws:kms:x:1:key/two"))
    assert (held.key_id, vault.open(held, Wish())) == ("two", data_key)
    with pytest.raises(S3Error, match=r"KMS\.NotFound"):
        vault.seal(Wish("aws:kms", "three"))
    with pytest.raises(S3Error, match="NotImplemented"):
        Vault(MasterKeys(""), customer_keys_over_http=False).seal(Wish("AES256"))
    for text in ("no-colon", "a:!!!", "a:" + base64.b64encode(b"short").decode()):
        with pytest.raises(ConfigError):
            MasterKeys(text)


def test_customers_keys_need_a_secure_connection_unless_told_otherwise() -> None:
    """A key in a header over plain HTTP is everybody's."""
    headers: dict[str, Any] = {"x_amz_server_side_encryption_customer_algorithm": "AES256"}
    with pytest.raises(S3Error, match="InvalidRequest"):
        Vault(MasterKeys(""), customer_keys_over_http=False).customer(call(**headers))
    with pytest.raises(S3Error, match="InvalidArgument"):
        Vault(MasterKeys(""), customer_keys_over_http=True).customer(call(**headers))
