"""Files that lost their last name while mounts have them open: who keeps them, for how long, on every engine."""

from __future__ import annotations

from metadata.catalog import leases
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.contract.test_catalog_files import Files, on_files
from tests.kit.names_world import ADMIN
from tierstore.wire.files import Entry, FileResult, Hold, Remove, Rename, Watch, orphan_path

__all__ = ["postgres", "run", "url_of"]


async def live(f: Files, *mounts: str) -> None:
    """These mounts follow the feed."""
    for mount in mounts:
        await f.service.watch(Watch("bbb", -1, mount), ADMIN)


async def die(f: Files) -> None:
    """The leases of all mounts have ended (PostgreSQL judges them by its own clock)."""
    await f.w.database.write(lambda c: leases.forget_mounts(c, before_ms=1 << 60))


async def written(f: Files, path: str = "t") -> str:
    """A file of ten bytes; where it is once it has no name."""
    made = await f.write(path, 10, make=True)
    assert isinstance(made.entry, Entry)
    return orphan_path(made.entry.attributes.ino)


async def hold(f: Files, orphan: str, mount: str) -> FileResult:
    return await f.change(Hold("bbb", orphan, 7, mount))


def test_a_file_that_another_mount_may_have_open_stays_until_that_mount_lets_go(run: Run) -> None:
    """Removed by one that does not have it open itself."""

    async def test(f: Files) -> None:
        orphan = await written(f)
        await live(f, "m1", "m2")
        assert not (await f.change(Remove("bbb", "t", 6, mount="m1"))).code
        assert (await f.look("t")).code == "no-such-file"
        assert not (await hold(f, orphan, "m2")).code and not (await hold(f, orphan, "m2")).code
        f.w.clock.advance(100)
        await live(f, "m1", "m2")
        f.w.clock.advance(100)
        assert await f.service.sweep() == 0, "m2 lives and holds it"
        assert await f.extents(orphan) == [(0, 0, 10)] and not await f.w.garbage()
        assert not (await f.change(Remove("bbb", orphan, 8, mount="m2"))).code
        assert len(await f.w.garbage()) == 1 and (await f.look(orphan)).code == "no-such-file"

    on_files(run, test)


def test_the_mount_that_removed_it_and_closes_first_leaves_it_to_the_other(run: Run) -> None:
    """Also when the other one has not yet said that it has it open."""

    async def test(f: Files) -> None:
        for is_early in (True, False):
            orphan = await written(f)
            await live(f, "m1", "m2")
            await f.change(Remove("bbb", "t", 6, holder="m1", mount="m1"))
            if is_early:
                await hold(f, orphan, "m2")
            await f.change(Remove("bbb", orphan, 7, mount="m1"))
            if not is_early:
                assert not (await hold(f, orphan, "m2")).code
            assert await f.extents(orphan) == [(0, 0, 10)]
            await f.change(Remove("bbb", orphan, 8, mount="m1"))
            assert await f.extents(orphan) == [(0, 0, 10)], "m1 has let go before"
            f.w.clock.advance(200)
            await f.change(Remove("bbb", orphan, 8, mount="m2"))
            assert (await f.look(orphan)).code == "no-such-file"

    on_files(run, test)


def test_what_no_mount_claims_goes_when_the_time_is_over(run: Run) -> None:
    async def test(f: Files) -> None:
        orphans = [await written(f, f"t{number}") for number in range(3)]
        await live(f, "m1", "m2")
        for number in range(3):
            await f.change(Remove("bbb", f"t{number}", 6, mount="m1"))
        assert await f.service.sweep() == 0
        await hold(f, orphans[1], "m2")
        f.w.clock.advance(60)
        await live(f, "m1", "m2")
        f.w.clock.advance(100)
        assert await f.service.sweep() == 2
        assert len(await f.w.garbage()) == 2
        assert await f.extents(orphans[1]) == [(0, 0, 10)]
        f.w.clock.advance(200)
        await die(f)
        assert await f.service.sweep() == 1, "its mount is gone"
        assert (await hold(f, orphans[0], "m2")).code == "no-such-file"

    on_files(run, test)


def test_a_file_that_is_replaced_by_a_rename_stays_for_its_readers(run: Run) -> None:
    async def test(f: Files) -> None:
        orphan = await written(f, "old")
        await live(f, "m1", "m2")
        await f.write("new", 20, make=True)
        assert not (await f.change(Rename("bbb", "new", "old", 6, mount="m1"))).code
        assert await f.extents(orphan) == [(0, 0, 10)] and await f.extents("old") == [(0, 0, 20)]
        await hold(f, orphan, "m2")
        await f.change(Remove("bbb", orphan, 7, mount="m2"))
        assert await f.extents(orphan) == [(0, 0, 10)], "m1 may yet say that it has it open"
        f.w.clock.advance(200)
        assert await f.service.sweep() == 1 and len(await f.w.garbage()) == 1

    on_files(run, test)


def test_where_no_other_mount_lives_the_body_goes_at_once(run: Run) -> None:
    """Nor does a mount of another bucket, or one that has been silent for two minutes, keep anything."""

    async def test(f: Files) -> None:
        await live(f, "m0")
        f.w.clock.advance(200)
        await die(f)
        await f.w.buckets.create("other", ADMIN)
        for number, (bucket, mount) in enumerate([("", ""), ("bbb", "m1"), ("other", "m2")]):
            if bucket:
                await f.service.watch(Watch(bucket, -1, mount), ADMIN)
            orphan = await written(f)
            await f.change(Remove("bbb", "t", 6, mount="m1"))
            assert len(await f.w.garbage()) == number + 1
            assert (await hold(f, orphan, "m2")).code == "no-such-file"

    on_files(run, test)


def test_a_file_with_a_name_is_held_by_nobody(run: Run) -> None:
    async def test(f: Files) -> None:
        orphan = await written(f)
        assert (await hold(f, "t", "m1")).code == "bad-path"
        await live(f, "m1", "m2")
        await f.change(Remove("bbb", "t", 6, mount="m1"))
        assert (await hold(f, orphan, "m1,m3")).code == "bad-path"
        assert (await hold(f, orphan, "m" * 65)).code == "bad-path"

    on_files(run, test)
