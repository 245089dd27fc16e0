"""A device's index: chunk id -> where its record or file lies. LMDB on disk, the newest entries in memory.

Owns `index/` and the figures (bytes live, in trash, dead per segment) that follow from the entries. Invariants:
- The index is a cache of the log and of the directories: it may be lost or late, never ahead. `applied` (segment,
  offset), written in the same transaction as the entries, says up to which place of the log they are complete.
- The figures in memory always equal those of (LMDB + flushing + fresh); they are written with the same transaction.
- apply(), take() and done() are called by one thread (the loop, or recovery before the loop has the device); write()
  by the flush thread, one at a time.

Cost: lookup 0.2 us fresh, 1 us in LMDB when its pages are in memory; apply 1 us; a flush of 8,000 entries some 15 ms
and one sync. Memory: about 200 bytes per fresh entry, bounded by index_fresh_max.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import lmdb

from objectd.store.records import IN_TRASH, LIVE
from tierstore.errors import IntegrityError
from tierstore.failpoints import hit

FORMAT: Final = b"1"
STEP_ROWS: Final = 5000     # rows an iteration reads under one read transaction
_VALUE = struct.Struct("<IQIIIBQ")
_MARK = struct.Struct("<IQ")
_FIGURES = struct.Struct("<QQQ")
_SEGMENT = struct.Struct("<QQ")
_SEGMENT_KEY = struct.Struct(">I")
_WALL = struct.Struct(">Q")
_STATE_AT: Final = 24


class Entry(NamedTuple):
    """What the index knows of one chunk. Segment 0: a file of its own."""

    segment: int
    offset: int
    chunk_bytes: int
    stored_bytes: int   # with its framing
    crc: int
    state: int          # records.LIVE or IN_TRASH
    wall_ms: int        # stored at, or trashed at


def pack(segment: int, offset: int, chunk_bytes: int, stored_bytes: int, crc: int, state: int,  # noqa: PLR0917
         wall_ms: int) -> bytes:
    """The value of an Entry, in its order; positional because it is on the way of every PUT."""
    return _VALUE.pack(segment, offset, chunk_bytes, stored_bytes, crc, state, wall_ms)


def unpack(value: bytes) -> Entry:
    return Entry(*_VALUE.unpack(value))


def is_live(value: bytes) -> bool:
    return value[_STATE_AT] == LIVE


@dataclass(slots=True)
class SegmentFigures:
    end: int = 0        # bytes of the segment that were applied
    used: int = 0       # of them: records of live and trashed chunks


@dataclass(slots=True)
class Figures:
    live_bytes: int = 0
    trash_bytes: int = 0
    chunks: int = 0
    segments: dict[int, SegmentFigures] = field(default_factory=dict)

    @property
    def garbage_bytes(self) -> int:
        return sum(s.end - s.used for s in self.segments.values())

    def count(self, value: bytes, sign: int) -> None:
        segment, _, _, stored, _, state, _ = _VALUE.unpack(value)
        if state == LIVE:
            self.live_bytes += sign * stored
            self.chunks += sign
        else:
            self.trash_bytes += sign * stored
        if segment:
            of = self.segments.get(segment)
            if of is None:
                of = self.segments[segment] = SegmentFigures()
            of.used += sign * stored


@dataclass(frozen=True, slots=True)
class Flush:
    """Everything one flush writes: a picture taken in one moment."""

    entries: dict[bytes, bytes]     # b"" removes
    applied: tuple[int, int]
    figures: tuple[int, int, int]
    segments: list[tuple[int, int, int]]
    gone: list[int]


class Index:
    def __init__(self, env: Any, uuid: bytes) -> None:
        self._env = env
        self._uuid = uuid
        self._chunks = env.open_db(b"chunks")
        self._trash = env.open_db(b"trash")
        self._segments = env.open_db(b"segments")
        self._meta = env.open_db(b"meta")
        self.fresh: dict[bytes, bytes] = {}
        self._flushing: dict[bytes, bytes] = {}
        self.figures = Figures()
        self.applied = (0, 0)
        self.is_clean = False
        self._touched: set[int] = set()
        self._gone: set[int] = set()
        self._reader: Any = None
        self._page_bytes: int = env.stat()["psize"]
        self.file_bytes = 0     # as of the last flush; a small one stays in the page cache
        self._measure()

    @classmethod
    def open(cls, path: str, *, uuid: bytes, map_bytes: int) -> Index:
        """Raises IntegrityError when what lies there cannot be used and must be rebuilt."""
        os.makedirs(path, exist_ok=True)
        try:
            env = lmdb.open(path, map_size=map_bytes, max_dbs=8, readahead=False, max_readers=64)
        except lmdb.Error as error:
            raise IntegrityError(f"the index at {path} cannot be opened: {error}", code="bad-index") from error
        try:
            # LMDB reads through a map: a page behind the end of a truncated file would be a SIGBUS, not an error
            need = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
            if os.stat(os.path.join(path, "data.mdb")).st_size < need:
                raise IntegrityError(f"the index at {path} is shorter than it says", code="bad-index")
            index = cls(env, uuid)
            index._load()
        except (lmdb.Error, struct.error, IntegrityError) as error:
            env.close()
            raise IntegrityError(f"the index at {path} is damaged: {error}", code="bad-index") from error
        return index

    def _load(self) -> None:
        with self._env.begin() as txn:
            owner = txn.get(b"uuid", db=self._meta)
            if owner is None:
                if txn.stat(self._chunks)["entries"]:
                    raise IntegrityError("it holds entries but no owner", code="bad-index")
                return
            if bytes(owner) != self._uuid or txn.get(b"format", db=self._meta) != FORMAT:
                raise IntegrityError("it belongs to another device or format", code="bad-index")
            self.applied = _MARK.unpack(txn.get(b"applied", b"", db=self._meta))
            f = self.figures
            f.live_bytes, f.trash_bytes, f.chunks = _FIGURES.unpack(txn.get(b"figures", b"", db=self._meta))
            for key, value in txn.cursor(db=self._segments):
                f.segments[_SEGMENT_KEY.unpack(key)[0]] = SegmentFigures(*_SEGMENT.unpack(value))
            self.is_clean = txn.get(b"clean", db=self._meta) == b"1"

    # reading

    def lookup(self, chunk: bytes) -> bytes | None:
        """The packed entry, for the thread that applies (one long-lived read transaction, renewed after a flush)."""
        value = self.fresh.get(chunk)
        if value is None:
            value = self._flushing.get(chunk)
            if value is None:
                reader = self._reader
                if reader is None:
                    reader = self._reader = self._env.begin(db=self._chunks)
                stored: bytes | None = reader.get(chunk)
                return stored
        return value or None

    def lookup_in_thread(self, chunk: bytes) -> bytes | None:
        """The same for any thread. An entry on its way from memory to LMDB is seen in one of the two."""
        value = self.fresh.get(chunk)
        if value is None:
            value = self._flushing.get(chunk)
        if value is None:
            with self._env.begin(db=self._chunks) as txn:
                value = txn.get(chunk)
        return value or None

    def iterate(self, after: bytes, *, states: tuple[int, ...] = (LIVE,)) -> Iterator[tuple[bytes, Entry]]:
        """Entries with id > after, in order. Blocking. Changes made meanwhile may or may not be seen."""
        while True:
            # memory first: entries only ever move from memory to LMDB, so none is missed between the two looks
            overlay = {k: v for k, v in [*list(self._flushing.items()), *list(self.fresh.items())] if k > after}
            rows, is_last = self._step(after)
            until = rows[-1][0] if rows and not is_last else None
            if until is not None:
                overlay = {k: v for k, v in overlay.items() if k <= until}
            merged = dict(rows)
            merged.update(overlay)
            for key in sorted(merged):
                value = merged[key]
                if value and value[_STATE_AT] in states:
                    yield key, unpack(value)
            if until is None:
                return
            after = until

    def _step(self, after: bytes) -> tuple[list[tuple[bytes, bytes]], bool]:
        rows: list[tuple[bytes, bytes]] = []
        with self._env.begin(db=self._chunks) as txn:
            cursor = txn.cursor()
            more = cursor.set_range(after) if after else cursor.first()
            if more and after and cursor.key() == after:
                more = cursor.next()
            while more and len(rows) < STEP_ROWS:
                rows.append((cursor.key(), cursor.value()))
                more = cursor.next()
        return rows, not more

    def trashed_before(self, wall_ms: int, limit: int) -> list[bytes]:
        """Chunks that were flushed as trashed before that time, oldest first; drops keys that no longer hold.
        Blocking; call it after a flush."""
        found: list[bytes] = []
        stale: list[bytes] = []
        with self._env.begin() as txn:
            for key, _ in txn.cursor(db=self._trash):
                if _WALL.unpack(key[:8])[0] >= wall_ms or len(found) >= limit:
                    break
                value = txn.get(key[8:], db=self._chunks)
                if value is None or value[_STATE_AT] != IN_TRASH or unpack(value).wall_ms != _WALL.unpack(key[:8])[0]:
                    stale.append(key)
                else:
                    found.append(key[8:])
        if stale:
            with self._env.begin(write=True) as txn:
                for key in stale:
                    txn.delete(key, db=self._trash)
        return found

    # writing

    def apply(self, chunk: bytes, value: bytes, old: bytes | None) -> None:
        """Set (or with b"" remove) the entry of a chunk. `old` is what lookup() gives now."""
        figures = self.figures
        if old:
            figures.count(old, -1)
            self._touched.add(_VALUE.unpack(old)[0])
        if value:
            figures.count(value, 1)
        self.fresh[chunk] = value

    def advance(self, segment: int, end: int) -> None:
        """All records before (segment, end) were applied."""
        self.applied = (segment, end)
        of = self.figures.segments.get(segment)
        if of is None:
            of = self.figures.segments[segment] = SegmentFigures()
        of.end = end
        self._touched.add(segment)

    def drop_segment(self, segment: int) -> None:
        """The segment was unlinked."""
        self.figures.segments.pop(segment, None)
        self._gone.add(segment)

    def take(self) -> Flush | None:
        """Begin a flush: None if there is nothing to write or one is under way."""
        if self._flushing or not (self.fresh or self._touched or self._gone):
            return None
        self._flushing, self.fresh = self.fresh, {}
        f = self.figures
        touched, self._touched = self._touched, set()
        gone, self._gone = self._gone, set()
        segments = [(n, f.segments[n].end, f.segments[n].used) for n in touched if n in f.segments]
        # every segment that got an entry stands in touched: advance() follows each batch of the log
        return Flush(self._flushing, self.applied, (f.live_bytes, f.trash_bytes, f.chunks), segments, list(gone))

    def write(self, flush: Flush) -> None:
        """One durable transaction. Blocking. Raises lmdb.Error or OSError; then give the flush back by failed()."""
        puts = sorted((k, v) for k, v in flush.entries.items() if v)
        hit("store.index.before_write")
        with self._env.begin(write=True) as txn:
            txn.cursor(db=self._chunks).putmulti(puts)
            for key, value in flush.entries.items():
                if not value:
                    txn.delete(key, db=self._chunks)
                elif value[_STATE_AT] == IN_TRASH:
                    txn.put(_WALL.pack(unpack(value).wall_ms) + key, b"", db=self._trash)
            for number, end, used in flush.segments:
                txn.put(_SEGMENT_KEY.pack(number), _SEGMENT.pack(end, used), db=self._segments)
            for number in flush.gone:
                txn.delete(_SEGMENT_KEY.pack(number), db=self._segments)
            self._put_meta(txn, flush.applied, flush.figures)
            hit("store.index.before_commit")
        hit("store.index.after_commit")

    def _put_meta(self, txn: Any, applied: tuple[int, int], figures: tuple[int, int, int]) -> None:
        txn.put(b"uuid", self._uuid, db=self._meta)
        txn.put(b"format", FORMAT, db=self._meta)
        txn.put(b"applied", _MARK.pack(*applied), db=self._meta)
        txn.put(b"figures", _FIGURES.pack(*figures), db=self._meta)

    def done(self) -> None:
        """The flush taken last is in LMDB."""
        self._flushing = {}
        self._end_reader()
        self._measure()

    def _end_reader(self) -> None:
        """The next lookup begins a read transaction that sees what was written since (an old one holds pages)."""
        if self._reader is not None:
            self._reader.abort()
            self._reader = None

    def _measure(self) -> None:
        self.file_bytes = (self._env.info()["last_pgno"] + 1) * self._page_bytes

    def failed(self, flush: Flush) -> None:
        """The flush taken last was not written: its entries are fresh again, unless newer ones are."""
        self.fresh = {**flush.entries, **self.fresh}
        self._flushing = {}
        self._touched.update(n for n, _, _ in flush.segments)
        self._gone.update(flush.gone)

    def mark_clean(self, is_clean: bool) -> None:
        """Write whether log and directories hold nothing that the index does not know. Blocking, durable."""
        with self._env.begin(write=True) as txn:
            f = self.figures
            self._put_meta(txn, self.applied, (f.live_bytes, f.trash_bytes, f.chunks))
            txn.put(b"clean", b"1" if is_clean else b"0", db=self._meta)
        self.done()

    def close(self) -> None:
        self._end_reader()
        self._env.close()
