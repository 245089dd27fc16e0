"""Quotas on every engine: writers side by side do not pass one together, and the count stays true."""

from __future__ import annotations

import asyncio

import pytest

from metadata.services.names.quotas import Quota, Quotas
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.contract.test_catalog_files import Files, on_files
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.auth.access import Principal
from tierstore.errors import AccessDenied
from tierstore.wire.files import S_IFDIR, Link, Remove, Rename

__all__ = ["postgres", "run", "url_of"]


def test_writers_side_by_side_stay_within_the_quota_together(run: Run) -> None:
    """Judged one by one against the same old count, all of them would have passed."""

    async def check(w: NamesWorld) -> None:
        quotas = Quotas(w.database, w.names, w.clock)
        await w.put("before", chunks=[w.chunk(100)])
        assert await quotas.set("bbb", Quota(bytes=1000), ADMIN) == (1, 100)
        done = await asyncio.gather(*(w.put(f"k{n}", chunks=[w.chunk(100)]) for n in range(30)))
        assert sorted(one.code for one in done) == [""] * 9 + ["quota-exceeded"] * 21
        assert await quotas.get("bbb", ADMIN) == (Quota(bytes=1000), (10, 1000))
        await w.delete("before")
        taken = next(n for n, one in enumerate(done) if not one.code)
        assert (await w.put(f"k{taken}", chunks=[w.chunk(200)])).code == ""
        assert await quotas.get("bbb", ADMIN) == (Quota(bytes=1000), (9, 1000))
        assert await quotas.recount() == 1
        assert await quotas.get("bbb", ADMIN) == (Quota(bytes=1000), (9, 1000))

    run(check)


def test_a_quota_is_set_by_administrators_of_the_cluster_only(run: Run) -> None:
    """The tenant whose bucket it bounds may not lift it."""

    async def check(w: NamesWorld) -> None:
        quotas = Quotas(w.database, w.names, w.clock)
        tenant = Principal("T", "t", {"bbb": "admin"})
        with pytest.raises(AccessDenied):
            await quotas.set("bbb", Quota(objects=1), tenant)
        assert await quotas.get("bbb", tenant) == (Quota(), None)

    run(check)


def test_what_mounts_make_larger_is_counted_and_refused(run: Run) -> None:
    """Made, written, appended, linked: each is judged by what it adds. What does not grow goes through, also above the
    quota; and the count is what a recount finds."""

    async def test(f: Files) -> None:
        quotas = Quotas(f.w.database, f.w.names, f.w.clock)

        async def holds(objects: int, held: int) -> None:
            assert (await quotas.get("bbb", ADMIN))[1] == (objects, held)
            await quotas.recount()
            assert (await quotas.get("bbb", ADMIN))[1] == (objects, held)

        await f.w.put("by-rest", chunks=[f.w.chunk(100)])
        await quotas.set("bbb", Quota(bytes=1000, objects=4), ADMIN)
        assert not (await f.make("d", kind=S_IFDIR)).code
        assert not (await f.write("d/f", 300, make=True)).code
        await holds(2, 400)
        assert not (await f.write("d/f", 100, at=300, append_at=300)).code
        assert not (await f.write("d/f", 50, at=20)).code
        await holds(2, 500)
        assert (await f.write("d/g", 501, make=True)).code == "quota-exceeded"
        assert (await f.write("d/f", 501, at=400)).code == "quota-exceeded"
        assert (await f.look("d/g")).code == "no-such-file" and (await f.extents("d/f"))[-1][0] == 300
        await holds(2, 500)
        assert not (await f.change(Link("bbb", "d/f", "d/other", 9))).code
        await holds(3, 900)
        assert (await f.write("d/f", 60, at=400)).code == "quota-exceeded", "it would grow under both names"
        assert not (await f.write("d/f", truncate_to=100)).code
        await holds(3, 300)
        assert not (await f.make("empty")).code
        assert (await f.make("more")).code == "quota-exceeded"
        assert not (await f.change(Rename("bbb", "d/f", "by-rest", 9))).code
        await holds(3, 300 - 100)
        await quotas.set("bbb", Quota(bytes=10, objects=1), ADMIN)
        assert not (await f.write("by-rest", 100)).code, "as large as before"
        assert not (await f.change(Rename("bbb", "d", "e", 9))).code
        assert not (await f.change(Remove("bbb", "e/other", 9, holder="m"))).code
        assert (await f.write("by-rest", 101)).code == "quota-exceeded"
        await holds(2, 100)

    on_files(run, test)


def test_where_versions_are_kept_each_write_of_a_mount_adds_one(run: Run) -> None:
    """The old one stays, and holds its bytes."""

    async def test(f: Files) -> None:
        quotas = Quotas(f.w.database, f.w.names, f.w.clock)
        await f.w.buckets.configure("bbb", ADMIN, versioning="enabled")
        await quotas.set("bbb", Quota(bytes=250), ADMIN)
        assert not (await f.write("f", 100, make=True)).code
        assert not (await f.write("f", 100, truncate_to=0)).code
        assert (await quotas.get("bbb", ADMIN))[1] == (2, 200)
        assert (await f.write("f", 100, truncate_to=0)).code == "quota-exceeded"
        assert not (await f.change(Remove("bbb", "f", 9))).code
        assert (await quotas.get("bbb", ADMIN))[1] == (2, 200)
        await quotas.recount()
        assert (await quotas.get("bbb", ADMIN))[1] == (2, 200)

    on_files(run, test)
