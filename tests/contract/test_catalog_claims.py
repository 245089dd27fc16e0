"""What a writer says of an object himself, asking metadata directly: only what every reader can bear."""

from __future__ import annotations

import pytest

from metadata.catalog import buckets
from metadata.catalog.queries import Connection
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.auth.access import Principal
from tierstore.errors import NotFound
from tierstore.wire import lock
from tierstore.wire.names import Copy, Fill, ListItem, ObjectMeta, Put, SetMeta
from tierstore.wire.s3 import PARTS_BUCKET, marked_etag

__all__ = ["postgres", "run", "url_of"]

WRITER = Principal("W", "writer", {"*": "readwrite"})
SPLIT = "a\r\nset-cookie: b=c"
FORGED: list[ObjectMeta] = [
    ObjectMeta(content_type=SPLIT),
    ObjectMeta(content_type="a" * 2000),
    ObjectMeta(headers={"expires": SPLIT}),
    ObjectMeta(headers={"content-length": "7"}),
    ObjectMeta(headers={SPLIT: "7"}),
    ObjectMeta(checksums={"crc32c": SPLIT}),
    ObjectMeta(checksums={"md5": "AAAA"}),
    ObjectMeta(tags={"a": "\x00"}),
    ObjectMeta(tags={str(at): "" for at in range(51)}),
    *(
        ObjectMeta(extra={name: value})
        for name, value in (
            ("s3.sse", b"junk"), ("s3.parts", b"\x91\x92\x01\xce\x7f\xff\xff\xff"), ("s3.owner", b"somebody"),
            ("s3.acl", b"public-read"), ("s3.class", b"x\r\ny: z"), ("s3.lock-until", b"abc"),
            ("s3.lock-mode", b"FOREVER"), ("posix", b"junk"), ("unknown", b""),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("how", ["put", "copy", "change"])
def test_what_a_writer_forges_is_refused(run: Run, how: str) -> None:
    """It would split the answers to others, make gateways build lists without end, or stop whoever lists the bucket."""

    async def check(w: NamesWorld) -> None:
        await w.put("k", etag="e")
        for meta in FORGED:
            mutation = {
                "put": Put("bbb", "n", 0, "", [], meta), "copy": Copy("bbb", "n", "bbb", "k", meta=meta),
                "change": SetMeta("bbb", "k", meta),
            }[how]  # fmt: skip
            result = (await w.commit(mutation, who=WRITER))[0]
            assert result.code == "bad-meta" and result.detail, meta
        assert [(entry.key, entry.etag) for entry in (await w.page()).objects] == [("k", "e")]

    run(check)


@pytest.mark.parametrize("etag", ['a"\r\nx: y', 'a"b', "a;zz", "é", "e" * 300])
def test_an_etag_is_one_word(run: Run, etag: str) -> None:
    """Readers put it between quotes into a line; the mark of encrypted objects is the gateways' to set."""

    async def check(w: NamesWorld) -> None:
        assert (await w.put("k", etag=etag, who=WRITER)).code == "bad-meta"
        assert not (await w.put("k", etag="ts-00-1_x", meta=ObjectMeta("a/b", {"a": "b"}), who=WRITER)).code

    run(check)


def test_a_locked_encrypted_version_keeps_what_it_takes_to_read_it(run: Run) -> None:
    """A writer who may change what is said of an object took its sealed key away: under retention, and gone."""

    async def check(w: NamesWorld) -> None:
        rule = {lock.DOCUMENT: lock.rule_text(lock.LockRule("COMPLIANCE", 1))}
        await w.buckets.configure("bbb", ADMIN, documents=rule, versioning="enabled")
        sealed = {"s3.sse": b"x", "s3.parts": b"y", "s3.owner": b"z"}
        await w.put("k", etag=marked_etag("e", 90), meta=ObjectMeta("a/b", {}, {"sha256": "AA=="}, extra=sealed),
                    who=ADMIN)  # fmt: skip
        before = (await w.look("k")).meta
        assert before is not None and before.extra.items() >= sealed.items() and lock.MODE in before.extra
        # without a word on them, and as a program sends back what it read
        for extra in ({}, before.extra):
            new = ObjectMeta("c/d", {"a": "b"}, extra=extra)
            assert not (await w.commit(SetMeta("bbb", "k", new), who=WRITER))[0].code
            after = (await w.look("k")).meta
            assert after == ObjectMeta("c/d", {"a": "b"}, before.checksums, extra=before.extra)
        longer = {lock.MODE: b"COMPLIANCE", lock.UNTIL: b"9" * 13}
        held = SetMeta("bbb", "k", ObjectMeta(extra=longer), lock="retention")
        assert not (await w.commit(held, who=WRITER))[0].code
        for bad in ({lock.MODE: b"FOREVER"}, {lock.UNTIL: b"9" * 20}, {lock.HOLD: b"x"}):
            ask = SetMeta("bbb", "k", ObjectMeta(extra=longer | bad), lock="retention")
            assert (await w.commit(ask, who=WRITER))[0].code == "bad-meta"
        copied = (await w.commit(Copy("bbb", "copy", "bbb", "k", meta=ObjectMeta("e/f")), who=WRITER))[0]
        meta = (await w.look("copy")).meta
        assert not copied.code and meta is not None and meta.extra["s3.sse"] == b"x" and "s3.owner" not in meta.extra

    run(check)


def test_parts_of_uploads_and_bytes_of_other_sites_are_not_for_writers(run: Run) -> None:
    """Parts of all buckets lie in one: who may write everywhere read and replaced what policies closed to him. And a
    reader's bytes would have stood for those of another site."""

    async def check(w: NamesWorld) -> None:
        await w.put("k")
        await w.database.write(_make_parts_bucket)
        part = Put(PARTS_BUCKET, "ab/00001", 100, "e", [w.chunk(100)])
        assert (await w.commit(part, who=WRITER))[0].code == "no-such-bucket"
        assert not (await w.commit(part, who=ADMIN))[0].code
        assert (await w.look("ab/00001", bucket=PARTS_BUCKET, who=WRITER)).code == "no-such-bucket"
        assert not (await w.look("ab/00001", bucket=PARTS_BUCKET, who=ADMIN)).code
        with pytest.raises(NotFound):
            await w.listings.page(ListItem(PARTS_BUCKET), WRITER)
        copy = Copy("bbb", "stolen", PARTS_BUCKET, "ab/00001")
        assert (await w.commit(copy, who=WRITER))[0].code == "no-such-bucket"
        version = (await w.look("k")).version
        assert (await w.commit(Fill("bbb", "k", version, 0, [w.chunk(100)]), who=WRITER))[0].code == "access-denied"
        assert (await w.commit(Fill("bbb", "k", version, 0, []), who=WRITER))[0].code == "already-here"

    run(check)


def _make_parts_bucket(connection: Connection) -> None:
    buckets.create(connection, PARTS_BUCKET, owner="", at_ms=1)
