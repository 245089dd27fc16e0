"""Recovery: what log and directories hold that the index does not know, after a kill, a power cut or damage.

Runs in a thread before the device serves. Invariants:
- Scanning begins at the index's applied mark, or at the beginning when the index is new.
- The log is cut only behind the last valid mark (or the applied mark), and only where nothing valid follows.
- What is bad before that is skipped by searching for the next record, copied to quarantine, and counted as garbage.
- Records covered by a mark are trusted by their header; those behind the last mark are read and checked whole.

Cost: 64 bytes read per record and one index change (2 us); the unmarked tail (one group as a rule) is read in full.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from objectd.store import files, quarantine, records
from objectd.store.index import Index, is_live, pack, unpack
from objectd.store.layout import Layout, sync_directory
from objectd.store.records import Header
from tierstore.errors import IntegrityError
from tierstore.failpoints import hit

_WINDOW: Final = 1024 * 1024
FLUSH_ENTRIES: Final = 50_000   # index entries held in memory while scanning


@dataclass(slots=True)
class Report:
    records: int = 0
    bad_ranges: int = 0
    cut_bytes: int = 0
    files_adopted: int = 0
    files_unfinished: int = 0
    files_bad: int = 0
    files_missing: int = 0
    notes: list[str] = field(default_factory=list)


class Recovery:
    def __init__(self, layout: Layout, index: Index, *, seed: int, now_ms: Callable[[], int]) -> None:
        self._layout = layout
        self._index = index
        self._seed = seed
        self._now_ms = now_ms
        self.report = Report()

    def run(self) -> Report:
        """Bring the index up to date and write it. Raises OSError, IntegrityError."""
        number_from, offset_from = self._index.applied
        for number in self._layout.segment_numbers():
            if number >= number_from:
                self._scan(number, offset_from if number == number_from else 0)
        self._forget_lost_segments()
        if not self._index.is_clean:
            self._adopt_files(self._layout.files, self._live_path)
            self._adopt_trash()
            self._miss_files()
        self._flush()
        return self.report

    def _flush(self) -> None:
        flush = self._index.take()
        if flush is not None:
            self._index.write(flush)
            self._index.done()

    # segments

    def _scan(self, number: int, start: int) -> None:
        fd = os.open(self._layout.segment_path(number), os.O_RDWR)
        try:
            size = os.fstat(fd).st_size
            pending: list[Header] = []
            gaps: list[tuple[int, int]] = []
            offset = synced = start
            while offset < size:
                header = self._header(fd, number, offset)
                if header is None or offset + header.record_bytes > size:
                    following = next_record(fd, number=number, offset=offset + records.ALIGN, end=size, seed=self._seed)
                    gaps.append((offset, following))
                    offset = following
                    continue
                pending.append(header)
                offset += header.record_bytes
                if header.kind == records.MARK:
                    synced = max(synced, header.length)
                    pending = self._apply_trusted(pending, synced)
            for header in pending:
                if self._is_whole(fd, header):
                    self._apply(header)
                else:
                    gaps.append((header.offset, header.offset + header.record_bytes))
            end = self._settle_gaps(fd, number, sorted(gaps), size, synced)
        finally:
            os.close(fd)
        self._index.advance(number, end)
        if len(self._index.fresh) > FLUSH_ENTRIES:
            self._flush()

    def _header(self, fd: int, number: int, offset: int) -> Header | None:
        return records.parse(os.pread(fd, records.HEADER_BYTES, offset), segment=number, offset=offset, seed=self._seed)

    def _apply_trusted(self, pending: list[Header], synced: int) -> list[Header]:
        for at, header in enumerate(pending):
            if header.kind != records.MARK and header.offset + header.record_bytes > synced:
                return pending[at:]
            self._apply(header)
        return []

    def _is_whole(self, fd: int, header: Header) -> bool:
        if header.kind != records.CHUNK:
            return True
        raw = os.pread(fd, header.record_bytes, header.offset)
        sums_end = records.HEADER_BYTES + header.sums_bytes
        data_end = sums_end + header.length
        return records.has_good_body(header, raw[records.HEADER_BYTES : sums_end], raw[sums_end:data_end],
                                     raw[data_end : data_end + header.hint_bytes])

    def _settle_gaps(self, fd: int, number: int, gaps: list[tuple[int, int]], size: int, synced: int) -> int:
        """Cut a torn tail, quarantine every other gap. Returns the segment's end."""
        end = size
        while gaps and gaps[-1][1] == end and gaps[-1][0] >= synced:
            end = gaps.pop()[0]
        if end < size:
            hit("store.recovery.before_cut")
            os.ftruncate(fd, end)
            os.fsync(fd)
            self.report.cut_bytes += size - end
            self.report.notes.append(f"segment {number}: cut {size - end} bytes that were never synced at {end}")
        for start, stop in gaps:
            self.report.bad_ranges += 1
            why = f"no valid record at {start}..{stop} of segment {number}"
            self.report.notes.append(why)
            quarantine.keep_range(self._layout.quarantine, name=f"{number:08d}.{start}", fd=fd, offset=start,
                                  count=stop - start, wall_ms=self._now_ms(), why=why)
        return end

    def _apply(self, header: Header) -> None:
        if header.kind == records.MARK:
            return
        self.report.records += 1
        chunk = header.chunk
        old = self._index.lookup(chunk)
        if header.kind == records.CHUNK:
            value = pack(header.segment, header.offset, header.length, header.record_bytes, header.data_crc,
                         records.LIVE, header.wall_ms)
            self._index.apply(chunk, value, old)
            return
        if old is None:
            return
        entry = unpack(old)
        if (entry.segment, entry.offset) != header.target:
            return
        if header.kind in (records.FORGET, records.REJECT):
            self._index.apply(chunk, b"", old)
        else:
            state = records.IN_TRASH if header.kind == records.TRASH else records.LIVE
            self._index.apply(chunk, pack(*entry[:5], state, header.wall_ms), old)

    def _forget_lost_segments(self) -> None:
        """Entries of segments that are gone (somebody removed a file) do not count as present."""
        there = set(self._layout.segment_numbers())
        lost = [n for n in self._index.figures.segments if n not in there]
        if any(self._index.figures.segments[n].used for n in lost):
            for chunk, entry in self._index.iterate(b"", states=(records.LIVE, records.IN_TRASH)):
                if entry.segment and entry.segment not in there:
                    self._index.apply(chunk, b"", self._index.lookup(chunk))
            self.report.notes.append(f"segments {lost} are missing: their chunks are lost here")
        for number in lost:
            self._index.drop_segment(number)

    # files

    def _live_path(self, chunk: bytes) -> str:
        return self._layout.file_path(chunk)

    def _adopt_files(self, root: str, path_of: Callable[[bytes], str]) -> None:
        for name in sorted(os.listdir(root)):
            directory = os.path.join(root, name)
            removed = False
            for entry in os.scandir(directory):
                chunk = _chunk_of(entry.name)
                if chunk is None:
                    continue
                removed |= self._adopt(chunk, entry.path, entry.stat().st_size)
                if len(self._index.fresh) > FLUSH_ENTRIES:
                    self._flush()
            if removed:
                sync_directory(directory)

    def _adopt(self, chunk: bytes, path: str, size: int) -> bool:
        """Bring one file and its entry together; True if its name is gone."""
        old = self._index.lookup(chunk)
        known = unpack(old) if old else None
        if known and known.segment == 0 and is_live(old or b"") and known.stored_bytes == size:
            return False
        try:
            fd, footer, _ = files.open_file(path, chunk, self._seed)
        except IntegrityError as error:
            self._index.apply(chunk, b"", old) if old else None
            if known:
                name = f"{chunk.hex()}.{self._now_ms()}"
                files.move(path, os.path.join(self._layout.quarantine, name))
                quarantine.describe(self._layout.quarantine, name=name, wall_ms=self._now_ms(), why=str(error),
                                    chunk=chunk)
                self.report.files_bad += 1
                self.report.notes.append(f"chunk file {chunk.hex()} was whole once and is not now: quarantined")
            else:
                files.discard(path)
                self.report.files_unfinished += 1
            return True
        os.close(fd)
        self._index.apply(chunk, pack(0, 0, footer.length, size, footer.data_crc, records.LIVE, footer.wall_ms), old)
        self.report.files_adopted += 1
        return False

    def _adopt_trash(self) -> None:
        for found in os.scandir(self._layout.trash):
            name, _, wall = found.name.partition(".")
            chunk = _chunk_of(name)
            if chunk is None or not wall.isdigit():
                continue
            old = self._index.lookup(chunk)
            if old and (is_live(old) and unpack(old).segment == 0 and os.path.exists(self._live_path(chunk))):
                continue    # deleted, and written again since
            if old and unpack(old).state == records.IN_TRASH and unpack(old).wall_ms == int(wall):
                continue
            try:
                fd, footer, _ = files.open_file(found.path, chunk, self._seed)
            except IntegrityError:
                files.discard(found.path)
                continue
            os.close(fd)
            value = pack(0, 0, footer.length, found.stat().st_size, footer.data_crc, records.IN_TRASH, int(wall))
            self._index.apply(chunk, value, old)

    def _miss_files(self) -> None:
        for chunk, entry in self._index.iterate(b"", states=(records.LIVE, records.IN_TRASH)):
            if entry.segment:
                continue
            is_kept = entry.state == records.LIVE
            path = self._live_path(chunk) if is_kept else self._layout.trash_path(chunk, entry.wall_ms)
            if not os.path.exists(path):
                self._index.apply(chunk, b"", self._index.lookup(chunk))
                self.report.files_missing += 1


def next_record(fd: int, *, number: int, offset: int, end: int, seed: int) -> int:
    """Offset of the next valid record header of segment `number` at or behind offset, or end. Blocking."""
    while offset < end:
        window = os.pread(fd, _WINDOW + records.HEADER_BYTES, offset)
        for at in records.places_of_magic(window):
            if offset + at < end and records.parse(window[at : at + records.HEADER_BYTES], segment=number,
                                                   offset=offset + at, seed=seed):
                return offset + at
        offset += _WINDOW
    return end


def _chunk_of(name: str) -> bytes | None:
    try:
        chunk = bytes.fromhex(name)
    except ValueError:
        return None
    return chunk if len(chunk) == 16 else None
