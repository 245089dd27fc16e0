"""Lifecycle and notifications on every engine, and over a restart: a new process begins where nothing is lost."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from metadata.services.names.lifecycle import PART_AGE_MS, Lifecycle
from metadata.services.names.notify import Notify
from metadata.services.names.s3_names import S3Names
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.auth.access import Principal
from tierstore.errors import RequestError
from tierstore.policy.lifecycle import DOCUMENT, LifecycleRule, Move, rules_text
from tierstore.policy.notify import ARN, NotifyRule
from tierstore.policy.notify import DOCUMENT as NOTIFICATION
from tierstore.policy.notify import rules_text as notify_text
from tierstore.wire.names import ObjectMeta
from tierstore.wire.s3 import PARTS_BUCKET, BucketCall, UploadCall, part_key
from tierstore.wire.storage_class import class_of

__all__ = ["postgres", "run", "url_of"]
DAY_SECONDS = 10.0
DAEMON = Principal("", "server 1", {"*": "admin"}, server=1)


def lifecycle_of(w: NamesWorld) -> Lifecycle:
    """As a process has it that has just started."""
    names = S3Names(w.database, w.names, w.clock)
    return Lifecycle(w.database, w.commits, names, w.clock, rng=random.Random(3), day_seconds=DAY_SECONDS)


async def whole_round(lifecycle: Lifecycle) -> int:
    done, more = 0, True
    while more:
        count, more = await lifecycle.step()
        done += count
    return done


async def keys(w: NamesWorld, bucket: str = "bbb") -> list[str]:
    return [entry.key for entry in (await w.page(bucket=bucket)).objects]


async def with_rules(w: NamesWorld, *rules: LifecycleRule) -> None:
    await w.buckets.configure("bbb", ADMIN, documents={DOCUMENT: rules_text(list(rules))})
    w.names.forget()


def test_what_is_due_is_done_once_whoever_begins_anew(run: Run) -> None:
    """A process that died in the middle of a round leaves nothing behind, and nothing is done twice."""

    async def check(w: NamesWorld) -> None:
        await with_rules(
            w, LifecycleRule("old", True, "logs/", expire_days=1),
            LifecycleRule("cold", True, "data/", moves=[Move("GLACIER", 2)]),
        )
        for key in ("logs/a", "logs/b", "data/c", "keep"):
            await w.put(key, meta=ObjectMeta(tags={"t": "1"}))
        assert await whole_round(lifecycle_of(w)) == 0
        w.clock.advance(3 * DAY_SECONDS)
        died = lifecycle_of(w)
        await died.step()
        assert await whole_round(lifecycle_of(w)) + await whole_round(lifecycle_of(w)) <= 3
        assert await keys(w) == ["data/c", "keep"]
        moved = (await w.look("data/c")).meta
        assert moved is not None
        assert (class_of(moved), moved.tags) == ("GLACIER", {"t": "1"})

    run(check)


def test_an_object_that_was_overwritten_in_between_stays(run: Run) -> None:
    """The deletion names the version that was judged, not the key."""

    async def check(w: NamesWorld) -> None:
        await with_rules(w, LifecycleRule("old", True, expire_days=1))
        await w.put("k")
        w.clock.advance(2 * DAY_SECONDS)
        await w.put("k", size=200)
        assert await whole_round(lifecycle_of(w)) == 0
        assert await keys(w) == ["k"]
        w.clock.advance(2 * DAY_SECONDS)
        assert await whole_round(lifecycle_of(w)) == 1
        assert await keys(w) == []

    run(check)


def test_parts_that_nobody_will_take_are_swept(run: Run) -> None:
    """A part that was committed while its upload ended would keep its bytes for ever; those of an upload that is alive,
    and young ones, which their gateway still removes itself, stay."""

    async def check(w: NamesWorld) -> None:
        names = S3Names(w.database, w.names, w.clock)
        alive, ended = bytes([1]) * 16, bytes([2]) * 16
        for upload in (alive, ended):
            await names.upload(UploadCall("create", "bbb", "k", upload, "me", ObjectMeta()), DAEMON)
            await w.put(part_key(upload, 1), bucket=PARTS_BUCKET)
        await names.upload(UploadCall("abort", "bbb", "k", ended), DAEMON)
        assert await keys(w, PARTS_BUCKET) == [part_key(alive, 1)]
        late = await w.put(part_key(ended, 2), bucket=PARTS_BUCKET)
        assert late.code == ""
        assert await whole_round(lifecycle_of(w)) == 0
        assert await keys(w, PARTS_BUCKET) == [part_key(alive, 1), part_key(ended, 2)]
        w.clock.advance(PART_AGE_MS / 1000 + 1)
        young = await w.put(part_key(ended, 3), bucket=PARTS_BUCKET)
        assert young.code == ""
        assert await whole_round(lifecycle_of(w)) == 1
        assert await keys(w, PARTS_BUCKET) == [part_key(alive, 1), part_key(ended, 3)]

    run(check)


class Hook:
    """A webhook that may be away."""

    def __init__(self) -> None:
        self.is_away = False
        self.heard: list[tuple[str, str]] = []

    async def post(self, url: str, body: bytes) -> bool:
        assert url == "http://hook/"
        if self.is_away:
            return False
        records: list[dict[str, Any]] = json.loads(body)["Records"]
        self.heard += [(record["eventName"], record["s3"]["object"]["key"]) for record in records]
        return True


def test_a_webhook_hears_of_all_that_happened_while_everything_was_away(run: Run) -> None:
    """The place in the feed is kept with the names: a new process goes on there, in order, nothing lost or twice."""

    async def check(w: NamesWorld) -> None:
        rule = NotifyRule("n", "Topic", f"{ARN}hook", ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"], suffix=".jpg")
        await w.buckets.configure("bbb", ADMIN, documents={NOTIFICATION: notify_text([rule])})
        hook = Hook()

        def started() -> Notify:
            return Notify(w.database, {"hook": "http://hook/"}, hook.post, region="us-east-1")

        await until_done(started())
        await w.put("a.jpg")
        await w.put("a.txt")
        await until_done(started())
        assert hook.heard == [("ObjectCreated:Put", "a.jpg")]
        hook.is_away = True
        await w.put("b.jpg")
        await w.delete("a.jpg")
        await until_done(started())
        hook.is_away = False
        restarted = started()
        await until_done(restarted)
        await until_done(started())
        assert hook.heard[1:] == [("ObjectCreated:Put", "b.jpg"), ("ObjectRemoved:Delete", "a.jpg")]
        assert (restarted.delivered, restarted.lost) == (2, 0)

    run(check)


def test_a_webhook_that_is_named_hears_of_what_comes_next_however_late_the_duty_looks(run: Run) -> None:
    """The place in the feed is noted with the rule: a cluster that has just started has not looked yet."""

    async def check(w: NamesWorld) -> None:
        await w.put("before.jpg")
        hook = Hook()
        for name in ("hook", "other"):
            rule = NotifyRule("n", "Topic", f"{ARN}{name}", ["s3:ObjectCreated:*"])
            call = BucketCall("configure", "bbb", documents={NOTIFICATION: notify_text([rule])})
            await S3Names(w.database, w.names, w.clock).bucket(call, DAEMON)
            await w.put("between.jpg")
        rule = NotifyRule("n", "Topic", f"{ARN}hook", ["s3:ObjectCreated:*"])
        await w.buckets.configure("bbb", ADMIN, documents={NOTIFICATION: notify_text([rule])})
        await w.put("after.jpg")
        await until_done(Notify(w.database, {"hook": "http://hook/"}, hook.post, region="us-east-1"))
        # named again later, it goes on from where it was named first
        assert [key for _, key in hook.heard] == ["between.jpg", "between.jpg", "after.jpg"]

    run(check)


def test_no_document_is_written_natively_and_the_clusters_own_are_not_removed(run: Run) -> None:
    """One that nobody judged would stop lifecycle and notifications of all buckets, or turn object lock off."""

    async def check(w: NamesWorld) -> None:
        await with_rules(w, LifecycleRule("old", True, "logs/", expire_days=1))
        for document in (DOCUMENT, NOTIFICATION, "s3.object-lock", "replication", "x"):
            with pytest.raises(RequestError, match="can only be removed"):
                await w.buckets.change("bbb", ADMIN, documents={document: "{"})
        kept = ("s3.object-lock", "s3.replication-names", "replication", "replicated-from", "home-site", "quota")
        for document in kept:
            with pytest.raises(RequestError, match="cannot be removed here"):
                await w.buckets.change("bbb", ADMIN, documents={DOCUMENT: None, document: None})
        assert DOCUMENT in (await w.buckets.get("bbb", ADMIN)).config
        await w.buckets.change("bbb", ADMIN, documents={DOCUMENT: None})
        assert DOCUMENT not in (await w.buckets.get("bbb", ADMIN)).config

    run(check)


async def until_done(notify: Notify) -> None:
    """Under no lease: epoch 0."""
    more = True
    while more:
        _, more = await notify.step(0)
