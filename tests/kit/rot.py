"""Silent damage to the stored copies of a running cluster: bits flip, blocks trade places, files end early, a copy
turns into another one. Each chunk is damaged in one of its copies only, as N+1 promises to survive.

Works on the files beneath the object servers: records of segments are found by the store's own form, so that each kind
of damage lands where it is meant to.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from metadata.services.upkeep.snapshot_ids import is_reserved
from objectd.store import records
from tests.kit.cluster import Cluster
from tests.kit.inventory import counted_copies
from tierstore.checksum import BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Copy:
    """One stored copy: where its header, sums and data lie in which file."""

    chunk: bytes
    path: Path
    server: str
    device: bytes       # its uuid
    data_at: int
    data_bytes: int
    sums_at: int
    sums_bytes: int
    header_at: int
    is_file: bool


def copies_of(c: Cluster) -> Iterator[Copy]:
    """Every live copy on the devices that the catalog counts on. Left out: catalog chunks, and copies that nothing
    refers to (a spare server's, when a slow one finished after all): no scrub is asked to look at those."""
    counted = counted_copies(c)
    for process in c.processes("objectd"):
        for device in process.devices:
            root = Path(device["path"])
            uuid = bytes.fromhex(json.loads((root / "device.json").read_bytes())["uuid"])
            seed = records.seed_of(uuid)
            found = [*_in_segments(root, process.name, uuid, seed), *_in_files(root, process.name, uuid, seed)]
            yield from (copy for copy in found if (uuid, copy.chunk) in counted and not is_reserved(copy.chunk))


def _in_segments(root: Path, server: str, uuid: bytes, seed: int) -> Iterator[Copy]:
    for path in sorted((root / "segments").glob("*.seg")):
        raw, number = path.read_bytes(), int(path.stem)
        for at in records.places_of_magic(raw):
            header = records.parse(raw[at : at + records.HEADER_BYTES], segment=number, offset=at, seed=seed)
            if header is not None and header.kind == records.CHUNK and header.state == records.LIVE:
                sums_at = at + records.HEADER_BYTES
                yield Copy(header.chunk, path, server, uuid, header.data_offset, header.length, sums_at,
                           header.sums_bytes, at, False)  # fmt: skip


def _in_files(root: Path, server: str, uuid: bytes, seed: int) -> Iterator[Copy]:
    for path in sorted((root / "files").glob("??/*")):
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            continue        # a piece of the catalog's journal that was let go since the listing
        header = records.parse_footer(
            raw[-records.HEADER_BYTES :], file_bytes_all=len(raw), chunk=bytes.fromhex(path.name), seed=seed
        )
        if header is not None:
            yield Copy(header.chunk, path, server, uuid, 0, header.length, header.length, header.sums_bytes,
                       len(raw) - records.HEADER_BYTES, True)  # fmt: skip


class Rot:
    """Damages copies; `done` counts by kind, `chunks` tells what was done to which, `copies` where it lay."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.done: Counter[str] = Counter()
        self.chunks: dict[bytes, str] = {}
        self.copies: dict[bytes, Copy] = {}

    def spread(self, copies: list[Copy], count: int) -> None:
        """Damage `count` copies, no chunk twice; the page cache of half of them is dropped.

        Kinds and forms (in a segment, in a file) take turns, each with the next copy that suits it: so every pair is
        done whatever ids, and so whatever order, chance gave to the copies. The pickiest kinds go first."""
        copies = sorted((copy for copy in copies if copy.data_bytes), key=lambda copy: (copy.chunk, copy.server))
        self._rng.shuffle(copies)
        kinds = (self._swap, self._stale, self._truncate, self._flip, self._flip_sums, self._flip_header)
        turns = [(kind, is_file) for kind in kinds for is_file in (False, True)]
        while turns and len(self.chunks) < count:
            turns = [turn for turn in turns if len(self.chunks) >= count or self._take_turn(*turn, copies)]

    def _take_turn(self, kind: Callable[[Copy, list[Copy]], bool], is_file: bool, copies: list[Copy]) -> bool:
        """False when no copy is left that this kind of damage can be done to."""
        for copy in copies:
            if copy.is_file == is_file and copy.chunk not in self.chunks and kind(copy, copies):
                name = f"{kind.__name__.strip('_')} in {'file' if is_file else 'segment'}"
                self.chunks[copy.chunk], self.copies[copy.chunk] = f"{name} on {copy.server}", copy
                self.done[name] += 1
                if self._rng.random() < 0.5:
                    _drop_cache(copy.path)
                return True
        return False

    def _flip(self, copy: Copy, _all: list[Copy]) -> bool:
        return self._flip_at(copy, copy.data_at, copy.data_bytes)

    def _flip_sums(self, copy: Copy, _all: list[Copy]) -> bool:
        return self._flip_at(copy, copy.sums_at, copy.sums_bytes)

    def _flip_header(self, copy: Copy, _all: list[Copy]) -> bool:
        # not the state byte: it is advice, and no sum covers it (the log decides)
        return self._flip_at(copy, copy.header_at + 8, 52)

    def _flip_at(self, copy: Copy, at: int, count: int) -> bool:
        where = at + self._rng.randrange(count)
        with open(copy.path, "r+b") as file:
            byte = os.pread(file.fileno(), 1, where)[0]
            os.pwrite(file.fileno(), bytes([byte ^ 1 << self._rng.randrange(8)]), where)
        return True

    def _swap(self, copy: Copy, _all: list[Copy]) -> bool:
        """Two blocks of the chunk trade places: each is whole, its sum is another's."""
        if copy.data_bytes < 2 * BLOCK_BYTES:
            return False
        with open(copy.path, "r+b") as file:
            first = os.pread(file.fileno(), BLOCK_BYTES, copy.data_at)
            second = os.pread(file.fileno(), BLOCK_BYTES, copy.data_at + BLOCK_BYTES)
            if first == second:
                return False
            os.pwrite(file.fileno(), second + first, copy.data_at)
        return True

    def _truncate(self, copy: Copy, _all: list[Copy]) -> bool:
        if not copy.is_file:
            return False
        os.truncate(copy.path, self._rng.randrange(copy.data_bytes))
        return True

    def _stale(self, copy: Copy, everything: list[Copy]) -> bool:
        """The bytes of another chunk with their own right sums, under this one's name."""
        other = next(
            (o for o in everything if o.data_bytes == copy.data_bytes and o.chunk != copy.chunk
             and o.is_file == copy.is_file and o.chunk not in self.chunks), None
        )  # fmt: skip
        if other is None:
            return False
        with open(other.path, "rb") as source, open(copy.path, "r+b") as target:
            stale = os.pread(source.fileno(), other.data_bytes, other.data_at)
            if stale == os.pread(target.fileno(), copy.data_bytes, copy.data_at):
                return False        # bodies of one byte may be the same
            os.pwrite(target.fileno(), stale, copy.data_at)
            os.pwrite(target.fileno(), os.pread(source.fileno(), other.sums_bytes, other.sums_at), copy.sums_at)
        return True


def _drop_cache(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def quarantined(c: Cluster) -> list[dict[str, object]]:
    """What lies in the quarantines of all devices, by their JSON files."""
    return [
        json.loads(path.read_bytes())
        for process in c.processes("objectd")
        for device in process.devices
        for path in (Path(device["path"]) / "quarantine").glob("*.json")
    ]
