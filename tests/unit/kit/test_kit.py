"""The kit's own promises: same seed same run; a proxy's faults are real; a power cut loses what was not synced."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from tests.kit.power import Volume
from tests.kit.proxy import FaultyLink
from tests.kit.virtual_time import VirtualLoop, run


def trace_of(seed: int) -> list[tuple[float, int]]:
    async def main(loop: VirtualLoop) -> list[tuple[float, int]]:
        seen: list[tuple[float, int]] = []

        async def worker(number: int) -> None:
            for _ in range(20):
                await asyncio.sleep(loop.random.choice([0, 1, 60]))
                seen.append((loop.time(), number))

        await asyncio.gather(*(worker(i) for i in range(5)))
        return seen

    return run(seed, main)


def test_the_same_seed_gives_the_same_run_and_time_costs_nothing() -> None:
    """A failure must replay from its seed."""
    started = time.monotonic()
    assert trace_of(1) == trace_of(1)
    assert trace_of(1) != trace_of(2)
    assert trace_of(3)[-1][0] > 100
    assert time.monotonic() - started < 120


def test_threads_and_deadlocks_are_refused_in_virtual_time() -> None:
    """Nothing undetermined, and no run that hangs."""

    async def threads(loop: VirtualLoop) -> None:
        await loop.run_in_executor(None, int)

    async def deadlock(loop: VirtualLoop) -> None:
        await loop.create_future()

    with pytest.raises(RuntimeError, match="threads"):
        run(1, threads)
    with pytest.raises(RuntimeError, match="deadlock"):
        run(1, deadlock)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65_536):
        writer.write(piece)
        await writer.drain()
    writer.close()


def test_a_faulty_link_passes_delays_drops_and_cuts() -> None:
    """Partitions and slow links are tested through it, so it must do what it says."""

    async def main() -> None:
        server = await asyncio.start_server(_echo, "127.0.0.1", 0)
        async with FaultyLink(server.sockets[0].getsockname()[1]) as link:
            reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
            writer.write(b"hello")
            assert await asyncio.wait_for(reader.readexactly(5), 60) == b"hello"
            link.set(delay_seconds=0.1)
            started = time.monotonic()
            writer.write(b"slow")
            assert await asyncio.wait_for(reader.readexactly(4), 60) == b"slow"
            assert time.monotonic() - started >= 0.19
            link.set(delay_seconds=0.0, drop="both")
            writer.write(b"held")
            held = asyncio.ensure_future(reader.readexactly(4))
            done, _ = await asyncio.wait({held}, timeout=0.2)
            assert not done
            link.set(drop="")
            assert await asyncio.wait_for(held, 60) == b"held"
            writer.close()
            await writer.wait_closed()
            link.set(cut_after_bytes=1000)
            reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
            writer.write(bytes(100_000))
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await asyncio.wait_for(reader.readexactly(100_000), 60)
            writer.transport.abort()
        server.close()
        await server.wait_closed()

    asyncio.run(main())


def test_a_power_cut_keeps_what_was_synced_and_only_that(tmp_path: Path) -> None:
    """The injector must lose un-synced bytes, else the durability tests prove nothing."""
    with Volume(tmp_path / "disk", size_mib=64) as volume:
        directory = os.open(volume.path, os.O_RDONLY)
        for name, is_synced in (("synced", True), ("lost", False)):
            fd = os.open(volume.path / name, os.O_CREAT | os.O_WRONLY)
            os.write(fd, b"x" * 100_000)
            if is_synced:
                os.fsync(fd)
                os.fsync(directory)
            os.close(fd)
        os.close(directory)
        volume.cut()
        volume.unmount()
        volume.mount()
        assert (volume.path / "synced").read_bytes() == b"x" * 100_000
        lost = volume.path / "lost"
        assert not lost.exists() or lost.read_bytes() != b"x" * 100_000
