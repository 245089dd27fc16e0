"""cp and sync: files in, out and within the store, many at a time, with rate and time left on a terminal.

Invariants: a download appears under its name only when every byte of it was verified (written beside it, then renamed);
sync never deletes unless --delete was given, and only after everything else succeeded. At most TRANSFERS_AT_ONCE files
are open and QUEUE_MAX named, so a tree of any size needs bounded memory.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import aiofiles
import aiofiles.os
import typer

from tierstore.checksum import crc_of, encode_crc
from tierstore.cli.cluster import Endpoint, Json, Place, Profile, Token, find, is_place, open_store, parse_place
from tierstore.cli.objects import Recursive, below
from tierstore.cli.output import notes, print_json, say
from tierstore.errors import NotFound, RequestError, TierstoreError
from tierstore.units import MIB, format_size
from tierstore.wire.names import ListEntry

if TYPE_CHECKING:
    from tierstore.sdk import Store

TRANSFERS_AT_ONCE: Final = 16
QUEUE_MAX: Final = 256
PIECE_BYTES: Final = 1 * MIB
FAILURES_SHOWN_MAX: Final = 10

Source = Annotated[str, typer.Argument(help="A file, a directory, ts://bucket[/key], or - for standard input.")]
Goal = Annotated[str, typer.Argument(help="A file, a directory, ts://bucket[/key], or - for standard output.")]


@dataclass(slots=True)
class Tally:
    """What was done."""

    files: int = 0
    bytes: int = 0
    skipped: int = 0
    deleted: int = 0
    failures: list[tuple[str, TierstoreError | OSError]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Transfer:
    """One file to move: a size for the progress bar, and the work, which reports the bytes it moved."""

    name: str
    size: int
    work: Callable[[Callable[[int], None]], Awaitable[None]]


def cp(
    source: Source, target: Goal, recursive: Recursive = False,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Copy files into, out of or within the store."""
    if not (is_place(source) or is_place(target)):
        raise RequestError("one side must be in the store: ts://bucket/key")

    async def work() -> Tally:
        async with open_store(find(endpoint, token, profile)) as store:
            return await _run(_copies(store, source, target, recursive), quiet=as_json or target == "-")

    _report(asyncio.run(work()), as_json, quiet=target == "-")


def sync(
    source: Source,
    target: Goal,
    delete: Annotated[bool, typer.Option(help="Delete what is only in the target.")] = False,
    checksum: Annotated[bool, typer.Option(help="Compare CRC32C instead of time.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be done.")] = False,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Make the target hold what the source holds: a directory and a prefix of the store, either way."""
    if is_place(source) == is_place(target):
        raise RequestError("sync is between a directory and the store: sync DIR ts://bucket/prefix, or the other way")

    async def work() -> Tally:
        async with open_store(find(endpoint, token, profile)) as store:
            plan = _Plan(delete=delete, checksum=checksum, dry_run=dry_run, quiet=as_json)
            if is_place(target):
                return await _sync_up(store, Path(source), _prefix(parse_place(target)), plan)
            return await _sync_down(store, _prefix(parse_place(source)), Path(target), plan)

    _report(asyncio.run(work()), as_json)


# -- cp ----------------------------------------------------------------------------------------------------------
async def _copies(store: Store, source: str, target: str, recursive: bool) -> AsyncIterator[Transfer]:
    """The transfers that a cp stands for."""
    if not is_place(source):
        there = parse_place(target)
        if source == "-":
            key = parse_place(target, needs_key=True)
            yield Transfer("-", 0, lambda moved: _upload_stdin(store, key, moved))
        elif Path(source).is_dir():
            _need(recursive, source)
            for path, name in _tree(Path(source)):
                yield _upload(store, path, Place(there.bucket, _prefix(there).key + name))
        else:
            yield _upload(store, Path(source), below(there, Path(source).name))
        return
    here = parse_place(source)
    if recursive or not here.key:
        _need(recursive, source)
        start = _prefix(here)
        async for entry in store.list(start.bucket, prefix=start.key):
            name = entry.key.removeprefix(start.key)
            if is_place(target):
                there = _prefix(parse_place(target))
                yield _within(store, Place(start.bucket, entry.key), Place(there.bucket, there.key + name), entry.size)
            elif name and not name.endswith("/"):
                yield _download(store, Place(start.bucket, entry.key), _safe(Path(target), name), entry)
        return
    info = await store.head(here.bucket, here.key)
    name = here.key.rpartition("/")[2]
    if is_place(target):
        yield _within(store, here, below(parse_place(target), name), info.size)
    elif target == "-":
        yield Transfer(str(here), info.size, lambda moved: _to_stdout(store, here, moved))
    else:
        path = Path(target)
        entry = ListEntry(here.key, info.size, info.etag, info.version, info.created_at_ms)
        yield _download(store, here, path / name if path.is_dir() or target.endswith("/") else path, entry)


def _need(recursive: bool, what: str) -> None:
    if not recursive:
        raise RequestError(f"{what!r} is not a single file; add -r to copy everything in it")


def _prefix(place: Place) -> Place:
    """The place as a directory: its key ends in "/" (or is empty)."""
    return Place(place.bucket, place.key if not place.key or place.key.endswith("/") else place.key + "/")


def _tree(root: Path) -> Iterator[tuple[Path, str]]:
    """Every regular file below root with its name in the store (relative, "/" between). Links are not followed."""
    for directory, directories, files in os.walk(root):
        directories.sort()
        for file in sorted(files):
            path = Path(directory, file)
            if path.is_file() and not path.is_symlink():
                yield path, path.relative_to(root).as_posix()


def _safe(root: Path, name: str) -> Path:
    """Where an object goes below root. Raises RequestError for keys that would leave it."""
    if name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
        raise RequestError(f"the key {name!r} cannot be a file name below {root}; copy it alone, to a name you choose")
    return root / name


# -- one file ----------------------------------------------------------------------------------------------------
def _upload(store: Store, path: Path, place: Place) -> Transfer:
    size = path.stat().st_size

    async def work(moved: Callable[[int], None]) -> None:
        if size <= PIECE_BYTES:
            async with aiofiles.open(path, "rb") as file:
                body = await file.read()
            await store.put(place.bucket, place.key, body)
            moved(len(body))
        else:
            await store.put(place.bucket, place.key, _pieces(path, moved), size=size)

    return Transfer(str(path), size, work)


async def _pieces(path: Path, moved: Callable[[int], None]) -> AsyncIterator[bytes]:
    async with aiofiles.open(path, "rb") as file:
        while piece := await file.read(PIECE_BYTES):
            yield piece
            moved(len(piece))


async def _upload_stdin(store: Store, place: Place, moved: Callable[[int], None]) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        while piece := await asyncio.to_thread(sys.stdin.buffer.read, PIECE_BYTES):
            yield piece
            moved(len(piece))

    await store.put(place.bucket, place.key, pieces())


async def _to_stdout(store: Store, place: Place, moved: Callable[[int], None]) -> None:
    async with await store.get(place.bucket, place.key) as reader:
        while piece := await reader.next_piece():
            sys.stdout.buffer.write(piece)
            moved(len(piece))
    sys.stdout.buffer.flush()


def _download(store: Store, place: Place, path: Path, entry: ListEntry) -> Transfer:
    async def work(moved: Callable[[int], None]) -> None:
        await aiofiles.os.makedirs(path.parent, exist_ok=True)
        staged = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            async with await store.get(place.bucket, place.key) as reader, aiofiles.open(staged, "wb") as file:
                while piece := await reader.next_piece():
                    await file.write(bytes(piece))
                    moved(len(piece))
            os.utime(staged, (entry.created_at_ms / 1000, entry.created_at_ms / 1000))
            await aiofiles.os.replace(staged, path)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise

    return Transfer(str(place), entry.size, work)


def _within(store: Store, here: Place, there: Place, size: int) -> Transfer:
    async def work(moved: Callable[[int], None]) -> None:
        await store.copy(here.bucket, here.key, there.bucket, there.key)
        moved(size)

    return Transfer(str(here), size, work)


# -- sync --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Plan:
    delete: bool
    checksum: bool
    dry_run: bool
    quiet: bool


async def _sync_up(store: Store, root: Path, place: Place, plan: _Plan) -> Tally:
    if not root.is_dir():
        raise NotFound(f"{root} is not a directory")
    there = {entry.key.removeprefix(place.key): entry async for entry in store.list(place.bucket, prefix=place.key)}
    skipped = 0

    async def changed() -> AsyncIterator[Transfer]:
        nonlocal skipped
        for path, name in _tree(root):
            entry = there.pop(name, None)
            if entry is not None and await _is_same(path, entry, plan, newer_file_wins=True):
                skipped += 1
            else:
                yield _upload(store, path, Place(place.bucket, place.key + name))

    tally = await _run(changed(), quiet=plan.quiet, dry_run=plan.dry_run)
    tally.skipped = skipped
    if plan.delete and not tally.failures:
        for name in there:
            if plan.dry_run:
                say(f"would delete {Place(place.bucket, place.key + name)}")
            else:
                await store.delete(place.bucket, place.key + name)
            tally.deleted += 1
    return tally


async def _sync_down(store: Store, place: Place, root: Path, plan: _Plan) -> Tally:
    local = {name: path for path, name in _tree(root)} if root.is_dir() else {}
    skipped = 0

    async def changed() -> AsyncIterator[Transfer]:
        nonlocal skipped
        async for entry in store.list(place.bucket, prefix=place.key):
            name = entry.key.removeprefix(place.key)
            if not name or name.endswith("/"):
                continue
            path = _safe(root, name)
            if local.pop(name, None) is not None and await _is_same(path, entry, plan, newer_file_wins=False):
                skipped += 1
            else:
                yield _download(store, Place(place.bucket, entry.key), path, entry)

    tally = await _run(changed(), quiet=plan.quiet, dry_run=plan.dry_run)
    tally.skipped = skipped
    if plan.delete and not tally.failures:
        for path in local.values():
            if plan.dry_run:
                say(f"would delete {path}")
            else:
                path.unlink()
            tally.deleted += 1
    return tally


async def _is_same(path: Path, entry: ListEntry, plan: _Plan, *, newer_file_wins: bool) -> bool:
    """Whether the file and the object hold the same: size, then CRC32C (--checksum) or time.

    Going up, a file that was not changed since the object was stored is the same; going down, times are equal, since a
    download gets the object's time. Without a CRC32C in the ETag (S3 objects), --checksum calls them different."""
    stat = await aiofiles.os.stat(path)
    if stat.st_size != entry.size:
        return False
    if plan.checksum:
        from tierstore.sdk.put import etag_crc32c

        return etag_crc32c(entry.etag) == await _file_crc(path)
    stored_at = entry.created_at_ms / 1000
    return stat.st_mtime <= stored_at if newer_file_wins else abs(stat.st_mtime - stored_at) < 0.01


async def _file_crc(path: Path) -> str:
    crc = crc_of(b"")
    async with aiofiles.open(path, "rb") as file:
        while piece := await file.read(PIECE_BYTES):
            crc = crc_of(piece, crc)
    return encode_crc(crc)


# -- many at a time ----------------------------------------------------------------------------------------------
async def _run(transfers: AsyncIterator[Transfer], *, quiet: bool, dry_run: bool = False) -> Tally:
    """Do them all, TRANSFERS_AT_ONCE at a time. A file that fails is noted, the others go on."""
    tally = Tally()
    queue: asyncio.Queue[Transfer | None] = asyncio.Queue(QUEUE_MAX)
    with _bar(quiet or dry_run) as (plan_more, moved):

        async def worker() -> None:
            while (transfer := await queue.get()) is not None:
                try:
                    await transfer.work(moved)
                    tally.files += 1
                    tally.bytes += transfer.size
                except (TierstoreError, OSError) as error:
                    tally.failures.append((transfer.name, error))

        async with asyncio.TaskGroup() as group:
            for _ in range(TRANSFERS_AT_ONCE):
                group.create_task(worker())
            try:
                async for transfer in transfers:
                    if dry_run:
                        say(f"would copy {transfer.name}")
                        tally.files += 1
                        tally.bytes += transfer.size
                        continue
                    plan_more(transfer.size)
                    await queue.put(transfer)
            finally:
                for _ in range(TRANSFERS_AT_ONCE):
                    await queue.put(None)
    return tally


@contextmanager
def _bar(quiet: bool) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """Two functions, for bytes to come and bytes moved; a bar on standard error when that is a terminal."""
    if quiet or not notes.is_terminal:
        yield (lambda size: None), (lambda size: None)
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=notes, transient=True) as progress:
        task = progress.add_task("copying", total=0)
        known = 0

        def more(size: int) -> None:
            nonlocal known
            known += size
            progress.update(task, total=known)

        yield more, lambda size: progress.advance(task, size)


def _report(tally: Tally, as_json: bool, *, quiet: bool = False) -> None:
    """Say what was done; raise when something was not."""
    if as_json:
        print_json(
            {"files": tally.files, "bytes": tally.bytes, "skipped": tally.skipped, "deleted": tally.deleted,
             "failures": [f"{name}: {_why(error)}" for name, error in tally.failures]}
        )  # fmt: skip
    elif not quiet:
        extra = f", {tally.skipped} unchanged" * bool(tally.skipped)
        extra += f", {tally.deleted} deleted" * bool(tally.deleted)
        say(f"{tally.files} file{'s' * (tally.files != 1)}, {format_size(tally.bytes)}{extra}")
    if tally.failures:
        name, error = tally.failures[0]
        if len(tally.failures) + tally.files == 1 and isinstance(error, TierstoreError):
            raise error
        for name, error in tally.failures[:FAILURES_SHOWN_MAX]:
            notes.print(f"failed: {name}: {_why(error)}", markup=False)
        raise TierstoreError(f"{len(tally.failures)} of {len(tally.failures) + tally.files} files were not copied")


def _why(error: TierstoreError | OSError) -> str:
    return (error.detail or error.code) if isinstance(error, TierstoreError) else (error.strerror or str(error))
