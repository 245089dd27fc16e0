"""A mount's life: mounted, served, its caches kept true by the change feed, unmounted; nothing is left behind.

Owns the watch (one long poll at metadata), the invalidations in the kernel (one thread, because a notification may
wait for a request that the loop has yet to answer) and the flusher of bytes that nobody syncs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pyfuse3
import pyfuse3.asyncio

from tierstore.errors import ConfigError, TierstoreError
from tierstore.files.tree import Tree
from tierstore.fuse.ahead import read_far_ahead
from tierstore.fuse.operations import Operations, Owner
from tierstore.fuse.readable import Readable
from tierstore.telemetry.log import get_logger
from tierstore.wire.files import Changed, Watch

log = get_logger("mount")

#: Below the time that one attempt at metadata is given.
WATCH_SECONDS: Final = 3.0
WATCH_PAUSE_SECONDS: Final = 1.0
FLUSH_SECONDS: Final = 1.0
#: Invalidations on their way to the kernel; beyond, timeouts of one second take over.
NOTICES_MAX: Final = 10_000
NOTICES_PAUSE_SECONDS: Final = 0.05
#: Requests of the kernel in work at once: each holds a buffer of a request's size.
REQUESTS_MAX: Final = 48
STOP_SECONDS: Final = 15.0
#: Programs that have files open get so long after the unmounting was asked for.
BUSY_SECONDS: Final = 5.0


class Mount:
    """One mounted bucket."""

    def __init__(self, tree: Tree, directory: str, *, owner: Owner, allow_other: bool, name: str) -> None:
        self._tree = tree
        self._directory = directory
        self._operations = Operations(tree, owner)
        self._allow_other = allow_other
        self._name = name
        self._notifier = ThreadPoolExecutor(1, "mount-notices")
        self._notices = 0
        self._readable = Readable()
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving: asyncio.Task[None] | None = None

    async def run(self, ready: Callable[[], None]) -> None:
        """Mount, call ready, serve until unmounted or told to stop. Raises ConfigError when it cannot mount."""
        release_stale(self._directory)
        self._tree.nodes.on_lost_name = self._lost_name
        pyfuse3.asyncio.enable()
        self._readable.install()
        options = {"default_permissions", f"fsname={self._name}", "subtype=tierstore"}
        if self._allow_other:
            options.add("allow_other")
        try:
            pyfuse3.init(self._operations, self._directory, options)
        except RuntimeError as error:
            raise ConfigError(f"{self._directory} cannot be mounted: {error}") from None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stopping.set)
        works = [
            self._watch(), self._flush_old(), self._stop_when_told(), self._read_far_ahead(),
            self._tree.compactor.run(),
        ]  # fmt: skip
        if self._tree.behind is not None:
            works.append(self._tree.behind.run())
        for work in works:
            task = loop.create_task(work)
            self._tasks.add(task)
        try:
            ready()
            self._serving = loop.create_task(pyfuse3.main(min_tasks=1, max_tasks=REQUESTS_MAX))
            await self._serving
        except asyncio.CancelledError:
            if not self._stopping.is_set():
                raise
            log.warning("files were still open; who has them gets errors from now on", directory=self._directory)
        finally:
            await self._end()

    async def _read_far_ahead(self) -> None:
        await self._operations.is_begun.wait()      # what the kernel agrees on at the beginning sets it, too
        read_far_ahead(self._directory)

    async def _stop_when_told(self) -> None:
        await self._stopping.wait()
        # A lazy unmount by the kernel ends the session loop; busy files keep working until they are closed, for a
        # while.
        await asyncio.get_running_loop().run_in_executor(None, unmount, self._directory)
        await asyncio.sleep(BUSY_SECONDS)
        if self._serving is not None:
            self._serving.cancel()

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._tree.close()
        except (TierstoreError, TimeoutError) as error:
            log.error("not everything written could be committed", error=str(error))
        self._notifier.shutdown(wait=False, cancel_futures=True)
        self._readable.forget()
        pyfuse3.close(unmount=True)

    # -- the change feed ------------------------------------------------------------------------------------
    async def _watch(self) -> None:
        """Follow what others change. While the feed is away, the kernel is told to keep things for a second only."""
        after = -1
        tree = self._tree
        while True:
            try:
                seen = await tree.remote.watch(
                    Watch(tree.bucket, after, tree.mount, 0.0 if after < 0 else WATCH_SECONDS)
                )
            except (TierstoreError, TimeoutError) as error:
                if tree.is_watched:
                    log.warning("the change feed is lost; names and attributes are kept for a second", error=str(error))
                    tree.is_watched = False
                    await self._forget_everything()
                await asyncio.sleep(WATCH_PAUSE_SECONDS)
                continue
            is_cut = seen.resync or (not tree.is_watched and after >= 0)
            if is_cut:
                await self._forget_everything()
            tree.is_watched = True
            await tree.absent.attach(seen.place)
            after = seen.sequence
            tree.whereabouts.note(seen.changes)
            for change in seen.changes:
                self._changed(change)
            await tree.look_after(None if is_cut else seen.changes)

    def _changed(self, change: Changed) -> None:
        """Somebody changed a name: what the kernel and the tree keep of it is old."""
        tree = self._tree
        # A version of ours tells nothing new, unless somebody removed it or changed its attributes.
        if tree.is_own(change.version) and not change.gone and not change.attributes_only:
            return
        node = tree.nodes.at(change.path)
        if node is None or node.pending:
            return
        node.checked_at = -1e9
        if change.path and (change.gone or not (change.directory or change.attributes_only)):
            above, _, name = change.path.rpartition("/")
            parent = tree.nodes.at(above)
            assert parent is not None, "it was passed on the way to the node"
            self._notify(pyfuse3.invalidate_entry, parent.ino, name.encode())
        self._notify(pyfuse3.invalidate_inode, node.ino, change.directory or change.attributes_only)

    def _lost_name(self, parent: int, name: str) -> None:
        """What the feed is going to tell of the name finds no file there any more, so nothing to invalidate."""
        self._notify(pyfuse3.invalidate_entry, parent, name.encode())

    async def _forget_everything(self) -> None:
        """What the kernel holds was promised for as long as the feed runs; it was cut, so the promise ends."""
        nodes = self._tree.nodes
        for node in list(nodes.by_ino.values()):
            node.checked_at = -1e9
            await self._room()
            self._notify(pyfuse3.invalidate_inode, node.ino, False)
        for parent, name in list(nodes.by_name):
            await self._room()
            self._notify(pyfuse3.invalidate_entry, parent, name.encode())

    async def _room(self) -> None:
        while self._notices >= NOTICES_MAX // 2:  # noqa: ASYNC110 - the kernel's pace, no event of ours
            await asyncio.sleep(NOTICES_PAUSE_SECONDS)

    def _notify(self, call: Callable[..., None], *arguments: object) -> None:
        if self._notices >= NOTICES_MAX:
            self._tree.is_watched = False
            return
        self._notices += 1

        def work() -> None:
            with contextlib.suppress(OSError):      # the kernel does not know it: nothing to forget
                call(*arguments)

        def done(_: object) -> None:
            self._notices -= 1

        asyncio.get_running_loop().run_in_executor(self._notifier, work).add_done_callback(done)

    async def _flush_old(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self._tree.flush_old()


def unmount(directory: str) -> None:
    """Detach the mount, also while it is busy. Quiet when it is none."""
    subprocess.run(["fusermount3", "-u", "-z", "-q", directory], check=False, capture_output=True, timeout=30)


def release_stale(directory: str) -> None:
    """A mount that was killed leaves its mount point unusable (ENOTCONN): detach it. Raises ConfigError."""
    try:
        os.stat(directory)
    except FileNotFoundError:
        raise ConfigError(f"{directory} does not exist") from None
    except OSError:
        unmount(directory)
    if not os.path.isdir(directory):
        raise ConfigError(f"{directory} is not a directory")
