"""One child process: started on an inherited socket, watched, started again when it dies, stopped in order.

Invariants. At most one process of a child is wanted at any time (in a planned restart another one is ending, or only
loading its code, beside it). A child never outlives the supervisor: the kernel kills it when its parent dies
(PR_SET_PDEATHSIG). The command line is the same after every restart, because the socket stays open in the supervisor
under the same number; of a child that died and whose clients have others to go to, it refuses until the next one
serves.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Final

from tierstore.serving.turn import TURN_VARIABLE
from tierstore.telemetry.log import get_logger

log = get_logger("up.child")

BACKOFF_SECONDS_MIN: Final = 0.2
BACKOFF_SECONDS_MAX: Final = 10.0
#: A child that lived that long starts its next back-off from the beginning.
STEADY_SECONDS: Final = 30.0
#: SIGTERM and SIGINT ask a daemon to drain; what is still there after this time is killed.
STOP_SECONDS: Final = 20.0
LOG_BYTES_MAX: Final = 16 << 20
#: How long a planned restart waits for the successor's code to be loaded before the old process is asked to end.
LOAD_SECONDS_MAX: Final = 120.0

_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _die_with(parent: int) -> Callable[[], None]:
    """What runs in the child between fork and exec: tie its life to the supervisor's."""

    def tie() -> None:
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)             # the supervisor died between fork and prctl: nobody would ever stop us

    return tie


class Child:
    """Use start(), restart(), stop(); `is_alive`, `pid`, `deaths` tell how it is. Event loop only."""

    def __init__(
        self, name: str, argv: list[str], listener: socket.socket, log_file: Path, *, keep: bool,
        overlaps: bool = False, refuses: bool = False,
    ) -> None:
        """listener: bound; the process begins to listen when it serves. keep: started again when it dies. overlaps: a
        new one may start before the old one has ended. refuses: who connects while it is dead is refused at once."""
        self.name = name
        self.argv = argv
        self.deaths = 0                     # how often it ended without being asked to
        self.pid = 0
        self._listener = listener
        self._log_file = log_file
        self._keep = keep
        self._overlaps = overlaps
        self._refuses = refuses
        self._wanted = False
        self._is_stopping = False
        self._backoff = BACKOFF_SECONDS_MIN
        self._started_at = 0.0
        self._ends: dict[int, asyncio.Future[int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_alive(self) -> bool:
        return self.pid in self._ends and not self._ends[self.pid].done()

    def start(self) -> None:
        self._wanted = True
        self._spawn()

    def _spawn(self) -> None:
        self.pid = self._run().pid
        self._started_at = time.monotonic()
        log.debug("started", name=self.name, pid=self.pid)

    def _run(self, turn: socket.socket | None = None) -> subprocess.Popen[bytes]:
        """Start a process and watch it. turn: it loads its code and waits for its turn at this end."""
        descriptors, environment = [self._listener.fileno()], None
        if turn is not None:
            descriptors.append(turn.fileno())
            environment = {**os.environ, TURN_VARIABLE: str(turn.fileno())}
        if self._log_file.exists() and self._log_file.stat().st_size > LOG_BYTES_MAX:
            self._log_file.replace(self._log_file.with_suffix(".old"))
        with open(self._log_file, "ab") as output:
            # Spawned from the main thread, on purpose: the kernel's tie is to the thread that forked.
            process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                pass_fds=descriptors, process_group=0, env=environment,
                preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509  # no threads run here, and `tie` only makes two system calls
            )  # fmt: skip
        ended = asyncio.get_running_loop().create_future()
        self._ends[process.pid] = ended
        self._watch(process, ended)
        return process

    def _watch(self, process: subprocess.Popen[bytes], ended: asyncio.Future[int]) -> None:
        """A process descriptor becomes readable when its process ends: no thread, no SIGCHLD."""
        loop = asyncio.get_running_loop()
        descriptor = os.pidfd_open(process.pid)

        def reap() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            status = process.wait()
            self._ends.pop(process.pid, None)
            if not ended.done():
                ended.set_result(status)
            if self._wanted and process.pid == self.pid:
                self._died(status)

        loop.add_reader(descriptor, reap)

    def _died(self, status: int) -> None:
        self.deaths += 1
        reason = signal.Signals(-status).name if status < 0 else f"exit {status}"
        log.warning("ended unasked", name=self.name, pid=self.pid, reason=reason, log=self._log_file)
        if self._refuses:
            self._refuse()
        if not self._keep:
            return
        if time.monotonic() - self._started_at > STEADY_SECONDS:
            self._backoff = BACKOFF_SECONDS_MIN
        wait, self._backoff = self._backoff, min(self._backoff * 2, BACKOFF_SECONDS_MAX)
        self._own(self._again(wait))

    def _refuse(self) -> None:
        """Until the next process listens, who connects or waits in the queue is refused. The port stays ours."""
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            return      # it refuses already: its process died before it listened
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)    # else another socket could take it

    async def _again(self, wait: float) -> None:
        await asyncio.sleep(wait)
        if self._wanted and not self.is_alive:
            self._spawn()
            log.info("started again", name=self.name, pid=self.pid, after_seconds=wait)

    def _own(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def restart(self) -> None:
        """A planned restart: ask the old one to drain and end, start a new one on the same socket.

        Connections wait in the socket's queue meanwhile, so nobody is refused. A stateless child is started beside the
        old one, which only finishes what it has; any other loads its code beside it and begins when it has ended."""
        self._backoff = BACKOFF_SECONDS_MIN
        if self._overlaps:
            self._wanted = False    # its end is asked for: no restart of its own, no death counted
            self._own(self._end(self.pid))
            self._wanted = True
            self._spawn()
            return
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                successor = self._run(theirs)
            await self._until_loaded(ours, successor.pid)
            if self._stops():
                return
            self._wanted = False    # its end is asked for: no restart of its own, no death counted
            await self._end(self.pid)
            if self._stops():
                return
            self._wanted = True
            self.pid, self._started_at = successor.pid, time.monotonic()
        if not self.is_alive:       # its death was not looked at while it was not the wanted one
            self._died(successor.returncode or 0)

    def _stops(self) -> bool:
        return self._is_stopping

    async def _until_loaded(self, turn: socket.socket, pid: int) -> None:
        """Until the successor says that its code is loaded, has died, or took too long (then it is on its way all the
        same, only later)."""
        turn.setblocking(False)
        try:
            async with asyncio.timeout(LOAD_SECONDS_MAX):
                await asyncio.get_running_loop().sock_recv(turn, 16)    # what it says, or nothing when it has died
        except (TimeoutError, OSError):
            log.warning("its successor is not loaded yet", name=self.name, pid=pid, seconds=LOAD_SECONDS_MAX)

    async def stop(self) -> None:
        """End it, with nobody after it: SIGINT, and SIGKILL after STOP_SECONDS. Also whatever is still ending from a
        restart, or waits for its turn."""
        self._wanted = False
        self._is_stopping = True
        await asyncio.gather(*(self._end(pid, signal.SIGINT) for pid in list(self._ends)))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _end(self, pid: int, how: signal.Signals = signal.SIGTERM) -> None:
        ended = self._ends.get(pid)
        if ended is None:
            return
        _signal(pid, how)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.shield(ended)
        except TimeoutError:
            log.warning("killed: it did not drain in time", name=self.name, pid=pid, seconds=STOP_SECONDS)
            _signal(pid, signal.SIGKILL)
            await ended

    def log_tail(self, size: int = 2000) -> str:
        try:
            return self._log_file.read_bytes()[-size:].decode(errors="replace")
        except OSError:
            return ""


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass        # it ended by itself; its watcher has seen or will see it
