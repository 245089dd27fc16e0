"""Sums combine for every length, and a length seen for the first time costs no more than a known one."""

from __future__ import annotations

import random
import time

import pytest

from tierstore.checksum import BLOCK_BYTES, combine, combine_sums, crc_of, shift, sums_of

LENGTHS = [1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES, (1 << 20) + 7, 5_000_011]


@pytest.mark.parametrize("length", LENGTHS)
def test_sums_of_parts_give_the_sum_of_the_whole(length: int) -> None:
    source = random.Random(length)
    first, second = source.randbytes(source.randrange(1, 200_000)), source.randbytes(length)
    assert combine(crc_of(first), crc_of(second), length) == crc_of(first + second)
    assert combine_sums(sums_of(second), length) == crc_of(second)


def test_shift_is_what_zeros_do() -> None:
    for length in (0, 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 5, 17 * BLOCK_BYTES):
        zeros = bytes(length)
        assert shift(0x12345678, length) == crc_of(zeros, 0x12345678) ^ crc_of(zeros)


def test_new_lengths_are_cheap() -> None:
    combine(1, 2, 1 << 30)                  # what is built once
    began = time.process_time()
    for length in range(10_000_000, 10_002_000):
        combine(0xDEADBEEF, 7, length)
    assert time.process_time() - began < 2.0, "a table per length would cost 10 ms each"
