"""What is kept of the cache copies on one device: bounded by what is there, and the lowest of them is known."""

from __future__ import annotations

import random

from tierstore.policy.shelf import STALE_MAX, Device, Resident, Shelf


def chunk(n: int) -> bytes:
    return n.to_bytes(16, "big")


def shelf() -> Shelf:
    return Shelf(Device(1, 1, "ssd", 1 << 40, 1e-4, 2e9), fill=1.0)


def resident(size: int = 1) -> Resident:
    return Resident(size, (9,), 0.0)


def test_copies_that_came_and_went_leave_nothing_though_the_device_never_fills() -> None:
    """R19: nobody asks for the lowest while there is room, and each promotion left an entry for good (170 bytes)."""
    one = shelf()
    for n in range(10_000):
        one.put(chunk(n), resident(), float(n))
        if n >= 10:
            one.drop(chunk(n - 10))
    assert len(one.residents) == 10 and len(one.heap) <= 2 * 10 + STALE_MAX + 2
    assert one.lowest(lambda key, _: float(int.from_bytes(key, "big"))) == (9990.0, chunk(9990))


def test_a_copy_that_is_put_again_may_rank_lower_than_it_did() -> None:
    """Many puts of the same few copies, with ranks that rise, and fall where a copy is put anew."""
    one, ranks, rng = shelf(), dict[bytes, float](), random.Random(5)
    for _ in range(5_000):
        key = chunk(rng.randrange(40))
        ranks[key] = rng.uniform(-20, 0)
        one.put(key, resident(), ranks[key])
        risen = chunk(rng.randrange(40))
        if risen in ranks:
            ranks[risen] += rng.random()
        if rng.random() < 0.05:
            assert one.lowest(lambda key, _: ranks[key]) == min((rank, key) for key, rank in ranks.items())
    assert len(one.heap) <= 2 * 40 + STALE_MAX + 2
