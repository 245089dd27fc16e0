"""The catalog is lost, or an old one was restored: every acknowledged object comes back byte for byte, also those that
no copy of the catalog knows (rules 1 and 5)."""

from __future__ import annotations

import asyncio
import io
import random
from pathlib import Path

import pytest

from tests.kit.admin import ask
from tests.kit.cluster import Cluster, cluster, wait_until
from tests.kit.http import Client
from tests.kit.recovery import lose_catalog, metadata, object_servers_only, wait_journalled
from tierstore.errors import NotFound, PreconditionFailed
from tierstore.sdk import SyncStore
from tierstore.wire.names import Condition

#: A journal that ends with the first look at it: everything later is known by the chunks' headers alone.
NO_JOURNAL = {"TIERSTORE_CATALOG__JOURNAL_INTERVAL": "1h", "TIERSTORE_CATALOG__SNAPSHOT_INTERVAL": "1h"}
SIZES = (1, 5_000, 300_000, 3_000_000)


def body(key: str, size: int) -> bytes:
    return random.Random(f"{key} {size}").randbytes(size)


def put_streamed(c: Cluster, key: str, data: bytes) -> None:
    """Through the gateway, as it comes."""

    async def main() -> None:
        client = Client(c.gateway, token=c.token)
        answer = await client.request("PUT", f"/v1/objects/rebuilt/{key}", data)
        assert answer.status == 200, answer
        client.close()

    asyncio.run(main())


def wait_reconciled(c: Cluster) -> None:
    """Until every device was compared with the catalog, which judges what is an orphan."""

    def are_all() -> bool:
        servers = [s for s in (ask(c, "/v1/admin/servers") or {"servers": []})["servers"] if s["role"] == "objectd"]
        return len(servers) == 3 and all(d["is_reconciled"] for s in servers for d in s["devices"])

    wait_until(are_all, seconds=60, what="all devices reconciled")


def has_looked(c: Cluster) -> bool:
    """Whether the snapshot duty had its first turn; the next is an hour away."""
    duties = (ask(c, "/v1/admin/jobs?limit=1") or {"duties": []})["duties"]
    return any(d["name"] == "snapshot" and d["steps"] + d["failures"] > 0 for d in duties)


def check(store: SyncStore, kept: dict[str, bytes], gone: set[str]) -> None:
    for key, data in kept.items():
        assert store.get("rebuilt", key) == data, key
    for key in gone:
        with pytest.raises(NotFound):
            store.get("rebuilt", key)
    listed = {entry.key for entry in store.list("rebuilt")}
    assert listed == set(kept), (sorted(listed - set(kept)), sorted(set(kept) - listed))


def write_old(store: SyncStore) -> tuple[dict[str, bytes], set[str]]:
    """What the journal will know: objects, overwritten ones, deleted ones."""
    store.create_bucket("rebuilt")
    kept: dict[str, bytes] = {}
    for number in range(40):
        key = f"old/{number}"
        kept[key] = body(key, SIZES[number % len(SIZES)])
        store.put("rebuilt", key, kept[key])
    for number in range(5):
        key = f"old/{number}"
        kept[key] = body(key + "again", 7_000)
        store.put("rebuilt", key, kept[key])
    gone = {f"old/{number}" for number in range(5, 10)}
    for key in gone:
        store.delete("rebuilt", key)
        del kept[key]
    return kept, gone


def write_young(c: Cluster, store: SyncStore, kept: dict[str, bytes], gone: set[str]) -> dict[str, str]:
    """What no copy of the catalog knows: new objects of one chunk and of several, overwrites, a name that was deleted
    before, conditional writes. key -> ETag."""
    etags: dict[str, str] = {}
    for number in range(40):
        key = f"young/{number} é"
        kept[key] = body(key, SIZES[number % len(SIZES)])
        etags[key] = store.put(
            "rebuilt", key, kept[key], content_type="text/x-test", user_meta={"number": str(number)}
        ).etag
    for key in ("old/0", "old/20"):
        kept[key] = body(key + "young", 9_000)
        etags[key] = store.put("rebuilt", key, kept[key]).etag
    key = sorted(gone)[0]
    gone.discard(key)
    kept[key] = body(key + "back", 4_000)
    etags[key] = store.put("rebuilt", key, kept[key], condition=Condition(if_none_match=["*"])).etag
    with pytest.raises(PreconditionFailed):
        store.put("rebuilt", key, b"refused", condition=Condition(if_none_match=["*"]))
    kept["big/declared"] = body("big/declared", 20_000_000)
    put_streamed(c, "big/declared", kept["big/declared"])
    for name, size in (("big/full", 16 << 20), ("big/more", (8 << 20) + 1)):    # of unknown length
        kept[name] = body(name, size)
        etags[name] = store.put("rebuilt", name, io.BytesIO(kept[name])).etag
    return etags


def test_a_lost_catalog_is_made_again_with_what_no_copy_of_it_knew(tmp_path: Path) -> None:
    """The machine with the catalog burns down, seconds after the last acknowledged write: nothing acknowledged is lost,
    nothing deleted comes back, and the cluster goes on."""
    with cluster(tmp_path) as c:
        with SyncStore(c.gateway, c.token) as store:
            kept, gone = write_old(store)
        wait_journalled(c)
        assert c.stop() == 0
        c.env.update(NO_JOURNAL)
        c.start()
        wait_until(lambda: has_looked(c), seconds=60, what="the journal's one look")
        with SyncStore(c.gateway, c.token) as store:
            etags = write_young(c, store, kept, gone)
        c.kill_everything()
        lose_catalog(c)
        with object_servers_only(c):
            report = metadata(c, "rebuild")
        print(report)
        adopted = next(line for line in report.splitlines() if "were adopted" in line)
        assert int(adopted.split()[0]) >= 46, report
        c.env.clear()
        c.start()
        with SyncStore(c.gateway, c.token) as store:
            check(store, kept, gone)
            info = store.head("rebuilt", "young/3 é")
            assert info.content_type == "text/x-test" and info.user_meta == {"number": "3"}
            for key, etag in etags.items():
                assert store.head("rebuilt", key).etag == etag, key
            store.put("rebuilt", "old/0", b"new", condition=Condition(if_match=[etags["old/0"]]))
            kept["old/0"] = b"new"
            wait_reconciled(c)
            check(store, kept, gone)
        status = ask(c, "/v1/admin/status")
        assert status["deletion_barred"] == ""


@pytest.mark.slow
def test_an_old_backup_deletes_nothing_and_a_rebuild_brings_the_rest(tmp_path: Path) -> None:
    """Restored from last night's backup: everything written since is on the object servers only. A catalog that took it
    for garbage would delete it."""
    backup = tmp_path / "backup"
    quick = {"TIERSTORE_DUTIES__ORPHAN_AFTER": "1s", "TIERSTORE_DUTIES__COLLECT_AFTER": "1s"}
    with cluster(tmp_path / "c", env=quick) as c:
        with SyncStore(c.gateway, c.token) as store:
            kept, gone = write_old(store)
        assert "objects" in metadata(c, "backup", str(backup))
        with SyncStore(c.gateway, c.token) as store:
            write_young(c, store, kept, gone)
        c.kill_everything()
        lose_catalog(c)
        assert "objects restored" in metadata(c, "restore", str(backup))
        with object_servers_only(c):
            print(metadata(c, "rebuild"))
        c.start()
        with SyncStore(c.gateway, c.token) as store:
            check(store, kept, gone)
            wait_reconciled(c)
            check(store, kept, gone)
