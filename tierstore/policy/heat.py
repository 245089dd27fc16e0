"""Heat: how often each chunk is read, decayed, in one float per chunk.

Owns the score of every chunk it knows: forward decay (Cormode et al., 2009) in the log2 domain. With landmark L and
half-life H, c reads at time t add c * 2^((t - L)/H) to a sum of which the base-2 logarithm is kept:
`s = log2(2^s + c * 2^((t - L)/H))`. So a chunk that nobody reads never needs rescoring, a score only rises, and the
order of two scores does not depend on now. Those three facts carry the promoter (decide.py).

Exact for residents (kept) and for the hottest `exact_max` others; below that a count-min sketch of 4 rows (2 MiB),
which admits a chunk to the exact table when its estimate passes the lowest one there. Pure: the caller brings time
and keeps the snapshot's file.

Cost: merging n entries is one pass of dict lookups and a handful of numpy passes, about 0.3 us an entry known and
1 us an entry new; about 120 B of memory per chunk (id 49 B, dict slot, 8 B score, 16 B id for snapshots, flags).
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tierstore.errors import IntegrityError, RequestError
from tierstore.policy.sketch import COLD, SKETCH_COLUMNS, SKETCH_ROWS, Floats, Sketch

ENTRY: Final = np.dtype([("id", "V16"), ("count", "<f2")])
ENTRY_BYTES: Final = 18
EXACT_MAX: Final = 1_000_000
#: The landmark is moved when scores have grown this far, in half-lives: keeps the sketch's float32 finer than 2^-11.
LANDMARK_AGE_MAX: Final = 4096

_KEPT: Final = 1      # never evicted from the exact table: it has a copy on a fast tier
_SETTLED: Final = 2   # on the fastest tier it may reach: no candidate for promotion
_TOUCHED: Final = 4   # read since the last take_touched

_MAGIC: Final = b"TSHEAT1\0"
_HEADER: Final = struct.Struct("<8sddQII")  # magic, half-life, landmark, chunks, sketch cells, crc32 of what follows

Slots = npt.NDArray[np.int64]


class Touched(NamedTuple):
    """What was read since the last tick, hottest first: chunks that might move, and the hottest that are settled."""

    movable: list[tuple[bytes, float]]
    settled: list[tuple[bytes, float]]


class HeatTable:
    """Scores of chunks (16-byte ids). Deterministic: same calls, same scores and same order of answers.

    Times are seconds of any clock that does not run backwards by more than an interval (catalog time in production).
    """

    def __init__(self, *, half_life_seconds: float = 3600.0, landmark: float = 0.0, exact_max: int = EXACT_MAX) -> None:
        if half_life_seconds <= 0:
            raise RequestError(f"half-life must be above 0 s, not {half_life_seconds}", code="bad-half-life")
        self.half_life_seconds = half_life_seconds
        self.landmark = landmark
        #: Rises when all scores were shifted: whoever remembers a score must ask again.
        self.epoch = 0
        self._exact_max = exact_max
        self._slots: dict[bytes, int] = {}
        self._used = 0  # slots 0.._used-1 are or were in use
        self._free: list[int] = []
        self._scores: Floats = np.full(1024, COLD)
        self._ids: npt.NDArray[np.void] = np.zeros(1024, dtype="V16")
        self._flags: npt.NDArray[np.uint8] = np.zeros(1024, dtype=np.uint8)
        self._kept = 0
        self._touched: list[Slots] = []  # slots read since the last take_touched; may repeat, may be free again
        self._touched_count = 0
        self._sketch: Sketch | None = None  # made when the exact table is full

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, chunk: bytes) -> bool:
        return chunk in self._slots

    # -- counting

    def merge(self, entries: bytes | memoryview, at: float) -> int:
        """Add a heartbeat's delta (18-byte entries: chunk id, float16 little-endian reads) counted until `at` (s).

        Returns the number of entries. Counts that are not finite and above 0 are ignored. Duplicate deltas are the
        caller's to drop, by their sequence number. Raises RequestError when the length is no multiple of 18.
        """
        if len(entries) % ENTRY_BYTES:
            raise RequestError(
                f"a heat delta has 18 bytes an entry, {len(entries)} bytes is no multiple", code="bad-heat-delta"
            )
        table = np.frombuffer(entries, dtype=ENTRY)
        counts = table["count"].astype(np.float64)
        is_valid = np.isfinite(counts) & (counts > 0)
        if not is_valid.all():
            table, counts = table[is_valid], counts[is_valid]
        self.add(table["id"].tolist(), counts, at)
        return len(table)

    def add(self, chunks: list[bytes], counts: Floats, at: float) -> None:
        """Count `counts[i]` (above 0) whole reads of `chunks[i]` at `at`. A chunk may stand in it more than once."""
        if not chunks:
            return
        if (at - self.landmark) / self.half_life_seconds > LANDMARK_AGE_MAX:
            self.renormalise(at)
        slots = np.fromiter(map(self._slots.get, chunks, _minus_ones()), dtype=np.int64, count=len(chunks))
        added = np.log2(counts) + (at - self.landmark) / self.half_life_seconds
        is_new = slots < 0
        if is_new.any():
            self._add_new([chunks[i] for i in np.flatnonzero(is_new)], added[is_new])
            slots, added = slots[~is_new], added[~is_new]
        if len(slots):
            self._raise_scores(slots, added)

    def inherit(self, chunk: bytes, parent: bytes) -> None:
        """A new chunk of an overwrite, copy or compaction starts with the heat of the range that it replaces."""
        score = self.score(parent)
        if score > COLD:
            self._put(chunk, max(score, self.score(chunk)))

    def expect(self, chunks: list[bytes], reads: float, at: float) -> None:
        """New chunks of which each is expected to be read so often soon: they begin with that heat, untouched."""
        if reads <= 0:
            return
        score = math.log2(reads) + (at - self.landmark) / self.half_life_seconds
        for chunk in chunks:
            if len(self._slots) - self._kept >= self._exact_max:
                return  # newcomers without a read must not push out what was read
            self._put(chunk, max(score, self.score(chunk)))

    def forget(self, chunk: bytes) -> None:
        """The chunk is gone. Unknown chunks are ignored."""
        slot = self._slots.pop(chunk, None)
        if slot is not None:
            self._kept -= int(self._flags[slot]) & _KEPT
            self._scores[slot] = COLD
            self._flags[slot] = 0
            self._free.append(slot)

    # -- residents

    def keep(self, chunk: bytes, *, is_settled: bool = True) -> None:
        """The chunk has a copy on a fast tier: its score stays exact. is_settled: it can go no faster."""
        slot = self._slots.get(chunk)
        if slot is None:
            slot = self._put(chunk, self._estimate_one(chunk))
        self._kept += 1 - (int(self._flags[slot]) & _KEPT)
        kept = _KEPT | (_SETTLED if is_settled else 0)
        self._flags[slot] = (int(self._flags[slot]) & _TOUCHED) | kept

    def release(self, chunk: bytes) -> None:
        """The chunk has no copy on a fast tier any more. It may compete again from its next read on."""
        slot = self._slots.get(chunk)
        if slot is not None:
            self._kept -= int(self._flags[slot]) & _KEPT
            self._flags[slot] = int(self._flags[slot]) & _TOUCHED

    # -- questions

    def score(self, chunk: bytes) -> float:
        """log2 of the decayed sum, in terms of the landmark; COLD (-inf) when never read. Estimate below the table."""
        slot = self._slots.get(chunk)
        if slot is not None:
            return float(self._scores[slot])
        return self._estimate_one(chunk)

    def reads(self, score: float, now: float) -> float:
        """The decayed number of reads that a score stands for at `now`."""
        exponent = score - (now - self.landmark) / self.half_life_seconds
        return 2.0 ** min(exponent, 1000.0) if exponent > -1000.0 else 0.0

    def per_hour(self, score: float, now: float) -> float:
        """Reads per hour: a steady rate of r reads an hour decays to r * H / ln 2 reads (H in hours)."""
        return self.reads(score, now) * math.log(2) * 3600.0 / self.half_life_seconds

    def heat_per_hour(self, chunk: bytes, now: float) -> float:
        return self.per_hour(self.score(chunk), now)

    def heats_per_hour(self, chunks: Sequence[bytes], now: float) -> list[float]:
        """heat_per_hour of each, 0.3 us a chunk that is in the table or was never read."""
        slots = list(map(self._slots.get, chunks))
        heats = [0.0] * len(slots)
        unknown: list[int] = []
        for place, slot in enumerate(slots):
            if slot is None:
                unknown.append(place)
            else:
                heats[place] = self.per_hour(float(self._scores[slot]), now)
        if unknown and self._sketch is not None:
            estimates = self._sketch.estimate([chunks[place] for place in unknown]).tolist()
            for place, score in zip(unknown, estimates, strict=True):
                heats[place] = self.per_hour(score, now)
        return heats

    def take_touched(self, limit: int, settled_limit: int = 0) -> Touched:
        """The hottest chunks read since the last call, at most `limit` that may move and `settled_limit` settled ones.

        Those beyond the limit are forgotten until their next read: they were colder than `limit` others.
        """
        flags = self._flags
        touched = self._unique_touched()
        self._touched, self._touched_count = [], 0
        is_settled = (flags[touched] & _SETTLED) != 0
        flags[touched] &= ~np.uint8(_TOUCHED)
        return Touched(
            self._hottest(touched[~is_settled], limit), self._hottest(touched[is_settled], settled_limit)
        )

    def hottest(self, limit: int) -> list[tuple[bytes, float]]:
        """The `limit` highest scores of the exact table, highest first."""
        return self._hottest(np.flatnonzero(self._scores[: self._used] > COLD), limit)

    # -- time

    def renormalise(self, now: float, *, half_life_seconds: float | None = None) -> None:
        """Move the landmark to (about) `now`; with a new half-life, go on with today's decayed counts under it.

        Moves by a whole number of half-lives, so that float64 scores are shifted exactly and no order changes.
        """
        half_lives = float(math.floor((now - self.landmark) / self.half_life_seconds))
        landmark = self.landmark + half_lives * self.half_life_seconds
        if half_life_seconds is not None and half_life_seconds != self.half_life_seconds:
            half_lives, landmark = (now - self.landmark) / self.half_life_seconds, now
            self.half_life_seconds = half_life_seconds
        self.landmark = landmark
        self._scores[: self._used] -= half_lives  # -inf stays -inf
        if self._sketch is not None:
            self._sketch.shift(half_lives)
        self.epoch += 1

    # -- snapshot

    def snapshot(self) -> bytes:
        """The whole table as bytes (24 B a chunk and the sketch), checksummed. What is kept is not part of it."""
        slots = np.fromiter(self._slots.values(), dtype=np.int64, count=len(self._slots))
        sketch = self._sketch.cells.tobytes() if self._sketch is not None else b""
        body = b"".join((self._scores[slots].tobytes(), self._ids[slots].tobytes(), sketch))
        header = _HEADER.pack(
            _MAGIC, self.half_life_seconds, self.landmark, len(slots), len(sketch) // 4, zlib.crc32(body)
        )
        return header + body

    @classmethod
    def restore(cls, snapshot: bytes, *, exact_max: int = EXACT_MAX) -> HeatTable:
        """The table of a snapshot. Raises IntegrityError when it is damaged or of another form (start cold then)."""
        if len(snapshot) < _HEADER.size or snapshot[:8] != _MAGIC:
            raise IntegrityError("this is not a heat snapshot", code="bad-heat-snapshot")
        _, half_life, landmark, chunks, cells, crc = _HEADER.unpack_from(snapshot)
        body = memoryview(snapshot)[_HEADER.size :]
        if (
            len(body) != chunks * 24 + cells * 4
            or cells not in {0, SKETCH_ROWS * SKETCH_COLUMNS}
            or zlib.crc32(body) != crc
            or not (0 < half_life < math.inf and math.isfinite(landmark))
        ):
            raise IntegrityError("the heat snapshot is cut or damaged", code="bad-heat-snapshot")
        heat = cls(half_life_seconds=half_life, landmark=landmark, exact_max=exact_max)
        heat._scores = np.frombuffer(body, dtype=np.float64, count=chunks).copy()
        heat._ids = np.frombuffer(body, dtype="V16", count=chunks, offset=chunks * 8).copy()
        heat._flags = np.zeros(chunks, dtype=np.uint8)
        heat._used = chunks
        heat._slots = dict(zip(heat._ids.tolist(), range(chunks), strict=True))
        if cells:
            heat._sketch = Sketch(np.frombuffer(body, dtype=np.float32, offset=chunks * 24))
        return heat

    # -- below: the exact table

    def _unique_touched(self) -> Slots:
        if not self._touched:
            return np.zeros(0, dtype=np.int64)
        slots = np.unique(np.concatenate(self._touched))
        return np.asarray(slots[(self._flags[slots] & _TOUCHED) != 0], dtype=np.int64)

    def _touch(self, slots: Slots) -> None:
        self._flags[slots] |= _TOUCHED
        self._touched.append(slots)
        self._touched_count += len(slots)
        if self._touched_count > 2 * len(self._scores):  # nobody takes them: no more than the table in memory
            self._touched = [self._unique_touched()]
            self._touched_count = len(self._touched[0])

    def _raise_scores(self, slots: Slots, added: Floats) -> None:
        self._touch(slots)
        np.logaddexp2.at(self._scores, slots, added)  # unbuffered: a slot may stand in it twice

    def _hottest(self, slots: Slots, limit: int) -> list[tuple[bytes, float]]:
        """Ties go to the lower id, so that the answer does not depend on the order of arrival."""
        if limit <= 0 or not len(slots):
            return []
        if len(slots) > limit:
            scores = self._scores[slots]
            at_least = np.partition(scores, len(slots) - limit)[len(slots) - limit]
            above, ties = slots[scores > at_least], slots[scores == at_least]
            words = np.frombuffer(self._ids[ties].tobytes(), dtype=">u8").reshape(-1, 2)
            slots = np.concatenate([above, ties[np.lexsort((words[:, 1], words[:, 0]))][: limit - len(above)]])
        pairs = list(zip(self._ids[slots].tolist(), self._scores[slots].tolist(), strict=True))
        pairs.sort(key=lambda pair: (-pair[1], pair[0]))
        return pairs[:limit]

    def _put(self, chunk: bytes, score: float) -> int:
        slot = self._slots.get(chunk)
        if slot is None:
            if self._free:
                slot = self._free.pop()
            else:
                slot = self._used
                self._grow(slot + 1)
                self._used += 1
            self._slots[chunk] = slot
            self._ids[slot] = np.void(chunk)
            self._flags[slot] = 0
        self._scores[slot] = score
        return slot

    def _grow(self, needed: int) -> None:
        size = len(self._scores)
        if needed > size:
            more = max(needed, size * 2, 1024) - size
            self._scores = np.concatenate([self._scores, np.full(more, COLD)])
            self._ids = np.concatenate([self._ids, np.zeros(more, dtype="V16")])
            self._flags = np.concatenate([self._flags, np.zeros(more, dtype=np.uint8)])

    def _add_new(self, chunks: list[bytes], added: Floats) -> None:
        """Reads of chunks that are not in the exact table: into it while there is room, else through the sketch."""
        room = self._exact_max + self._kept - len(self._slots)
        fresh = dict.fromkeys(chunks)
        if room >= len(fresh):
            self._append(list(fresh))
            slots = np.fromiter(map(self._slots.__getitem__, chunks), dtype=np.int64, count=len(chunks))
            self._raise_scores(slots, added)
            return
        if self._sketch is None:
            self._sketch = Sketch()
        self._sketch.add(chunks, added)
        ids = sorted(fresh)
        self._admit(ids, self._sketch.estimate(ids), max(room, 0))

    def _append(self, chunks: list[bytes]) -> None:
        reused = min(len(self._free), len(chunks))
        for chunk in chunks[:reused]:
            self._put(chunk, COLD)
        rest = chunks[reused:]
        if rest:
            start, end = self._used, self._used + len(rest)
            self._grow(end)
            self._slots.update(zip(rest, range(start, end), strict=True))
            self._ids[start:end] = np.frombuffer(b"".join(rest), dtype="V16")
            self._scores[start:end] = COLD
            self._flags[start:end] = 0
            self._used = end

    # -- below: what goes to the sketch and what comes back

    def _admit(self, ids: list[bytes], estimates: Floats, room: int) -> None:
        """The hottest newcomers take free slots, then those of colder chunks that are not kept, pair by pair."""
        order = np.argsort(-estimates, kind="stable").tolist()
        flags, scores = self._flags[: self._used], self._scores[: self._used]
        evictable = np.flatnonzero(((flags & _KEPT) == 0) & (scores > COLD))
        wanted = min(len(order) - room, len(evictable))
        if 0 < wanted < len(evictable):
            evictable = evictable[np.argpartition(scores[evictable], wanted - 1)[:wanted]]
        coldest = evictable[np.lexsort((evictable, scores[evictable]))]
        victims = list(zip(self._ids[coldest].tolist(), scores[coldest].tolist(), strict=True))
        taken = min(len(order), room)
        while taken < len(order) and taken - room < len(victims) and victims[taken - room][1] < estimates[order[taken]]:
            taken += 1
        if self._sketch is not None:
            self._sketch.floor(victims[: max(taken - room, 0)])
        for chunk, _ in victims[: max(taken - room, 0)]:
            self.forget(chunk)
        admitted = np.asarray(order[:taken], dtype=np.int64)
        self._append([ids[i] for i in order[:taken]])
        slots = np.fromiter((self._slots[ids[i]] for i in order[:taken]), dtype=np.int64, count=taken)
        self._scores[slots] = estimates[admitted]
        self._touch(slots)

    def _estimate_one(self, chunk: bytes) -> float:
        return float(self._sketch.estimate([chunk])[0]) if self._sketch is not None else COLD


def _minus_ones() -> Iterable[int]:
    """An endless default for map(dict.get, ...)."""
    while True:
        yield -1


def pack_delta(counts: Iterable[tuple[bytes, float]]) -> bytes:
    """A heartbeat's delta of (16-byte chunk id, whole reads). Counts above float16's 65,504 are cut to it."""
    pack = struct.Struct("<16se").pack
    return b"".join(pack(chunk, min(count, 65_504.0)) for chunk, count in counts)
