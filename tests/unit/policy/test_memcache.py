"""The RAM cache: its bound, its admission, and that a scan does not empty it."""

from __future__ import annotations

from tierstore.policy.memcache import MemCache


def cache(size: int = 1000) -> MemCache[int, str]:
    return MemCache(size, admit_bytes_max=size)


def test_what_was_put_is_there_until_it_is_pushed_out() -> None:
    """The plainest promise of a cache."""
    mem = cache()
    assert mem.get(1) is None
    assert mem.put(1, "one", 100)
    assert mem.get(1) == "one"
    assert (mem.hits, mem.misses, mem.used_bytes) == (1, 1, 100)


def test_a_scan_leaves_the_hot_entries_alone() -> None:
    """S3-FIFO's reason to exist: one backup run must not push out what everybody reads."""
    mem = cache()
    for _ in range(3):
        for key in range(5):
            if mem.get(key) is None:
                mem.put(key, "hot", 100)
    for key in range(100, 1100):
        if mem.get(key) is None:
            mem.put(key, "scan", 100)
    assert all(key in mem for key in range(5))


def test_a_key_that_comes_back_soon_enters_main() -> None:
    """The ghost queue: without it the second read of a popular newcomer counts for nothing."""
    mem = cache()
    for key in range(10):
        mem.put(key, "x", 100)
    mem.put(10, "x", 100)  # pushes 0 out, into ghost
    assert 0 not in mem
    mem.put(0, "x", 100)
    for key in range(20, 60):
        mem.put(key, "x", 100)
    assert 0 in mem


def test_too_large_or_empty_values_do_not_enter() -> None:
    """One body of the cache's size would push out all the others."""
    mem: MemCache[int, str] = MemCache(1000)
    assert not mem.put(1, "large", 101)
    assert mem.put(2, "fits", 100)
    assert not mem.put(3, "nothing", 0)
    assert not MemCache[int, str](0).put(1, "x", 1)


def test_a_replaced_value_is_counted_once() -> None:
    """Bytes counted twice would shrink the cache until it holds nothing."""
    mem = cache()
    mem.put(1, "old", 300)
    mem.put(1, "new", 200)
    assert (mem.get(1), mem.used_bytes, len(mem)) == ("new", 200, 1)


def test_removed_keys_are_gone_and_their_bytes_free() -> None:
    """A chunk found bad or deleted must never be served from memory again."""
    mem = cache()
    for round_ in range(200):
        for key in range(10):
            mem.put(key, "x", 100)
        for key in range(10):
            assert mem.remove(key)
            assert mem.get(key) is None
        assert mem.used_bytes == 0, round_
    assert not mem.remove(1)
    assert len(mem._small) + len(mem._main) <= 200  # places of removed entries do not pile up


def test_a_smaller_bound_holds_at_once() -> None:
    """An operator who takes memory back expects it now."""
    mem = cache()
    for key in range(10):
        mem.put(key, "x", 100)
    mem.resize(350)
    assert mem.used_bytes <= 350
    mem.resize(0)
    assert (len(mem), mem.used_bytes) == (0, 0)
    mem.resize(1000)
    assert mem.put(1, "x", 100)
