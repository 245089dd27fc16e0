"""The parts of the store alone: records, open files, the spindle, the index."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from pathlib import Path

import pytest

from objectd.store import records
from objectd.store.committer import Appended, InlineCommitter, ThreadCommitter
from objectd.store.index import Index, pack, unpack
from objectd.store.openfiles import Handle, OpenFiles
from objectd.store.settings import StoreSettings
from objectd.store.slow import NEAR_BYTES, Spindle
from tierstore.checksum import combine_sums, sums_of
from tierstore.errors import ConfigError, IntegrityError


def test_every_flipped_bit_of_a_record_is_noticed() -> None:
    """A record that is not as it was written must never pass recovery's check."""
    rng = random.Random(4)
    data, hint, name = rng.randbytes(300), b"b/k", rng.randbytes(16)
    sums = sums_of(data)
    head = records.chunk_head(name, len(data), sums, hint, state=records.LIVE, wall_ms=7, segment=3, offset=128,
                              data_crc=combine_sums(sums, len(data)), seed=9)
    assert records.live_length(head, name, segment=3, offset=128, seed=9) == 300
    assert head.startswith(records.prefix_of(name, 300))
    raw = head + sums + data + hint
    assert records.chunk_record_bytes(300, 3) == records.aligned(len(raw))

    def is_good(blob: bytes) -> bool:
        header = records.parse(blob, segment=3, offset=128, seed=9)
        return header is not None and records.has_good_body(header, blob[64:68], blob[68:368], blob[368:371])

    assert is_good(raw)
    for at in range(len(raw)):
        if at == 6:     # the state byte: advice only
            continue
        changed = bytearray(raw)
        changed[at] ^= 1 << (at % 8)
        assert not is_good(bytes(changed)), at


def test_a_footer_is_valid_only_at_the_end_of_its_own_file() -> None:
    """A footer within a longer file, or of another chunk, must not make an unfinished file whole."""
    name, other, data = b"n" * 16, b"o" * 16, bytes(1000)
    sums = sums_of(data)
    raw = records.footer(name, 1000, sums, b"h", wall_ms=1, data_crc=combine_sums(sums, 1000), seed=2)
    size = records.file_bytes(1000, 1)
    assert records.parse_footer(raw, file_bytes_all=size, chunk=name, seed=2) is not None
    assert records.parse_footer(raw, file_bytes_all=size + 8, chunk=name, seed=2) is None
    assert records.parse_footer(raw, file_bytes_all=size, chunk=other, seed=2) is None
    assert records.parse_footer(raw, file_bytes_all=size, chunk=name, seed=3) is None


def test_a_descriptor_is_closed_once_its_last_reader_has_gone(tmp_path: Path) -> None:
    """Closed too early, its number is another file's: wrong bytes; never closed, descriptors run out."""
    table = OpenFiles(2)
    fds = [os.open(tmp_path / str(n), os.O_RDWR | os.O_CREAT) for n in range(3)]
    first = table.add(0, Handle(fds[0]))
    first.acquire()
    table.add(1, Handle(fds[1]))
    table.add(2, Handle(fds[2]))
    assert table.get(0) is None and len(table) == 2
    os.fstat(fds[0])
    first.release()
    with pytest.raises(OSError):
        os.fstat(fds[0])
    again = os.open(tmp_path / "1", os.O_RDONLY)
    kept = table.add(1, Handle(again))
    assert kept.fd == fds[1]
    with pytest.raises(OSError):
        os.fstat(again)
    table.close()
    with pytest.raises(OSError):
        os.fstat(fds[2])


def test_the_spindle_charges_seeks_and_bytes() -> None:
    """The demonstration of tiering is only honest if a jump costs a seek and a run does not."""
    slept: list[float] = []
    arm = Spindle(seek_ms=8, bytes_per_second=1_000_000, sleep=slept.append)
    arm.transfer(1, 0, 1000)
    arm.transfer(1, 1000, 1000)
    arm.transfer(1, 2000 + NEAR_BYTES, 0)
    arm.transfer(1, 0, 0)
    arm.transfer(2, 0, 500)
    assert slept == pytest.approx([0.009, 0.001, 0.0, 0.008, 0.0085])
    assert arm.seeks == 3


def test_the_index_keeps_entries_figures_and_marks_together(tmp_path: Path) -> None:
    """A mark ahead of its entries would lose chunks at the next start."""
    path = str(tmp_path / "index")
    index = Index.open(path, uuid=b"u" * 16, map_bytes=1 << 24)
    for n in range(10):
        index.apply(bytes((n,)) * 16, pack(1, n * 8, 100, 200, 5, records.LIVE, 1), None)
    index.advance(1, 80)
    flush = index.take()
    assert flush is not None and index.take() is None       # one at a time
    index.apply(b"\x03" * 16, b"", index.lookup(b"\x03" * 16))
    index.advance(1, 144)
    index.write(flush)
    index.done()
    assert index.lookup(b"\x03" * 16) is None and index.figures.chunks == 9
    index.close()       # without the second flush: as a kill would leave it
    index = Index.open(path, uuid=b"u" * 16, map_bytes=1 << 24)
    assert index.applied == (1, 80) and index.figures.chunks == 10
    assert index.figures.live_bytes == 2000 and index.figures.segments[1].used == 2000
    assert [k[0] for k, _ in index.iterate(b"\x04" * 16)] == [5, 6, 7, 8, 9]
    assert unpack(index.lookup(b"\x02" * 16) or b"").offset == 16
    index.close()
    with pytest.raises(IntegrityError):
        Index.open(path, uuid=b"v" * 16, map_bytes=1 << 24)


def test_a_failed_flush_does_not_hide_newer_entries(tmp_path: Path) -> None:
    """What was applied while the flush was under way is newer than what comes back from it."""
    index = Index.open(str(tmp_path / "index"), uuid=b"u" * 16, map_bytes=1 << 24)
    old, new = pack(1, 0, 1, 1, 1, records.LIVE, 1), pack(2, 8, 1, 1, 1, records.LIVE, 1)
    index.apply(b"a" * 16, old, None)
    index.apply(b"b" * 16, old, None)
    flush = index.take()
    assert flush is not None
    index.apply(b"a" * 16, new, index.lookup(b"a" * 16))
    index.failed(flush)
    assert index.lookup(b"a" * 16) == new and index.lookup(b"b" * 16) == old
    index.close()


def test_settings_that_cannot_work_are_refused() -> None:
    """A segment must hold at least one record."""
    with pytest.raises(ConfigError):
        StoreSettings(segment_chunk_bytes_max=1 << 20, segment_bytes_max=1 << 20)
    with pytest.raises(ConfigError):
        StoreSettings(segment_chunk_bytes_max=1)
    assert StoreSettings().reserve_of(1 << 40) == 1 << 30
    assert StoreSettings(reserve_bytes=5).reserve_of(1 << 40) == 5


@pytest.mark.parametrize("committer", ["thread", "inline"])
def test_after_a_failed_sync_nothing_more_is_settled_as_durable(
    committer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was appended while the failing sync ran waits for the next one, which would say ok (rule 2)."""
    calls: list[int] = []

    def fails_once(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(errno.EIO, "planted")

    monkeypatch.setattr(os, "fdatasync", fails_once)

    async def walk() -> None:
        loop = asyncio.get_running_loop()
        settled: list[OSError | None] = []
        arrived = asyncio.Event()

        def settle(group: list[Appended], failure: OSError | None) -> None:
            settled.append(failure)
            arrived.set()

        made = ThreadCommitter(loop, settle, name="test") if committer == "thread" else InlineCommitter(settle)
        for number in range(3):
            arrived.clear()
            made.submit([Appended(loop.create_future(), (99, 1, number, number + 1), b"", None)])
            async with asyncio.timeout(60):
                await arrived.wait()
        made.close()
        assert [failure and failure.errno for failure in settled] == [errno.EIO] * 3
        assert len(calls) == 1

    asyncio.run(walk())
