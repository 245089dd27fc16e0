"""Changes of mounts in a bucket with a sync rule: they are told like any other, and wait for the other site."""

from __future__ import annotations

from collections.abc import Sequence

from metadata.catalog import schema
from metadata.catalog.feed import NewChange
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.contract.test_catalog_files import Files, on_files
from tests.kit.names_world import ADMIN
from tierstore.wire.files import FileResult, Piece, Remove, Rename, SetAttributes, WriteFile
from tierstore.wire.names import CommitItem, CommitResult

__all__ = ["postgres", "run", "url_of"]


class OtherSite:
    """Stands for the waits of sync rules: notes what was waited for, answers what the test says."""

    is_wanted = True

    def __init__(self) -> None:
        self.told: list[tuple[int, str]] = []
        self.answer = CommitResult()

    async def confirm_changes(self, name: str, changes: Sequence[NewChange]) -> CommitResult:
        assert name == "bbb"
        self.told += [(change.kind, change.key) for change in changes]
        return self.answer

    def take(self) -> list[tuple[int, str]]:
        told, self.told = self.told, []
        return told


class Closed:
    """A site that was restored and takes nothing in its shared buckets."""

    may_refuse = True

    def refusal(self, item: CommitItem) -> CommitResult | None:
        return self.closed("bbb")

    async def settle(self) -> None:
        """Nothing will change."""

    def closed(self, bucket: str) -> CommitResult | None:
        return CommitResult(code="site-comparing", detail="not yet")


async def _with_rule(files: Files) -> OtherSite:
    rules = [{"target": "site2", "mode": "sync", "on_failure": "fail"}]
    await files.w.buckets.set_replication("bbb", rules, ADMIN)
    site = OtherSite()
    files.service.sync = site
    return site


def test_what_a_mount_writes_names_and_removes_waits_for_the_sites_of_sync_rules(run: Run) -> None:
    """An editor's save is acknowledged by close(): under a sync rule it must not be before the other site has it."""

    async def test(files: Files) -> None:
        site = await _with_rule(files)
        assert not (await files.write("a", 100, make=True)).code
        assert site.take() == [(schema.CHANGE_PUT, "a")]
        assert not (await files.change(Rename("bbb", "a", "b", 9))).code
        assert sorted(key for _, key in site.take()) == ["a", "b"]
        row = (await files.look("b")).entry
        assert row is not None
        assert not (await files.change(SetAttributes("bbb", "b", row.attributes.ino, 9, mode=0o600))).code
        assert (schema.CHANGE_META, "b") in site.take()
        assert not (await files.change(Remove("bbb", "b", 9))).code
        assert [key for _, key in site.take()] == ["b"]

    on_files(run, test)


def test_a_mounts_write_that_the_other_site_has_not_got_is_not_acknowledged_and_its_repeat_waits_again(
    run: Run,
) -> None:
    """The mount repeats a write whose outcome is unknown; its old result alone would hide that the site is behind."""

    async def test(files: Files) -> None:
        site = await _with_rule(files)
        await files.write("a", 100, make=True)
        found = (await files.look("a")).entry
        assert found is not None
        site.take()
        site.answer = CommitResult(code="outcome-unknown", detail="site2 is away")
        chunk = files.w.chunk(50)
        item = files.item(WriteFile("bbb", "a", found.attributes.ino, 9, [Piece(0, 50, 0)], [chunk]))

        async def send() -> FileResult:
            return (await files.service.change([(item, ADMIN)]))[0]

        assert (await send()).code == "outcome-unknown"
        assert (await send()).code == "outcome-unknown"
        assert site.take() == [(schema.CHANGE_PUT, "a")] * 2
        site.answer = CommitResult()
        assert not (await send()).code

    on_files(run, test)


def test_a_site_that_is_compared_takes_no_changes_from_mounts(run: Run) -> None:
    """Rule 17: a restored site is closed whoever writes."""

    async def test(files: Files) -> None:
        files.w.commits.gate = Closed()
        result = await files.make("a")
        assert result.code == "site-comparing"
        files.w.commits.gate = None
        assert (await files.look("a")).code == "no-such-file"

    on_files(run, test)
