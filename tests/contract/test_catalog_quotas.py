"""Quotas on every engine: writers side by side do not pass one together, and the count stays true."""

from __future__ import annotations

import asyncio

import pytest

from metadata.services.names.quotas import Quota, Quotas
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.auth.access import Principal
from tierstore.errors import AccessDenied

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
