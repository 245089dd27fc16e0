"""Request files, the pool of bodies, and one run of the C replayer against a target.

Object number i of a size is always the same part of the pool, so that the replayer can compare what it reads byte for
byte; every PUT of a run writes a body and a key that were never written before.
"""

from __future__ import annotations

import http.client
import json
import random
import selectors
import struct
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.processes import busy_seconds, cpu_by_process, role, steal_seconds

K, M = 1 << 10, 1 << 20
POOL_BYTES = 96 * M
_RECORD = struct.Struct("<IBBHQQqq")


def build_replay(directory: Path) -> Path:
    """Compile the replayer; needs gcc."""
    program = directory / "replay"
    subprocess.run(["gcc", "-O2", "-o", str(program), str(Path(__file__).with_name("replay.c"))], check=True)
    return program


def build_pool(directory: Path) -> Path:
    """The file that all bodies are parts of."""
    path = directory / "pool.bin"
    source = random.Random(20091117)
    with open(path, "wb") as file:
        for _ in range(POOL_BYTES // M):
            file.write(source.randbytes(M))
    return path


def body_offset(number: int, size: int) -> int:
    return (number * 7919 * 64) % (POOL_BYTES - size)


@dataclass
class Target:
    """A server under load. base: the path before the key. pid: its process; its children count, and so do those of
    more_pids."""

    name: str
    port: int
    base: str
    pid: int
    headers: dict[str, str] = field(default_factory=dict)
    list_query: str = "limit={count}&prefix={prefix}&start_after={after}"
    more_pids: tuple[int, ...] = ()

    def head(self, method: str, path: str, length: int | None = None) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        if length is not None:
            lines += [f"Content-Length: {length}", "Content-Type: application/octet-stream"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode()

    def ask(self, method: str, path: str) -> tuple[int, bytes]:
        """One plain request, for checks."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, headers=self.headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


class RequestFile:
    """Requests as the replayer reads them (struct rec in replay.c)."""

    def __init__(self, path: Path, target: Target) -> None:
        self.path = path
        self._target = target
        self._count = 0
        self._file = open(path, "wb", buffering=M)      # noqa: SIM115 - closed by close()
        self._file.write(b"RPL1\0\0\0\0")

    def _add(
        self, head: bytes, is_head: int = 0, expect: int = 0, offset: int = 0, length: int = 0, answer: int = -1,
        verify: int = -1,
    ) -> None:  # fmt: skip
        self._file.write(_RECORD.pack(len(head), is_head, 0, expect, offset, length, answer, verify))
        self._file.write(head)
        self._count += 1

    def put(self, key: str, number: int, size: int) -> None:
        head = self._target.head("PUT", f"{self._target.base}/{key}", size)
        self._add(head, offset=body_offset(number, size), length=size)

    def get(self, key: str, number: int, size: int) -> None:
        head = self._target.head("GET", f"{self._target.base}/{key}")
        self._add(head, expect=200, answer=size, verify=body_offset(number, size))

    def head(self, key: str, size: int) -> None:
        self._add(self._target.head("HEAD", f"{self._target.base}/{key}"), is_head=1, expect=200, answer=size)

    def delete(self, key: str) -> None:
        self._add(self._target.head("DELETE", f"{self._target.base}/{key}"))

    def list(self, prefix: str, after: str, count: int) -> None:
        query = self._target.list_query.format(prefix=prefix, after=after, count=count)
        self._add(self._target.head("GET", f"{self._target.base}?{query}"), expect=200)

    def close(self) -> Path:
        self._file.seek(4)
        self._file.write(struct.pack("<I", self._count))
        self._file.close()
        return self.path


@dataclass(frozen=True)
class Played:
    """What one window showed. cpu_ms: of all server processes per operation; by_role: the same, by kind of process."""

    operations: int
    rate: float
    megabytes_rate: float
    cpu_ms: float
    by_role: dict[str, float]
    p50_ms: float
    p99_ms: float
    wrong: int              # errors, bodies that differ, wrong lengths
    steal: float            # share of the machine's time that the host took
    others: float           # cores that neither the server nor the replayer used
    done: bytes             # one byte per request: answered well


class Replayer:
    """Owns the compiled program and the pool in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._program = build_replay(directory)
        self._pool = build_pool(directory)

    def requests(self, target: Target) -> RequestFile:
        return RequestFile(self._directory / f"{target.name}.requests", target)

    def play(
        self, target: Target, requests: Path, *, connections: int, seconds: float, warmup: float = 0.0,
        order: Sequence[int] = (), loop: bool = False, verify: int = 100,
    ) -> Played:  # fmt: skip
        """One window. Raises RuntimeError when the replayer failed."""
        done = self._directory / f"{target.name}.done"
        errors = self._directory / f"{target.name}.errors"
        command = [
            str(self._program), "127.0.0.1", str(target.port), str(requests), str(self._pool),
            "--conns", str(connections), "--secs", str(seconds), "--warmup", str(warmup), "--verify", str(verify),
            "--done-to", str(done), "--errors-to", str(errors),
        ]  # fmt: skip
        if order:
            sequence = self._directory / f"{target.name}.order"
            sequence.write_bytes(struct.pack(f"<{len(order)}I", *order))
            command += ["--seq", str(sequence)]
        if loop:
            command.append("--loop")
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            found, window = self._watch(process, (target.pid, *target.more_pids))
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        if process.returncode:
            raise RuntimeError(f"the replayer ended with {process.returncode} on {target.name}")
        wrong = found["errors"] + found["mismatched"] + found["bad_length"]
        count = max(found["ops"], 1)
        latencies = found.get("lat_ms") or {}
        by_role: dict[str, float] = {}
        for pid, spent in window.cpu.items():
            by_role[role(pid)] = by_role.get(role(pid), 0.0) + spent * 1e3 / count
        cpu = sum(window.cpu.values())
        return Played(
            operations=found["ops"], rate=found["ops_s"], megabytes_rate=found["mb_s"], cpu_ms=cpu * 1e3 / count,
            by_role=by_role, p50_ms=latencies.get("p50", 0.0), p99_ms=latencies.get("p99", 0.0), wrong=wrong,
            steal=window.steal / window.seconds, others=max(window.busy - cpu - found["gen_cpu_s"], 0) / window.seconds,
            done=done.read_bytes() if done.exists() else b"",
        )  # fmt: skip

    @staticmethod
    def _watch(process: subprocess.Popen[bytes], pids: tuple[int, ...]) -> tuple[dict[str, Any], _Window]:
        """Read what it prints; between START and END is the measured window."""
        assert process.stdout is not None
        text, window = b"", _Window(pids)
        selector = selectors.DefaultSelector()
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(120):
            piece = process.stdout.read1(65536)     # type: ignore[attr-defined]  # a BufferedReader
            if not piece:
                break
            text += piece
            if b"START\n" in text:
                window.begin()
            if b"END\n" in text:
                window.end()
        return json.loads(text.partition(b"END\n")[2] or b"{}"), window


class _Window:
    """CPU of the server's processes, of the machine, and what the host took, between begin() and end()."""

    def __init__(self, pids: tuple[int, ...]) -> None:
        self._pids = pids
        self._before: tuple[dict[int, float], float, float, float] | None = None
        self.cpu: dict[int, float] = {}
        self.steal = self.busy = 0.0
        self.seconds = 1e-9

    def begin(self) -> None:
        if self._before is None:
            self._before = self._spent(), steal_seconds(), busy_seconds(), time.monotonic()

    def _spent(self) -> dict[int, float]:
        return {pid: spent for root in self._pids for pid, spent in cpu_by_process(root).items()}

    def end(self) -> None:
        if self._before is None or self.cpu:
            return
        cpu, steal, busy, at = self._before
        self.seconds = time.monotonic() - at
        self.cpu = {pid: spent - cpu.get(pid, 0.0) for pid, spent in self._spent().items()}
        self.steal = steal_seconds() - steal
        self.busy = busy_seconds() - busy
