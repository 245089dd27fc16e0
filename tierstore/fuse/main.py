"""Builds a mount and runs it: store, tree, mount, event loop. The only place of the package that builds things."""

from __future__ import annotations

import asyncio
import ctypes
import random
import secrets
import sys
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import uvloop

from tierstore.files.remote import PATIENCE_SECONDS
from tierstore.files.tree import Tree
from tierstore.fuse.mount import Mount
from tierstore.fuse.operations import Owner
from tierstore.sdk.connect import connect
from tierstore.sdk.limits import StoreLimits
from tierstore.serving.daemon import settle
from tierstore.telemetry.log import configure

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
LARGE_BYTES: Final = 512 << 10


@dataclass(frozen=True, slots=True)
class Wish:
    """What to mount where. budget_bytes: bound of written and read-ahead bytes; cache_seconds: 0 is off;
    patience_seconds: that a call waits for a cluster that does not answer; sync: when what was written is durable at
    the latest."""

    endpoint: str
    token: str = field(repr=False)
    bucket: str
    directory: str
    allow_other: bool
    budget_bytes: int
    cache_seconds: float
    patience_seconds: float
    sync: Literal["close", "interval"]
    uid: int
    gid: int


def serve(wish: Wish) -> None:
    """Mount and serve until unmounted. Raises ConfigError, NotFound(no-such-bucket), AccessDenied."""
    configure(role="mount")
    keep_memory_small()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(wish))


def keep_memory_small() -> None:
    """Large buffers are given back to the system when they are freed. Left alone, the C library raises the size from
    which it does so with each one that it sees, and keeps what it has: half as much again as the budget."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, LARGE_BYTES)


async def _serve(wish: Wish) -> None:
    limits = replace(
        StoreLimits().waiting(wish.patience_seconds / PATIENCE_SECONDS), metadata_hold_seconds=wish.patience_seconds
    )
    store = await connect(wish.endpoint, wish.token, limits=limits, may_go_through=False)
    try:
        tree = await Tree(
            store, wish.bucket, mount=secrets.token_hex(8), rng=random.Random(secrets.randbits(64)),
            budget_bytes=wish.budget_bytes, cache_seconds=wish.cache_seconds,
            patience_seconds=wish.patience_seconds,
        ).open()  # fmt: skip
        await store.reserve()
        if wish.sync == "interval":
            tree.commit_behind()
        mount = Mount(
            tree, wish.directory, owner=Owner(wish.uid, wish.gid), allow_other=wish.allow_other,
            name=f"tierstore#{wish.bucket}",
        )  # fmt: skip

        def ready() -> None:
            settle()
            print(f"{wish.bucket} is mounted on {wish.directory}", file=sys.stderr, flush=True)

        await mount.run(ready)
    finally:
        await store.close()
