"""A cluster and a mount of it that every user may enter, for public suites that test file systems by commands.

    python -m tests.kit.fsuite DIR [--postgres] [FLAG...]       mounts a bucket on DIR/mount, with these flags of
                                                                `tierstore mount`; ends by Ctrl-C or SIGTERM
    cd DIR/mount && prove -r SUITE/tests                        as root; SUITE: a checkout of pjdfstest, its tool made

With --postgres names are in a PostgreSQL of its own, else in SQLite.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.kit.cluster import cluster
from tests.kit.mount import mounted
from tests.kit.postgres import PostgresServer

BUCKET = "files"


@contextlib.contextmanager
def _database(wanted: bool) -> Iterator[list[str]]:
    """The flags of `tierstore up` that name the database."""
    if not wanted:
        yield []
        return
    server = PostgresServer()
    try:
        yield ["--database-url", asyncio.run(server.create_database())]
    finally:
        server.stop()


def main() -> None:
    directory, flags = Path(sys.argv[1]), sys.argv[2:]
    postgres = "--postgres" in flags
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    directory.mkdir(parents=True, exist_ok=True)
    with _database(postgres) as database, cluster(directory / "cluster", *database) as running:
        headers = {"Authorization": f"Bearer {running.token}"}
        answer = httpx.put(f"{running.gateway}/v1/buckets/{BUCKET}", headers=headers, timeout=180)
        if answer.status_code not in (201, 409):
            raise SystemExit(f"the bucket was not made: {answer.status_code} {answer.text}")
        with mounted(running, BUCKET, directory / "mount", *(f for f in flags if f != "--postgres")) as mount:
            print(f"mounted on {mount.path}", flush=True)
            ended.wait()


if __name__ == "__main__":
    main()
