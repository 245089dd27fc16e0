"""Backfills: what exists is queued for a site page by page, as if it were written now, until all is walked.

State (setting `site-backfill.<target>`, JSON): parts, what is still to be walked, each a bucket's prefix behind a key
(again: for a target that has forgotten names); queued and walked, objects so far; paused; compare, the epoch of a site
that came back with an older catalog (see compare), and through, the sequence at which its answer is complete. Every
step is one transaction, so a kill costs nothing; a step waits while the target's queue is long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from metadata.catalog import buckets, fetched, sites
from metadata.catalog.buckets import REPLICATED_FROM, Bucket
from metadata.catalog.database import Database
from metadata.catalog.queries import Connection
from metadata.catalog.session import Session
from metadata.services.sites.apply import rules_of
from tierstore.clock import Clock

BACKFILL_PAGE: Final = 500
#: A backfill waits while the queue of its target is longer.
BACKFILL_QUEUE_MAX: Final = 20_000


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
                _add(c, target, [_part(b, "", again=True) for b in shared], {"compare": epoch, "through": 0})
                return max(1, len(shared))
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
            part = parts[0]
            page = sites.queue_page(
                session, target, int(part["bucket"]), prefix=part["prefix"], after=part["after"],
                limit=BACKFILL_PAGE, at_ms=now_ms, is_again=bool(part.get("again")),
            )  # fmt: skip
            state["parts"] = [{**part, "after": page.last}, *parts[1:]] if page.last else parts[1:]
            state["queued"] = state.get("queued", 0) + page.queued
            state["walked"] = state.get("walked", 0) + page.walked
            sites.set_backfill(c, target, state)
            return bool(state["parts"])

        return await self._database.batch(work)


def _part(bucket: Bucket, prefix: str, *, again: bool = False) -> dict[str, Any]:
    return {"bucket": bucket.id, "prefix": prefix, "after": "", "again": again}


def _add(c: Connection, target: str, parts: list[dict[str, Any]], marks: dict[str, int]) -> None:
    state = sites.lock_backfill(c, target, make=True)
    if not state.get("parts"):
        state |= {"queued": 0, "walked": 0}         # a new walk counts from zero
    kept: list[dict[str, Any]] = list(state.get("parts", ()))
    waiting = {(part["bucket"], part["prefix"]): part for part in kept if not part["after"]}
    for part in parts:
        known = waiting.get((part["bucket"], part["prefix"]))
        if known is None:
            kept.append(part)
        elif part["again"]:
            known["again"] = True
    sites.set_backfill(c, target, {**state, **marks, "parts": kept})


def _is_shared(bucket: Bucket, site: str) -> bool:
    sources = bucket.config.get(REPLICATED_FROM, "").split(",")
    return site in sources or any(rule["target"] == site for rule in rules_of(bucket))
