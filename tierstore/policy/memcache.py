"""The `mem` tier: an inline cache of chunk bodies in an object server's RAM (S3-FIFO, Yang et al., SOSP 2023).

Owns which entries are in memory and how many bytes they take; never above `capacity_bytes`. Three queues: newcomers
enter `small` (10 % of the bytes); those read again before they leave it go to `main`, the others leave and only their
key stays in `ghost`; a key that comes back from `ghost` enters `main` at once. `main` gives an entry another round for
every read it had (at most 3). So one pass over everything (a scan) passes through `small` and leaves `main` alone.

The values are the caller's (the body, or whatever stands for it); no I/O, no clock, no chance. One owner: not for
several threads at once.

Cost: a hit is one dict lookup and one add (0.2 us); a miss with an insert evicts amortised one entry (1-2 us).
"""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, TypeVar

Key = TypeVar("Key", bound=bytes | int | str)
Value = TypeVar("Value")

SMALL_SHARE: Final = 0.1
#: An entry above this share of the cache is not admitted: it would push out too many others.
ADMIT_SHARE: Final = 0.1
_READS_MAX: Final = 3


class _Entry(Generic[Key, Value]):
    __slots__ = ("is_live", "is_main", "key", "reads", "size", "value")

    def __init__(self, key: Key, size: int, value: Value, *, is_main: bool) -> None:
        self.key = key
        self.size = size
        self.value = value
        self.reads = 0
        self.is_main = is_main
        self.is_live = True


class MemCache(Generic[Key, Value]):
    """At most `capacity_bytes` of values, by S3-FIFO. 0 bytes: holds nothing, costs nothing."""

    def __init__(self, capacity_bytes: int, *, admit_bytes_max: int | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self.admit_bytes_max = int(capacity_bytes * ADMIT_SHARE) if admit_bytes_max is None else admit_bytes_max
        self.used_bytes = 0
        self.hits = 0
        self.misses = 0
        self._small_bytes = 0
        self._entries: dict[Key, _Entry[Key, Value]] = {}
        self._small: deque[_Entry[Key, Value]] = deque()
        self._main: deque[_Entry[Key, Value]] = deque()
        self._ghost: dict[Key, int] = {}  # key -> size, oldest first; their sizes add up to at most those of main
        self._ghost_bytes = 0
        self._dead = 0  # removed entries that still stand in a queue

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        """Is it here? Not counted as a read."""
        return key in self._entries

    def get(self, key: Key) -> Value | None:
        """The value, counted as a read; None when it is not here."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        if entry.reads < _READS_MAX:
            entry.reads += 1
        return entry.value

    def put(self, key: Key, value: Value, size: int) -> bool:
        """Keep a value that was just read from a device, if it may enter. False when it is too large or size <= 0."""
        if key in self._entries:
            self.remove(key)
        if not 0 < size <= min(self.admit_bytes_max, self.capacity_bytes):
            return False
        while self.used_bytes + size > self.capacity_bytes:
            self._evict()
        remembered = self._ghost.pop(key, None)
        entry = _Entry(key, size, value, is_main=remembered is not None)
        if remembered is not None:
            self._ghost_bytes -= remembered
            self._main.append(entry)
        else:
            self._small_bytes += size
            self._small.append(entry)
        self._entries[key] = entry
        self.used_bytes += size
        return True

    def remove(self, key: Key) -> bool:
        """Forget a key, for it was deleted, moved or found bad. True when it was here."""
        remembered = self._ghost.pop(key, None)
        if remembered is not None:
            self._ghost_bytes -= remembered
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self._account_out(entry)
        entry.is_live = False  # its place in the queue is passed over later
        self._dead += 1
        if self._dead > len(self._entries) + 64:
            self._small = deque(e for e in self._small if e.is_live)
            self._main = deque(e for e in self._main if e.is_live)
            self._dead = 0
        return True

    def resize(self, capacity_bytes: int) -> None:
        """A new bound; evicts down to it now. The admission bound keeps its share."""
        if self.capacity_bytes:
            self.admit_bytes_max = self.admit_bytes_max * capacity_bytes // self.capacity_bytes
        else:
            self.admit_bytes_max = int(capacity_bytes * ADMIT_SHARE)
        self.capacity_bytes = capacity_bytes
        while self.used_bytes > capacity_bytes:
            self._evict()

    # -- below: the queues

    def _evict(self) -> None:
        """Drop one entry. Called only when there is one; ends because every pass takes a read off an entry."""
        while True:
            if self._small and (self._small_bytes > self.capacity_bytes * SMALL_SHARE or not self._main):
                entry = self._small.popleft()
                if not entry.is_live:
                    self._dead -= 1
                elif entry.reads:
                    entry.reads = 0
                    entry.is_main = True
                    self._small_bytes -= entry.size
                    self._main.append(entry)
                else:
                    self._drop(entry)
                    self._remember(entry)
                    return
            else:
                entry = self._main.popleft()
                if not entry.is_live:
                    self._dead -= 1
                elif entry.reads:
                    entry.reads -= 1
                    self._main.append(entry)
                else:
                    self._drop(entry)
                    return

    def _drop(self, entry: _Entry[Key, Value]) -> None:
        del self._entries[entry.key]
        self._account_out(entry)

    def _account_out(self, entry: _Entry[Key, Value]) -> None:
        self.used_bytes -= entry.size
        if not entry.is_main:
            self._small_bytes -= entry.size

    def _remember(self, entry: _Entry[Key, Value]) -> None:
        self._ghost[entry.key] = entry.size
        self._ghost_bytes += entry.size
        while self._ghost_bytes > self.capacity_bytes * (1 - SMALL_SHARE):
            oldest = next(iter(self._ghost))
            self._ghost_bytes -= self._ghost.pop(oldest)
