"""Block sums: combining them always equals the checksum of the whole."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore import checksum as c
from tierstore.errors import ChecksumMismatch, IntegrityError

sizes = st.one_of(st.integers(0, 300), st.integers(65_530, 65_545), st.integers(0, 400_000))


def body(size: int, seed: int) -> bytes:
    return (seed.to_bytes(8, "little") * (size // 8 + 1))[:size]


def test_the_known_value_of_crc32c() -> None:
    """RFC 3720 B.4: 32 bytes of zeros."""
    assert c.crc_of(bytes(32)) == 0x8A9136AA


@given(sizes, st.integers(0, 2**64 - 1), st.integers(1, 100_000))
def test_a_stream_has_the_sums_of_the_whole(size: int, seed: int, step: int) -> None:
    """The writer sums pieces of any size; the reader checks blocks."""
    data = body(size, seed)
    summer = c.BlockSummer()
    for at in range(0, size, step):
        summer.update(data[at : at + step])
    assert summer.sums() == c.sums_of(data)
    assert summer.crc() == c.crc_of(data) == c.combine_sums(c.sums_of(data), size)
    assert len(c.sums_of(data)) == c.SUM_BYTES * c.block_count(size)


@given(sizes, sizes, st.integers(0, 2**64 - 1))
def test_sums_of_parts_combine_to_the_sum_of_the_whole(first: int, second: int, seed: int) -> None:
    """An object's checksum is combined from its chunks' without reading them."""
    a, b = body(first, seed), body(second, seed ^ 1)
    assert c.combine(c.crc_of(a), c.crc_of(b), second) == c.crc_of(a + b)


def test_sums_of_the_wrong_number_are_refused() -> None:
    """A cut-off list of sums must not verify anything."""
    with pytest.raises(IntegrityError):
        c.combine_sums(struct.pack("<I", 1), c.BLOCK_BYTES + 1)


def test_a_wrong_block_is_found() -> None:
    """The check that stands between a rotten disk and a client."""
    with pytest.raises(IntegrityError):
        c.verify_block(b"x", c.crc_of(b"y"))


@given(st.integers(0, 2**32 - 1))
def test_the_text_form_round_trips(crc: int) -> None:
    """S3's form: base64 of 4 big-endian bytes."""
    assert c.decode_crc(c.encode_crc(crc)) == crc


@pytest.mark.parametrize("text", ["", "AAAA", "AAAAAAA=", "é", "AAAAAA=="[:-1]])
def test_other_texts_are_refused(text: str) -> None:
    """A client's bad header is a 400."""
    with pytest.raises(ChecksumMismatch):
        c.decode_crc(text)
