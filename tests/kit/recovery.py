"""A cluster whose catalog was lost: its object servers alone, and the metadata commands that bring the names back."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.kit.cluster import Cluster, wait_until

COMMAND_SECONDS = 300.0
STOP_SECONDS = 120.0


def config(c: Cluster, name: str) -> Path:
    return c.data / "cluster" / "config" / f"{name}.toml"


def catalog(c: Cluster) -> Path:
    """Directory of the embedded catalog."""
    return c.data / "cluster" / "metadata"


def journalled(c: Cluster) -> tuple[int, int]:
    """(sequence up to which snapshot and journal go, the feed's head), read beside the running service."""
    connection = sqlite3.connect(f"file:{catalog(c)}/catalog.db?mode=ro", uri=True, timeout=120)
    try:
        row = connection.execute("SELECT value FROM settings WHERE name = 'snapshots'").fetchone()
        head = connection.execute("SELECT sequence FROM feed_head").fetchone()[0]
    finally:
        connection.close()
    return max((piece[1] for piece in json.loads(row[0])), default=0) if row else 0, int(head)


def wait_journalled(c: Cluster) -> None:
    """Until everything written so far is in a copy of the catalog on the object servers."""
    _, head = journalled(c)
    wait_until(lambda: journalled(c)[0] >= head, seconds=60, what="snapshot and journal on the object servers")


def lose_catalog(c: Cluster) -> None:
    shutil.rmtree(catalog(c))


def metadata(c: Cluster, command: str, *arguments: str) -> str:
    """Run `python -m metadata COMMAND`; its report. Fails with its complaint."""
    done = subprocess.run(
        [sys.executable, "-m", "metadata", command, *arguments, "--config", str(config(c, "metadata1"))],
        capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"metadata {command} ended with {done.returncode}:\n{done.stdout}{done.stderr[-6000:]}"
    return done.stdout


@contextlib.contextmanager
def object_servers_only(c: Cluster) -> Iterator[None]:
    """The object servers of a stopped cluster, by themselves; stopped in the end."""
    names = [p.name for p in c.processes("objectd")]
    with contextlib.ExitStack() as stack:
        running = []
        for name in names:
            log = stack.enter_context(open(c.data / f"{name}-alone.log", "ab"))
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "objectd", "--config", str(config(c, name))], stdout=log, stderr=log
                )
            )
        try:
            yield
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait(STOP_SECONDS)
