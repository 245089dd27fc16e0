"""Files of mounts in the catalog, on every engine: names, bodies edited copy-on-write, links, orphans, repeats."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import cast

import pytest
import sqlalchemy as sa

from metadata.catalog import leases, schema
from metadata.catalog.database import Database
from metadata.catalog.packed import unpack
from metadata.services.files.bodies import FileBodies
from metadata.services.files.service import FilesService
from metadata.services.files.watch import FileWatch
from metadata.services.names.replicas import ReplicaOrder
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.kit.meddling import MeddlingDatabase
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.clock import HybridClock
from tierstore.errors import UnavailableError
from tierstore.names import SiteId, operation_id
from tierstore.wire.files import (
    S_IFDIR,
    S_IFREG,
    Attributes,
    Extents,
    FileChange,
    FileMutation,
    FileQuestion,
    FileResult,
    Find,
    Link,
    Look,
    Make,
    Piece,
    ReadDirectory,
    Remove,
    Rename,
    SetAttributes,
    Watch,
    WriteFile,
)
from tierstore.wire.names import CommitChunk, ObjectMeta
from tierstore.wire.s3 import marked_etag

__all__ = ["postgres", "run", "url_of"]


class Files:
    """Short forms of what a mount sends."""

    def __init__(self, w: NamesWorld) -> None:
        self.w = w
        self.numbers = iter(range(1 << 60, (1 << 60) + 9999))
        versions = HybridClock(w.clock, SiteId(1), floor=0)
        rules = FileBodies(versions, rng=random.Random(3), copies_for=lambda *_: 2)
        self.service = FilesService(
            w.database, w.commits, rules, names=w.names, order=ReplicaOrder(w.view, w.rng), view=w.view, clock=w.clock,
            copies=lambda: 2,
        )  # fmt: skip

    def item(self, mutation: FileMutation) -> FileChange:
        now_ms = self.w.clock.now_ms()
        return FileChange(operation_id(now_ms, self.w.rng.getrandbits(80)), now_ms + 30_000, mutation)

    async def change(self, mutation: FileMutation) -> FileResult:
        return (await self.service.change([(self.item(mutation), ADMIN)]))[0]

    async def make(self, path: str, *, kind: int = S_IFREG) -> FileResult:
        return await self.change(Make("bbb", path, Attributes(next(self.numbers), kind | 0o644, 1, 2, 5, 5, 5)))

    async def write(
        self, path: str, *sizes: int, at: int = 0, truncate_to: int = -1, append_at: int = -1, make: bool = False
    ) -> FileResult:
        """One chunk of each size, one after the other from `at`."""
        chunks = [self.w.chunk(size) for size in sizes]
        pieces, start = [], at
        for number, size in enumerate(sizes):
            pieces.append(Piece(start, size, number))
            start += size
        ino, attributes = 0, None
        if make:
            attributes = Attributes(next(self.numbers), S_IFREG | 0o600)
        else:
            found = (await self.look(path)).entry
            ino = found.attributes.ino if found is not None else 0
        return await self.change(WriteFile(
            "bbb", path, ino, 9, pieces, chunks, truncate_to=truncate_to, append_at=append_at, make=attributes
        ))  # fmt: skip

    async def look(self, path: str) -> FileResult:
        return await self.service.ask(FileQuestion(Look("bbb", path)), ADMIN)

    async def names(self, path: str = "") -> list[str]:
        answer = await self.service.ask(FileQuestion(ReadDirectory("bbb", path)), ADMIN)
        assert not answer.code, answer.detail
        return [entry.name + "/" * entry.attributes.is_directory for entry in answer.entries]

    async def extents(self, path: str, first: int = 0, length: int = 1 << 40) -> list[tuple[int, int, int]]:
        answer = await self.service.ask(FileQuestion(Extents("bbb", path, first, length)), ADMIN)
        assert not answer.code, answer.detail
        return [(chunk.start, chunk.chunk_offset, chunk.length) for chunk in answer.chunks]

    async def check_counts(self) -> None:
        """Every chunk's count is the number of extents that name it; none is named twice in garbage and use."""
        named: dict[bytes, int] = {}
        for row in await self.w.rows(schema.extents):
            named[bytes(row.chunk_id)] = named.get(bytes(row.chunk_id), 0) + 1
        assert await self.w.refcounts() == named
        inline = {
            chunk.id for row in await self.w.rows(schema.objects) if row.body for chunk in unpack(bytes(row.body))
        }
        assert not (inline | set(named)) & set(await self.w.garbage())


def on_files(run: Run, test: Callable[[Files], object]) -> None:
    async def main(w: NamesWorld) -> None:
        files = Files(w)
        await test(files)  # type: ignore[misc]
        await files.check_counts()
        await files.service.close()

    run(main)


def test_a_file_written_by_a_mount_is_an_object(run: Run) -> None:
    """One commit makes name and body; REST sees an object whose ETag nobody takes for an MD5."""

    async def test(f: Files) -> None:
        made = await f.write("a/b.txt", 100, 50, make=True)
        assert made.code == "no-such-directory"
        assert not (await f.make("a", kind=S_IFDIR)).code
        made = await f.write("a/b.txt", 100, 50, make=True)
        assert made.entry is not None
        assert made.entry.size == 150
        found = await f.w.look("a/b.txt")
        assert (found.size, len(found.chunks), found.version) == (150, 2, made.entry.version)
        assert len(found.etag) != 32
        assert [e.key for e in (await f.w.page()).objects] == ["a/b.txt"]
        assert await f.names("a") == ["b.txt"]

    on_files(run, test)


def test_reads_of_a_mount_are_told_of_by_what_they_cover(run: Run) -> None:
    """What-if replays what was recorded: with a store that is read through mounts it saw writes alone."""

    async def test(f: Files) -> None:
        told: list[tuple[str, str, int, float]] = []
        f.service.answers.on_read = lambda *read: told.append(read)
        await f.write("k", 100, 100, 200, make=True)
        for first, length in ((0, 1 << 40), (100, 100), (300, 500), (0, 0), (0, 1), (400, 10)):
            await f.extents("k", first, length)
        assert told == [("bbb", "k", 400, 1.0), ("bbb", "k", 400, 0.25), ("bbb", "k", 400, 0.25)]
        answer = await f.service.ask(FileQuestion(Extents("bbb", "k", 0, 400, is_own=True)), ADMIN)
        assert answer.chunks and len(told) == 3, "the mount's own housekeeping is no read"
        question = FileQuestion(Extents("bbb", "k", 0, 400))
        if f.service.ask_now(question, ADMIN) is not None:
            assert told[3:] == [("bbb", "k", 400, 1.0)]

    on_files(run, test)


def test_an_object_put_by_rest_is_a_file_with_defaults_and_a_number_that_stays(run: Run) -> None:
    async def test(f: Files) -> None:
        await f.w.put("x/y/z", size=10)
        entry = (await f.look("x/y/z")).entry
        assert entry is not None
        assert (entry.size, entry.attributes.mode, entry.attributes.links) == (10, S_IFREG | 0o644, 1)
        directory = (await f.look("x/y")).entry
        assert directory is not None
        assert directory.attributes.is_directory
        await f.change(SetAttributes("bbb", "x/y/z", entry.attributes.ino, 7, mode=0o600))
        await f.change(Rename("bbb", "x/y", "x/w", 8))
        moved = (await f.look("x/w/z")).entry
        assert moved is not None
        assert moved.attributes.ino == entry.attributes.ino
        assert moved.attributes.mode == S_IFREG | 0o600
        assert (await f.look("x/y")).code == "no-such-file"
        assert (await f.w.look("x/w/z")).size == 10
        await f.w.copy("x/w/z", "copy")
        copied = (await f.look("copy")).entry
        assert copied is not None
        assert copied.attributes.ino != entry.attributes.ino, "a copy is another file"

    on_files(run, test)


def test_what_has_a_number_is_found_by_it(run: Run) -> None:
    """An NFS handle is a number. It leads to files and directories that mounts made, to objects that none touched and
    the directories that only their keys imply; to nothing once they are gone."""

    async def test(f: Files) -> None:
        await f.make("a", kind=S_IFDIR)
        await f.write("a/file", 10, make=True)
        await f.w.put("x/y/z", size=10)
        await f.w.put("x/y2", size=10)
        paths = ["a", "a/file", "x", "x/y", "x/y/z", "x/y2"]
        numbers = {}
        for path in paths:
            entry = (await f.look(path)).entry
            assert entry is not None
            numbers[path] = entry.attributes.ino

        async def found() -> dict[str, int]:
            answer = await f.service.ask(FileQuestion(Find("bbb", [*numbers.values(), 77, 1 << 61])), ADMIN)
            assert not answer.code, answer.detail
            return {entry.name: entry.attributes.ino for entry in answer.entries}

        assert await found() == numbers
        await f.change(Rename("bbb", "a/file", "x/file", 8))
        await f.change(Remove("bbb", "x/y2", 9))
        assert await found() == {
            "a": numbers["a"], "x/file": numbers["a/file"], "x": numbers["x"], "x/y": numbers["x/y"],
            "x/y/z": numbers["x/y/z"],
        }  # fmt: skip
        assert (await f.service.ask(FileQuestion(Find("bbb", list(range(65)))), ADMIN)).code == "too-many-items"

    on_files(run, test)


def test_bodies_are_edited_without_touching_what_stays(run: Run) -> None:
    async def test(f: Files) -> None:
        await f.write("f", 100, 100, make=True)
        await f.write("f", 20, at=90)
        assert await f.extents("f") == [(0, 0, 90), (90, 0, 20), (110, 10, 90)]
        await f.write("f", 30, at=200)
        assert [start for start, _, _ in await f.extents("f")] == [0, 90, 110, 200]
        assert (await f.write("f", 30, at=500)).code == "hole"
        assert (await f.write("f", truncate_to=95)).entry.size == 95  # type: ignore[union-attr]
        assert await f.extents("f") == [(0, 0, 90), (90, 0, 5)]
        await f.write("f", 10, truncate_to=0)
        assert await f.extents("f") == [(0, 0, 10)]
        assert not await f.w.refcounts(), "a body of whole chunks is inline again"

    on_files(run, test)


def test_appends_take_their_place_in_the_commit(run: Run) -> None:
    """Two mounts append at the same size: both are kept."""

    async def test(f: Files) -> None:
        await f.write("log", 10, make=True)
        await f.write("log", 5, at=10, append_at=10)
        result = await f.write("log", 7, at=10, append_at=10)
        assert result.entry is not None
        assert result.entry.size == 22
        assert await f.extents("log") == [(0, 0, 10), (10, 0, 5), (15, 0, 7)]

    on_files(run, test)


def test_hard_links_show_the_same_bytes_under_every_name(run: Run) -> None:
    async def test(f: Files) -> None:
        await f.write("one", 10, make=True)
        assert (await f.change(Link("bbb", "one", "two", 5))).entry.attributes.links == 2  # type: ignore[union-attr]
        await f.write("two", 20, truncate_to=0)
        await f.write("one", 5, at=20)
        for name in ("one", "two"):
            assert await f.extents(name) == [(0, 0, 20), (20, 0, 5)]
            assert (await f.w.look(name)).size == 25
        await f.change(Remove("bbb", "one", 6))
        left = (await f.look("two")).entry
        assert left is not None
        assert (left.attributes.links, left.size) == (1, 25)
        await f.change(Remove("bbb", "two", 6))
        assert not await f.w.refcounts()

    on_files(run, test)


def test_an_open_file_without_a_name_stays_until_it_is_let_go(run: Run) -> None:
    async def test(f: Files) -> None:
        made = await f.write("t", 10, make=True)
        assert made.entry is not None
        await f.change(Remove("bbb", "t", 6, holder="mount1"))
        assert (await f.look("t")).code == "no-such-file"
        orphan = f"/orphan/{made.entry.attributes.ino:016x}"
        assert await f.extents(orphan) == [(0, 0, 10)]
        assert not await f.w.garbage()
        await f.change(Remove("bbb", orphan, 7))
        assert len(await f.w.garbage()) == 1

    on_files(run, test)


def test_orphans_of_a_mount_that_is_gone_are_swept(run: Run) -> None:
    async def test(f: Files) -> None:
        await f.write("t", 10, make=True)
        await f.change(Remove("bbb", "t", 6, holder="mount1"))
        assert await f.service.sweep() == 0
        f.w.clock.advance(200)
        assert await f.service.sweep() == 1
        assert len(await f.w.garbage()) == 1

    on_files(run, test)


def test_a_mounts_lease_is_tried_again_when_it_was_not_written(run: Run) -> None:
    """It was taken for renewed, and its open files without a name were at the mercy of the next sweep."""

    async def test(f: Files) -> None:
        meddling = MeddlingDatabase(f.w.database)
        service = FileWatch(cast(Database, meddling), f.w.commits, names=f.w.names, clock=f.w.clock)
        meddling.failing_writes = 1
        with pytest.raises(UnavailableError):
            await service.watch(Watch("bbb", -1, "mount1"), ADMIN)
        await service.watch(Watch("bbb", -1, "mount1"), ADMIN)

        def living(c: sa.Connection) -> frozenset[str]:
            return leases.live_mounts(c, 0, now_ms=leases.catalog_now_ms(c, f.w.clock.now_ms()))

        assert await f.w.database.read(living) == {"mount1"}

    on_files(run, test)


def test_directories(run: Run) -> None:
    async def test(f: Files) -> None:
        await f.make("d", kind=S_IFDIR)
        await f.make("d/e", kind=S_IFDIR)
        await f.make("d/f")
        assert (await f.make("d/f")).code == "file-exists"
        assert await f.names("d") == ["e/", "f"]
        assert (await f.change(Remove("bbb", "d", 1, directory=True))).code == "directory-not-empty"
        assert (await f.change(Rename("bbb", "d", "d/e/x", 1))).code == "bad-rename"
        await f.make("full", kind=S_IFDIR)
        await f.make("full/x")
        assert (await f.change(Rename("bbb", "d", "full", 1))).code == "directory-not-empty"
        assert (await f.change(Rename("bbb", "d", "new", 1, no_replace=True))).code == ""
        assert await f.names() == ["full/", "new/"]
        assert await f.names("new") == ["e/", "f"]
        assert (await f.change(Remove("bbb", "new/e", 1, directory=True))).code == ""
        assert (await f.look("new")).entry.attributes.subdirs == 0  # type: ignore[union-attr]

    on_files(run, test)


def test_a_path_is_as_long_as_the_database_can_hold_and_no_longer(run: Run) -> None:
    """PostgreSQL's indexes end at a third of a page. What is beyond is refused by its name, not as a failure of the
    server, and does not take the changes beside it along."""
    rng = random.Random(8)
    names = [rng.randbytes(120).hex() for _ in range(34)]

    async def test(f: Files) -> None:
        postgres = f.w.database.dialect == "postgresql"
        made = [path for n in range(1, 35) if not (await f.make(path := "/".join(names[:n]), kind=S_IFDIR)).code]
        sizes = [len(path) for path in made]
        if postgres:
            assert 2400 < sizes[-1] < 8192
        else:
            assert len(made) == 33
            assert sizes[-1] <= 8192 < sizes[-1] + 241
        assert (await f.look(made[-1])).entry is not None
        beyond, beside = f"{made[-1]}/{names[-1]}", "beside"
        mode = S_IFREG | 0o644
        items = [f.item(Make("bbb", path, Attributes(next(f.numbers), mode))) for path in (beyond, beside)]
        results = await f.service.change([(item, ADMIN) for item in items])
        assert [result.code for result in results] == ["name-too-long", ""]
        assert (await f.look(beyond)).code == ("no-such-file" if postgres else "name-too-long")
        assert (await f.look(beside)).entry is not None
        assert (await f.change(Rename("bbb", "beside", beyond, 1))).code == "name-too-long"
        assert (await f.look(beside)).entry is not None

    on_files(run, test)


def test_a_repeated_change_is_applied_once(run: Run) -> None:
    """The answer was lost and the mount asks again."""

    async def test(f: Files) -> None:
        await f.write("log", 10, make=True)
        ino = (await f.look("log")).entry.attributes.ino  # type: ignore[union-attr]
        chunk: CommitChunk = f.w.chunk(5)
        append = WriteFile("bbb", "log", ino, 1, [Piece(10, 5, 0)], [chunk], append_at=10)
        item = f.item(append)
        first = (await f.service.change([(item, ADMIN)]))[0]
        second = (await f.service.change([(item, ADMIN)]))[0]
        assert first == second
        assert (await f.look("log")).entry.size == 15  # type: ignore[union-attr]

    on_files(run, test)


def test_versions_are_kept_where_the_bucket_keeps_them(run: Run) -> None:
    async def test(f: Files) -> None:
        await f.w.buckets.configure("bbb", ADMIN, versioning="enabled")
        first = await f.write("f", 100, make=True)
        assert first.entry is not None
        await f.write("f", 10, at=50)
        old = await f.w.look("f", version=first.entry.version)
        assert [(c.start, c.length) for c in old.chunks] == [(0, 100)]
        assert await f.extents("f") == [(0, 0, 50), (50, 0, 10), (60, 60, 40)]
        await f.change(Rename("bbb", "f", "g", 1))
        assert (await f.look("f")).code == "no-such-file"
        assert await f.extents("g") == [(0, 0, 50), (50, 0, 10), (60, 60, 40)]
        await f.change(Remove("bbb", "g", 1))
        assert (await f.w.look("f", version=first.entry.version)).size == 100

    on_files(run, test)


def test_metadata_of_other_doors_survives_a_write(run: Run) -> None:
    async def test(f: Files) -> None:
        await f.w.put("f", size=10, meta=ObjectMeta("text/plain", {"k": "v"}, {"crc32c": "AAAAAA=="}))
        await f.write("f", 5, at=10)
        meta = (await f.w.look("f")).meta
        assert meta is not None
        assert (meta.content_type, meta.user_meta, meta.checksums) == ("text/plain", {"k": "v"}, {})

    on_files(run, test)


def test_a_watch_tells_attributes_apart_from_the_put_before(run: Run) -> None:
    """A mount passes over the puts that it made itself; what another mount did just before or after must reach it."""

    async def test(f: Files) -> None:
        before = await f.service.watch(Watch("bbb", -1), ADMIN)
        made = await f.write("f", 10, make=True)
        await f.change(SetAttributes("bbb", "f", 0, 7, mode=0o600))
        seen = await f.service.watch(Watch("bbb", before.sequence), ADMIN)
        assert made.entry is not None
        told = [(c.version, c.attributes_only) for c in seen.changes if c.path == "f"]
        assert told == [(made.entry.version, False), (made.entry.version, True)]

    on_files(run, test)


def test_a_watch_tells_a_renamed_directory_in_order(run: Run) -> None:
    """All paths that went, then all that came, in the same order, also of files whose puts are told with them: mounts
    read off it where the files that they have open are now."""

    async def test(f: Files) -> None:
        before = await f.service.watch(Watch("bbb", -1), ADMIN)
        await f.make("a", kind=S_IFDIR)
        await f.make("a/b", kind=S_IFDIR)
        for name in ("2", "0", "1"):
            await f.write(f"a/b/{name}", 10, make=True)
        assert not (await f.change(Rename("bbb", "a", "z", 9))).code
        seen = await f.service.watch(Watch("bbb", before.sequence), ADMIN)
        first = next(n for n, c in enumerate(seen.changes) if c.gone)
        told = [(c.path, c.directory, c.gone) for c in seen.changes[first : first + 10]]
        files, directories = [f"b/{n}" for n in range(3)], ["", "/b"]
        assert told == [
            *((f"a/{name}", False, True) for name in files), *((f"z/{name}", False, False) for name in files),
            *((f"a{name}", True, True) for name in directories), *((f"z{name}", True, False) for name in directories),
        ]  # fmt: skip

    on_files(run, test)


def test_pieces_are_told_only_where_a_rewrite_costs_nothing_else(run: Run) -> None:
    """A mount puts files of many pieces together; where versions are kept each rewrite would stay as one."""

    async def test(f: Files) -> None:
        await f.write("f", 100, make=True)
        plain = await f.write("f", 10, at=50)
        await f.w.buckets.configure("bbb", ADMIN, versioning="enabled")
        kept = await f.write("f", 10, at=20)
        assert plain.entry is not None
        assert kept.entry is not None
        assert (plain.entry.extents, kept.entry.extents) == (3, 0)

    on_files(run, test)


def test_an_encrypted_object_is_neither_read_nor_changed_in_parts_by_a_mount(run: Run) -> None:
    """A mount has no keys: it would hand out sealed bytes, or write clear ones among them. Replaced as a whole, the
    file is a plain one, of which nothing says any more that it is encrypted."""

    async def check(f: Files) -> None:
        sealed = ObjectMeta(extra={"s3.sse": b"x", "s3.parts": b"y", "s3.owner": b"z"})
        await f.w.put("k", chunks=[f.w.chunk(1000)], etag=marked_etag("e", 900), meta=sealed)
        found = await f.look("k")
        assert found.entry is not None
        asked = await f.service.ask(FileQuestion(Extents("bbb", "k", 0, 10)), ADMIN)
        assert asked.code == "encrypted-object"
        assert (await f.write("k", 10, at=5)).code == "encrypted-object"
        assert (await f.write("k", 10, at=1000)).code == "encrypted-object"
        assert (await f.w.look("k")).meta == sealed
        assert not (await f.write("k", 50, truncate_to=0)).code
        now = (await f.w.look("k")).meta
        assert now is not None
        assert {name for name in now.extra if name.startswith("s3.")} == {"s3.owner"}
        assert await f.extents("k") == [(0, 0, 50)]

    on_files(run, check)
