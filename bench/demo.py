"""`make demo`: the main job on real input. Stores the files of this Python, and loses an object server meanwhile.

What it does, on a cluster of its own in a temporary directory: starts `tierstore up` -> stores every file of the Python
installation -> lists them -> reads all back and compares, and half-way kills an object server for good -> shows that
every read succeeded -> waits until redundancy is rebuilt on the others -> prints what it measured. Exit 1 if any byte
was wrong, any read failed, or redundancy did not come back.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from tierstore.errors import TierstoreError
from tierstore.sdk import Store, connect
from tierstore.units import GIB, format_size

AT_ONCE: Final = 16
START_SECONDS_MAX: Final = 60
#: Without one more copy for so long, rebuilding counts as stuck; how long it takes in all is the machine's affair.
STUCK_SECONDS_MAX: Final = 120
PROGRESS_SECONDS: Final = 15.0
BUCKET: Final = "python"


def say(text: str) -> None:
    print(text, flush=True)


def files_of_python(bytes_max: int) -> list[tuple[Path, str]]:
    """Regular files of the installation with their keys, at most `bytes_max` in all."""
    roots = {Path(sysconfig.get_path("stdlib")), Path(sys.executable).resolve().parent}
    roots.add(Path(sysconfig.get_path("platlib")))
    found: dict[str, Path] = {}
    total = 0
    for root in sorted(roots):
        for directory, directories, names in os.walk(root):
            directories.sort()
            for name in sorted(names):
                path = Path(directory, name)
                if path.is_symlink() or not path.is_file() or not os.access(path, os.R_OK):
                    continue
                total += path.stat().st_size
                if total > bytes_max:
                    return [(path, key) for key, path in found.items()]
                found[path.as_posix().lstrip("/")] = path
    return [(path, key) for key, path in found.items()]


def free_port_base() -> int:
    """A base whose ports are all free now."""
    for base in range(21_400, 60_000, 200):
        if all(_is_free(base + offset) for offset in (0, 11, 12, 13, 80)):
            return base
    raise SystemExit("no free ports on loopback")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def cluster(directory: Path) -> Iterator[tuple[dict[str, Any], float]]:
    """A running cluster whose dead processes stay dead, and the seconds it took to be ready."""
    ready_file = directory / "ready.json"
    command = [sys.executable, "-m", "tierstore.cli.main", "up", "--data", str(directory / "data"),
               "--port-base", str(free_port_base()), "--ready-file", str(ready_file), "--no-restart"]  # fmt: skip
    began = time.perf_counter()
    with (directory / "up.log").open("wb") as log:
        up = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        while not ready_file.exists():
            if up.poll() is not None or time.perf_counter() - began > START_SECONDS_MAX:
                raise SystemExit(f"the cluster did not start:\n{(directory / 'up.log').read_text()}")
            time.sleep(0.02)
        yield json.loads(ready_file.read_text()), time.perf_counter() - began
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(60)


async def run(ready: dict[str, Any], files: list[tuple[Path, str]]) -> dict[str, Any]:
    """The demo itself; what it measured."""
    site = ready["sites"][0]
    figures: dict[str, Any] = {"files": len(files)}
    async with httpx.AsyncClient(
        base_url=site["gateway"], headers={"authorization": f"Bearer {ready['token']}"}, timeout=30, trust_env=False
    ) as http:
        (await http.put(f"/v1/buckets/{BUCKET}")).raise_for_status()
        store = await connect(site["gateway"], ready["token"])
        try:
            hashes = await _store_all(store, files, figures)
            await _list_all(store, hashes, figures)
            wanted = await _all_copies(http)
            victim = next(process for process in site["processes"] if process["role"] == "objectd")
            lost_at = time.perf_counter()
            await _read_all(store, hashes, victim, figures)
            await _wait_rebuilt(http, victim["name"], wanted, lost_at, figures)
            await _read_all(store, hashes, None, figures)
        finally:
            await store.close()
    return figures


async def _store_all(store: Store, files: list[tuple[Path, str]], figures: dict[str, Any]) -> dict[str, str]:
    hashes: dict[str, str] = {}
    waiting = iter(files)
    began = time.perf_counter()
    total = 0

    async def worker() -> None:
        nonlocal total
        for path, key in waiting:
            body = path.read_bytes()
            await store.put(BUCKET, key, body)
            hashes[key] = hashlib.sha256(body).hexdigest()
            total += len(body)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    took = time.perf_counter() - began
    figures |= {"bytes": total, "store_seconds": round(took, 2)}
    say(f"stored    {len(hashes):,} files, {format_size(total)}, in {took:.1f} s "
        f"({len(hashes) / took:,.0f} files/s, {format_size(total / took)}/s), each synced on 2 servers")  # fmt: skip
    return hashes


async def _list_all(store: Store, hashes: dict[str, str], figures: dict[str, Any]) -> None:
    began = time.perf_counter()
    keys = [entry.key async for entry in store.list(BUCKET)]
    took = time.perf_counter() - began
    if keys != sorted(hashes, key=str.encode):
        raise SystemExit("the listing is not what was stored")
    figures["list_seconds"] = round(took, 3)
    say(f"listed    {len(keys):,} keys in {took * 1e3:.0f} ms")


async def _read_all(
    store: Store, hashes: dict[str, str], victim: dict[str, Any] | None, figures: dict[str, Any]
) -> None:
    """Read everything and compare; when a victim is given, kill it half-way."""
    waiting = iter(list(hashes))
    wrong: list[str] = []
    failed: list[str] = []
    slowest = 0.0
    count = total = 0
    began = time.perf_counter()

    async def worker() -> None:
        nonlocal count, total, slowest
        for key in waiting:
            start = time.perf_counter()
            digest = hashlib.sha256()
            try:
                async with await store.get(BUCKET, key) as reader:
                    while piece := await reader.next_piece():
                        digest.update(piece)
                        total += len(piece)
            except TierstoreError as error:
                failed.append(f"{key}: {error}")
                continue
            slowest = max(slowest, time.perf_counter() - start)
            if digest.hexdigest() != hashes[key]:
                wrong.append(key)
            count += 1
            if victim is not None and count == len(hashes) // 2:
                os.kill(victim["pid"], signal.SIGKILL)
                say(f"killed    {victim['name']} (kill -9) after {count:,} reads; it stays dead")

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    took = time.perf_counter() - began
    when = "while" if victim is not None else "after"
    figures[f"reads_{when}_loss"] = {
        "right": count - len(wrong), "wrong": len(wrong), "failed": len(failed), "seconds": round(took, 2),
        "slowest_ms": round(slowest * 1e3, 1),
    }  # fmt: skip
    say(f"read      {count:,} files, {format_size(total)}, in {took:.1f} s: {len(wrong)} wrong, {len(failed)} failed, "
        f"slowest {slowest * 1e3:.0f} ms")  # fmt: skip
    if wrong or failed:
        raise SystemExit("\n".join([*wrong[:5], *failed[:5]]))


async def _copies(http: httpx.AsyncClient) -> tuple[int, dict[str, str]]:
    """How many chunks lie on servers that are up, as those report them, and the state of every server."""
    answer = await http.get("/v1/admin/servers")
    answer.raise_for_status()
    servers = [server for server in answer.json()["servers"] if server["role"] == "objectd"]
    chunks = sum(device["chunks"] for server in servers if server["state"] == "up" for device in server["devices"])
    return chunks, {server["name"]: server["state"] for server in servers}


async def _all_copies(http: httpx.AsyncClient) -> int:
    """The copies of everything that is stored: the figure does not change any more when all servers have reported."""
    last = -1
    while True:
        copies, _ = await _copies(http)
        if copies == last:
            return copies
        last = copies
        await asyncio.sleep(2.5)        # more than two heartbeats


async def _wait_rebuilt(
    http: httpx.AsyncClient, name: str, wanted: int, lost_at: float, figures: dict[str, Any]
) -> None:
    """Until the servers that are left hold as many copies as all held before."""
    say("waiting   for the copies of the dead server to be made again (dead after 20 s, grace 20 s, then repair) ...")
    told_at = moved_at = time.perf_counter()
    most = 0
    while time.perf_counter() - moved_at < STUCK_SECONDS_MAX:
        copies, states = await _copies(http)
        if copies > most:
            most, moved_at = copies, time.perf_counter()
        if time.perf_counter() - told_at >= PROGRESS_SECONDS:
            told_at = time.perf_counter()
            say(f"          {name} is {states[name]}; {copies:,} of {wanted:,} copies")
        if states[name] == "dead" and copies >= wanted:
            took = time.perf_counter() - lost_at
            figures |= {"rebuild_seconds": round(took, 1), "copies": copies}
            say(f"rebuilt   {copies:,} copies of chunks, as before the loss, {took:.1f} s after it")
            return
        await asyncio.sleep(0.5)
    raise SystemExit(f"no copy more for {STUCK_SECONDS_MAX} s: {most:,} of {wanted:,} copies")


def main() -> None:
    parser = argparse.ArgumentParser(description="Store the files of this Python, lose a server, read everything back.")
    parser.add_argument("--bytes-max", type=int, default=1 * GIB, help="store at most so many bytes")
    parser.add_argument("--files-max", type=int, default=4_000, help="store at most so many files")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON at the end")
    options = parser.parse_args()
    files = files_of_python(options.bytes_max)[: options.files_max]
    directory = Path(tempfile.mkdtemp(prefix="tierstore-demo-"))
    try:
        say(f"starting  a cluster of 3 object servers, 2 copies, in {directory}")
        with cluster(directory) as (ready, seconds):
            say(f"ready     in {seconds:.1f} s")
            figures = asyncio.run(run(ready, files))
            figures["ready_seconds"] = round(seconds, 2)
        if options.json:
            say(json.dumps(figures))
        say("done      nothing was lost")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
