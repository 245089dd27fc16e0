"""What the headers and footers of chunks say beyond the index: the name hints, for `metadata rebuild`.

Reads only. Invariant: a hint is given out only when its own sum was right; a chunk whose header cannot be read is still
told of, without a name. Cost: one open and two small reads for a chunk file, two reads for a record in a segment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from objectd.store import files, records
from objectd.store.device import ChunkHeader, Location
from objectd.store.index import Entry, Index
from objectd.store.layout import Layout
from objectd.store.reading import read_fully
from tierstore.errors import IntegrityError
from tierstore.names import ChunkId

NO_HINT: Final = ""


def stored_since(index: Index, layout: Layout, seed: int, since_ms: int, after: bytes) -> Iterator[ChunkHeader]:
    """Live chunks with id > after that were stored at or after that wall time, in id order. Blocking."""
    for chunk, entry in index.iterate(after):
        if entry.wall_ms >= since_ms:
            yield ChunkHeader(
                ChunkId(chunk), entry.chunk_bytes, entry.crc, entry.wall_ms, Location(entry.segment, entry.offset),
                _hint(layout, seed, chunk, entry),
            )  # fmt: skip


def _hint(layout: Layout, seed: int, chunk: bytes, entry: Entry) -> str:
    try:
        raw = _of_segment(layout, seed, chunk, entry) if entry.segment else _of_file(layout, seed, chunk)
    except (OSError, IntegrityError):
        return NO_HINT      # damaged, or moved by compaction meanwhile: the scrub's business, not ours
    return raw.decode("utf-8", "replace")


def _of_segment(layout: Layout, seed: int, chunk: bytes, entry: Entry) -> bytes:
    fd = os.open(layout.segment_path(entry.segment), os.O_RDONLY | os.O_CLOEXEC)
    try:
        raw = read_fully(fd, records.HEADER_BYTES, entry.offset)
        header = records.parse(raw, segment=entry.segment, offset=entry.offset, seed=seed)
        if header is None or header.chunk != chunk:
            return b""
        sums = read_fully(fd, header.sums_bytes, entry.offset + records.HEADER_BYTES)
        hint = read_fully(fd, header.hint_bytes, header.data_offset + header.length)
    finally:
        os.close(fd)
    return hint if records.has_good_extra(header, sums, hint) else b""


def _of_file(layout: Layout, seed: int, chunk: bytes) -> bytes:
    fd, footer, sums = files.open_file(layout.file_path(chunk), chunk, seed)     # sums and hint were checked together
    try:
        return read_fully(fd, footer.hint_bytes, footer.length + len(sums))
    finally:
        os.close(fd)
