"""The bytes of one file as a mount holds them: what is committed, what is written and not yet committed, one reader.

Written bytes stay in memory until the commit that names them is durable, so a server that leaves in between costs a
repeat, not data. A full chunk goes to the object servers as soon as it is full; `flush` stores the rest and commits
everything at once. Reads lay the written bytes over the committed ones.

Invariants: every written byte is within the mount's budget from before write() returns until its commit; one flush at
a time; what a flush took with it (sealed runs) does not change; an error of a flush is raised to the next flush too,
until something is written anew or the file is closed.
Cost of a small file: one copy into the run, one chunk to N+1 servers, one metadata commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from tierstore.errors import ConflictError, TierstoreError
from tierstore.files.reader import Reader
from tierstore.files.runs import Run, cut, parts, place
from tierstore.files.stream import Bytes
from tierstore.sdk import Store
from tierstore.sdk.budget import BufferBudget
from tierstore.units import KIB, MIB
from tierstore.wire.files import Attributes, Entry, FileResult, Piece, WriteFile
from tierstore.wire.names import CommitChunk

#: A file with so many bytes uncommitted is committed without being asked.
HELD_BYTES_MAX: Final = 32 * MIB
#: So is one with so many scattered runs.
RUNS_MAX: Final = 256
#: Chunks of one file that are on the way at once.
CHUNKS_UNDER_WAY: Final = 3
#: A chunk of zeros that fills holes; repeated as often as needed. Larger for larger holes, within the bucket's chunks.
ZERO_BYTES: Final = 256 * KIB
ZERO_BYTES_LARGE: Final = 8 * MIB
HOLE_LARGE: Final = 1024 * ZERO_BYTES
#: Commits refused because a server or the size changed in between are tried again so often.
ATTEMPTS_MAX: Final = 4
_STALE_RECEIPTS: Final = frozenset({"device-refused", "upload-condemned", "upload-lapsed"})


@dataclass(slots=True)
class Commit:
    """What a body cannot know itself, asked at each commit. make: the file is not there yet."""

    path: str
    ino: int
    now_ns: int
    make: Attributes | None
    clear_setuid: bool
    keep_times: bool


class Body:
    """One per file that is open or was written. Event loop only."""

    def __init__(
        self, store: Store, bucket: str, *, size: int, version: int, budget: BufferBudget,
        change: Callable[[WriteFile], Awaitable[FileResult]], about: Callable[[], Commit],
        committed: Callable[[Entry], None], relieve: Callable[[], Awaitable[None]], reader: Reader,
    ) -> None:  # fmt: skip
        """relieve: memory is short: let some file of the mount commit what it holds."""
        self._relieve = relieve
        self._store = store
        self._bucket = bucket
        self._budget = budget
        self._change = change
        self._about = about
        self._committed = committed
        self.reader = reader
        self.size = size                    # as programs on this mount see it
        self.base_size = size               # of the committed version
        self.version = version
        self.truncate_to = -1               # the base is to be cut to this
        self.runs: list[Run] = []
        self.held_bytes = 0
        self._stored: dict[Run, asyncio.Task[CommitChunk]] = {}
        self._flushing = asyncio.Lock()
        self._error: TierstoreError | None = None

    @property
    def is_dirty(self) -> bool:
        return bool(self.runs) or self.truncate_to >= 0

    # -- writing --------------------------------------------------------------------------------------------
    async def write(self, start: int, data: bytes, *, appended: bool) -> None:
        """Take bytes. Waits for memory: for a commit of this or other files. appended: they go to the end."""
        if not self._budget.try_take(len(data)):
            await self._relieve()
            await self._budget.take(len(data))
        if appended:
            start = self.size
        self._error = None
        run = place(self.runs, start, data, appended=appended, run_bytes_max=self._run_bytes_max())
        self.held_bytes += len(data)
        self.size = max(self.size, start + len(data))
        if len(run.data) >= self._run_bytes_max():
            self._seal(run)
        if self.held_bytes >= HELD_BYTES_MAX or len(self.runs) >= RUNS_MAX:
            await self.flush()

    def _run_bytes_max(self) -> int:
        return self._store.chunk_bytes(self._bucket, "")

    def _seal(self, run: Run) -> None:
        """The run will not change any more: send it."""
        run.sealed = True
        if len(self._stored) < CHUNKS_UNDER_WAY or all(task.done() for task in self._stored.values()):
            self._send(run)

    def _send(self, run: Run) -> asyncio.Task[CommitChunk]:
        task = self._stored.get(run)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            store = self._store.store_chunk(self._bucket, self._about().path, memoryview(run.data))
            task = self._stored[run] = asyncio.get_running_loop().create_task(store)
            task.add_done_callback(_retrieve)
        return task

    async def truncate(self, size: int) -> None:
        """Cut or extend. To zero: at the next flush; else committed when it returns. What is refused for good (a quota,
        a size) has changed nothing."""
        async with self._flushing:
            if size == 0:
                self._drop_runs()
                self.truncate_to, self.size = 0, 0
                return
            if size == self.size:
                return
            if size < self.size:
                self.runs = cut(self.runs, size)
                self._forget_tasks()
                base = self.base_size if self.truncate_to < 0 else min(self.base_size, self.truncate_to)
                if size < base:
                    self.truncate_to = size
            before, self.size = self.size, size
            try:
                await self._flush()
            except TierstoreError as error:
                if size > before and not error.retryable:
                    # Its caller has been told; what else was written is still to be committed, at its own length.
                    self.size, self._error = max([before, *(run.end for run in self.runs)]), None
                raise

    # -- flushing -------------------------------------------------------------------------------------------
    async def flush(self, *, again: bool = False) -> None:
        """Everything written so far is durable on N+1 servers and in the catalog when it returns. again: also when it
        failed before."""
        async with self._flushing:
            if again:
                self._error = None
            await self._flush()

    def check(self) -> None:
        """Raise what the last flush failed with."""
        if self._error is not None:
            raise self._error

    async def _flush(self) -> None:
        self.check()
        about = self._about()
        if not self.is_dirty and self.size == self.base_size and about.make is None:
            return
        try:
            for attempt in range(1, ATTEMPTS_MAX + 1):
                try:
                    return await self._commit()
                except ConflictError as error:
                    if attempt == ATTEMPTS_MAX:
                        raise
                    if error.code in _STALE_RECEIPTS:
                        self._forget_tasks()
                    elif error.code == "hole":
                        # Another mount made the file shorter: what lies between is zeros now.
                        await self._learn_size()
                    else:
                        raise
        except TierstoreError as error:
            self._error = error
            raise

    async def _learn_size(self) -> None:
        found = await self.reader.find(0, 0)
        if found.entry is None:
            return
        if self.size == self.base_size:     # nothing of ours made it longer than it was
            self.size = max([found.entry.size, *(run.end for run in self.runs)])
        self.base_size = found.entry.size

    async def _commit(self) -> None:
        taken, size, held = list(self.runs), self.size, self.held_bytes
        for run in taken:
            run.sealed = True
        truncate_to = self.truncate_to
        base = self.base_size if truncate_to < 0 else min(self.base_size, truncate_to)
        appended = [run for run in taken if run.appended]
        is_append = bool(taken) and len(appended) == len(taken) and truncate_to < 0
        laid = parts(taken, 0, size)
        pieces, chunks = await self._store_parts(laid, base, size)
        about = self._about()
        write = WriteFile(
            self._bucket, about.path, about.ino, about.now_ns, pieces, chunks, truncate_to=truncate_to,
            append_at=base if is_append else -1, make=about.make,
            clear_setuid=about.clear_setuid, keep_times=about.keep_times,
        )  # fmt: skip
        result = await self._change(write)
        assert result.entry is not None, "a write answers with the file as it stands"
        self._took(taken, held, size, truncate_to, result.entry)

    async def _store_parts(self, laid: list, base: int, size: int) -> tuple[list[Piece], list[CommitChunk]]:  # type: ignore[type-arg]
        """Chunks on their servers, and which bytes of them stand where. Small runs share a chunk."""
        pieces: list[Piece] = []
        sends: list[asyncio.Task[CommitChunk]] = []
        of_run: dict[int, int] = {}
        packed = bytearray()
        packs: list[tuple[int, int, int]] = []
        zeros: list[tuple[int, int]] = []
        for start, end, run in laid:
            if run is None:
                if end > base:
                    zeros.append((max(start, base), end))
                continue
            if run in self._stored or len(run.data) >= ZERO_BYTES or len(laid) == 1:
                if id(run) not in of_run:
                    of_run[id(run)] = len(sends)
                    sends.append(self._send(run))
                pieces.append(Piece(start, end - start, of_run[id(run)], start - run.start))
            else:
                packs.append((start, end - start, len(packed)))
                packed += memoryview(run.data)[start - run.start : end - run.start]
        loop = asyncio.get_running_loop()
        path = self._about().path
        step = self._run_bytes_max()
        at_chunk: dict[int, int] = {}
        for start, length, offset in packs:
            done = 0
            while done < length:
                number, within = divmod(offset + done, step)
                if number not in at_chunk:
                    view = memoryview(packed)[number * step : (number + 1) * step]
                    at_chunk[number] = len(sends)
                    sends.append(loop.create_task(self._store.store_chunk(self._bucket, path, view)))
                count = min(length - done, step - within)
                pieces.append(Piece(start + done, count, at_chunk[number], within))
                done += count
        try:
            chunks = list(await asyncio.gather(*sends))
        except BaseException:
            await asyncio.gather(*sends, return_exceptions=True)
            raise
        for start, end in zeros:
            pieces += await self._zeros(start, end, chunks)
        pieces.sort(key=lambda piece: piece.start)
        return pieces, chunks

    async def _zeros(self, start: int, end: int, chunks: list[CommitChunk]) -> list[Piece]:
        """Pieces of zeros for a hole: one chunk, named as often as it takes."""
        length = end - start
        size = min(length, ZERO_BYTES if length <= HOLE_LARGE else ZERO_BYTES_LARGE, self._run_bytes_max())
        chunks.append(await self._store.store_chunk(self._bucket, self._about().path, memoryview(bytes(size))))
        times, rest = divmod(length, size)
        number = len(chunks) - 1
        pieces = [Piece(start, size, number, times=times)]
        if rest:
            pieces.append(Piece(start + times * size, rest, number))
        return pieces

    def _took(self, taken: list[Run], held: int, size: int, truncate_to: int, entry: Entry) -> None:
        """The commit is durable: let go of what it held."""
        gone = {id(run) for run in taken}
        self.runs = [run for run in self.runs if id(run) not in gone]
        for run in taken:
            self._stored.pop(run, None)
        if self.truncate_to == truncate_to:
            self.truncate_to = -1
        shift = entry.size - size
        if shift and self.runs and all(run.appended for run in self.runs):
            for run in self.runs:       # appends of other mounts came in between: ours that follow move too
                run.start += shift
        self.size = max([entry.size, *(run.end for run in self.runs)]) if self.truncate_to != 0 else self.size
        self.base_size, self.version = entry.size, entry.version
        self._give_back(held)
        self.reader.reset(entry.version, entry.size)
        self._committed(entry)

    def _give_back(self, count: int) -> None:
        self.held_bytes -= count
        self._budget.give_back(count)

    def _drop_runs(self) -> None:
        self.runs = []
        self._forget_tasks()
        self._give_back(self.held_bytes)

    def _forget_tasks(self) -> None:
        """Chunks of runs that are no more, or whose servers left: they are stored again, or collected as orphans."""
        for task in self._stored.values():
            task.cancel()
        self._stored = {}

    # -- reading --------------------------------------------------------------------------------------------
    async def read(self, first: int, length: int) -> Bytes:
        """Bytes as this mount sees them, good until the next await; shorter at the end of the file."""
        end = min(first + length, self.size)
        if end <= first:
            return b""
        base = self.base_size if self.truncate_to < 0 else min(self.base_size, self.truncate_to)
        if not self.runs and end <= base:
            return await self.reader.read(first, end - first)
        out = memoryview(bytearray(end - first))
        # Runs are copied before the first wait: a flush may let go of them meanwhile.
        holes = []
        for start, stop, run in parts(self.runs, first, end):
            if run is not None:
                out[start - first : stop - first] = memoryview(run.data)[start - run.start : stop - run.start]
            elif start < base:
                holes.append((start, min(stop, base)))
        for start, stop in holes:
            data = await self.reader.read(start, stop - start)
            out[start - first : start - first + len(data)] = data
        return out

    # -- the end --------------------------------------------------------------------------------------------
    async def close(self, *, abandon: bool = False) -> None:
        """Nobody has the file open any more. abandon: what was not committed is dropped (its name is gone)."""
        if abandon:
            self._drop_runs()
        await self.reader.close()

    def refresh(self, entry: Entry) -> bool:
        """What metadata says of the file now; True when the bytes changed under us."""
        if entry.version == self.version:
            return False
        self.version = entry.version
        if not self.is_dirty:
            self.size = entry.size
        self.base_size = entry.size
        self.reader.reset(entry.version, entry.size)
        return True


def _retrieve(task: asyncio.Task[CommitChunk]) -> None:
    """A chunk sent ahead that failed is sent again at the flush, which raises what goes wrong then."""
    if not task.cancelled():
        task.exception()
