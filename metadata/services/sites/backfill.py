"""Backfills: what exists is queued for a site page by page, as if it were written now, until all is walked.

State (setting `site-backfill.<target>`, JSON): parts, what is still to be walked; queued and walked, objects so far;
paused; compare, the epoch of a site that came back with an older catalog (see compare), and through, the sequence at
which its answer is complete. A part is a bucket's prefix behind a key (again: for a target that has forgotten names);
once its latest versions are walked the older ones follow, behind a version of that key. Or it is the feed behind a
sequence, up to another one (gone, through), for the versions that were removed for good. Every step is one
transaction, so a kill costs nothing; a step waits while the target's queue is long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from metadata.catalog import backfill, buckets, feed, fetched, sites
from metadata.catalog.buckets import REPLICATED_FROM, Bucket
from metadata.catalog.database import Database
from metadata.catalog.queries import Connection
from metadata.catalog.session import Session
from metadata.services.sites.apply import rules_of
from tierstore.clock import Clock

BACKFILL_PAGE: Final = 500
#: A backfill waits while the queue of its target is longer.
BACKFILL_QUEUE_MAX: Final = 20_000
#: Changes of the feed looked through for deletes in one step.
GONE_PAGE: Final = 1_000


@dataclass(frozen=True, slots=True)
class BackfillProgress:
    """parts: buckets and prefixes still to be walked; walked: objects looked at; queued: of them, those that go."""

    parts: int
    walked: int
    queued: int
    is_paused: bool


class Backfills:
    """One per process; any process may ask, the holder of the promoter's lease walks."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def begin(self, target: str, bucket: str = "", prefix: str = "") -> None:
        """Queue what exists for a site: one bucket's prefix, or everything that a rule sends there."""

        def work(c: Connection) -> None:
            found = [buckets.get(c, bucket)] if bucket else buckets.everything(c)
            new = []
            for each in found:
                prefixes = [prefix] if bucket else [r["prefix"] for r in rules_of(each) if r["target"] == target]
                new += [_part(each, p) for p in prefixes]
            _add(c, target, new, {})

        await self._database.write(work)

    def rules_changed(self, c: Connection, bucket: Bucket, new: Sequence[tuple[str, str]]) -> None:
        """Rules of a bucket are being replaced, in this transaction: what exists is for those that are new, too, as
        (target, prefix). What is written from now on is queued by its own write."""
        for target, prefix in new:
            _add(c, target, [_part(bucket, prefix)], {})

    async def answer_compare(self, target: str, epoch: int) -> int:
        """A site asks what it may have missed: every name of buckets that go there or came from there is sent again.
        How much is left before it has heard all, 0 when it has. To be repeated until then."""

        def work(c: Connection) -> int:
            state = sites.lock_backfill(c, target)
            if state.get("compare") != epoch:
                fetched.forget_site(c, sites.number_of(c, target))      # it may have lost what it wrote
                shared = [b for b in buckets.everything(c) if _is_shared(b, target)]
                parts = [_part(b, "", again=True) for b in shared]
                if any(b.versioning for b in shared):       # elsewhere a delete leaves a tombstone
                    parts.append(_gone_part(feed.oldest(c), feed.head(c)[0]))
                _add(c, target, parts, {"compare": epoch, "through": 0})
                return max(1, len(parts))
            if state.get("parts"):
                return len(state["parts"])
            if not state.get("through"):
                newest = sites.newest_queued(c, target)
                sites.set_backfill(c, target, {**state, "through": newest or -1})
                return max(1, sites.names_before(c, target, newest))
            return sites.names_before(c, target, state["through"])

        return await self._database.write(work)

    async def pause(self, target: str, *, paused: bool) -> None:
        """Durable."""

        def work(c: Connection) -> None:
            sites.set_backfill(c, target, {**sites.lock_backfill(c, target, make=True), "paused": paused})

        await self._database.write(work)

    async def progress(self, target: str) -> BackfillProgress:
        state = await self._database.read(lambda c: sites.backfill_state(c, target))
        return BackfillProgress(
            len(state.get("parts", ())), state.get("walked", 0), state.get("queued", 0), bool(state.get("paused"))
        )

    async def step(self, target: str) -> bool:
        """Queue one page; whether there is more to do now."""
        now_ms = self._clock.now_ms()

        def work(session: Session) -> bool:
            c = session.connection
            state: dict[str, Any] = sites.lock_backfill(c, target)
            parts = state.get("parts", [])
            if not parts or state.get("paused") or sites.is_queue_longer(c, target, BACKFILL_QUEUE_MAX):
                return False
            walk = _step_gone if "gone" in parts[0] else _step_names
            queued, walked, left = walk(session, target, parts[0], now_ms)
            state["parts"] = [*left, *parts[1:]]
            state["queued"] = state.get("queued", 0) + queued
            state["walked"] = state.get("walked", 0) + walked
            sites.set_backfill(c, target, state)
            return bool(state["parts"])

        return await self._database.batch(work)


_Part = dict[str, Any]


def _step_names(session: Session, target: str, part: _Part, now_ms: int) -> tuple[int, int, list[_Part]]:
    """A page of names; (queued, walked, what is left of the part)."""
    after_version = part.get("version")
    page = backfill.queue_page(
        session, target, int(part["bucket"]), prefix=part["prefix"], after=part["after"], limit=BACKFILL_PAGE,
        at_ms=now_ms, is_again=bool(part.get("again")), after_version=after_version,
    )  # fmt: skip
    left: list[_Part] = []
    if page.last:
        left = [{**part, "after": page.last, **({} if after_version is None else {"version": page.version})}]
    elif after_version is None and _is_versioned(session.connection, int(part["bucket"])):
        left = [{**part, "after": "", "version": 0}]        # the older versions
    return page.queued, page.walked, left


def _step_gone(session: Session, target: str, part: _Part, now_ms: int) -> tuple[int, int, list[_Part]]:
    """A page of the feed; what versions are gone is nobody's object: none is walked."""
    c = session.connection
    through = min(part["gone"] + GONE_PAGE, part["through"])
    ids = [b.id for b in buckets.everything(c) if b.versioning and _is_shared(b, target)]
    queued = backfill.queue_gone(session, target, ids, after=part["gone"], through=through, at_ms=now_ms)
    return queued, 0, [{**part, "gone": through}] if through < part["through"] else []


def _is_versioned(c: Connection, bucket_id: int) -> bool:
    found = sites.buckets_of(c, [bucket_id])
    return bool(found) and bool(found[bucket_id].versioning)


def _gone_part(oldest: int, newest: int) -> _Part:
    """All changes that the feed still has now; those that the walk itself adds are behind them."""
    return {"bucket": 0, "prefix": "", "after": "", "gone": max(0, oldest - 1), "through": newest}


def _part(bucket: Bucket, prefix: str, *, again: bool = False) -> dict[str, Any]:
    return {"bucket": bucket.id, "prefix": prefix, "after": "", "again": again}


def _add(c: Connection, target: str, parts: list[dict[str, Any]], marks: dict[str, int]) -> None:
    state = sites.lock_backfill(c, target, make=True)
    if not state.get("parts"):
        state |= {"queued": 0, "walked": 0}         # a new walk counts from zero
    kept: list[dict[str, Any]] = list(state.get("parts", ()))
    waiting = {(part["bucket"], part["prefix"]): part for part in kept if _is_unbegun(part)}
    for part in parts:
        known = waiting.get((part["bucket"], part["prefix"])) if "gone" not in part else None
        if known is None:
            kept.append(part)
        elif part["again"]:
            known["again"] = True
    sites.set_backfill(c, target, {**state, **marks, "parts": kept})


def _is_unbegun(part: _Part) -> bool:
    return not part["after"] and "version" not in part and "gone" not in part


def _is_shared(bucket: Bucket, site: str) -> bool:
    sources = bucket.config.get(REPLICATED_FROM, "").split(",")
    return site in sources or any(rule["target"] == site for rule in rules_of(bucket))
