"""Builds a mount and runs it: store, tree, mount, event loop. The only place of the package that builds things."""

from __future__ import annotations

import asyncio
import random
import secrets
import sys
from dataclasses import dataclass, field

import uvloop

from tierstore.files.tree import Tree
from tierstore.fuse.mount import Mount
from tierstore.fuse.operations import Owner
from tierstore.sdk.connect import connect


@dataclass(frozen=True, slots=True)
class Wish:
    """What to mount where. budget_bytes: bound of written and read-ahead bytes; cache_seconds: 0 is off."""

    endpoint: str
    token: str = field(repr=False)
    bucket: str
    directory: str
    allow_other: bool
    budget_bytes: int
    cache_seconds: float
    uid: int
    gid: int


def serve(wish: Wish) -> None:
    """Mount and serve until unmounted. Raises ConfigError, NotFound(no-such-bucket), AccessDenied."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(wish))


async def _serve(wish: Wish) -> None:
    store = await connect(wish.endpoint, wish.token, may_go_through=False)
    try:
        tree = await Tree(
            store, wish.bucket, mount=secrets.token_hex(8), rng=random.Random(secrets.randbits(64)),
            budget_bytes=wish.budget_bytes, cache_seconds=wish.cache_seconds,
        ).open()  # fmt: skip
        await store.reserve()
        mount = Mount(
            tree, wish.directory, owner=Owner(wish.uid, wish.gid), allow_other=wish.allow_other,
            name=f"tierstore#{wish.bucket}",
        )  # fmt: skip
        await mount.run(lambda: print(f"{wish.bucket} is mounted on {wish.directory}", file=sys.stderr, flush=True))
    finally:
        await store.close()
