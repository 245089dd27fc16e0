"""Rule 1 on a real cluster: a catalog older than the devices deletes nothing, before, during and after the rebuild; and
the comparison with the catalog sees what it does not know."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fault.test_rebuild import check, wait_reconciled, write_old, write_young
from tests.kit.admin import ask, call
from tests.kit.cluster import Cluster, cluster, wait_until
from tests.kit.recovery import lose_catalog, metadata, object_servers_only
from tierstore.sdk import SyncStore

#: So short that whatever may be thrown away is thrown away while the test looks.
QUICK = {
    "TIERSTORE_DUTIES__ORPHAN_AFTER": "1s", "TIERSTORE_DUTIES__COLLECT_AFTER": "1s",
    "TIERSTORE_DUTIES__INVENTORY_INTERVAL": "1s", "TIERSTORE_DUTIES__DELETED_SHARE_MAX": "1",
}  # fmt: skip


def compared(c: Cluster) -> dict[str, Any]:
    """A comparison from its start to its end."""
    call(c, "POST", "/v1/admin/compare")

    def ended() -> Any:
        answer = ask(c, "/v1/admin/compare")
        return answer if answer and not answer["is_running"] else None

    return dict(wait_until(ended, seconds=180, what="the comparison"))


def total(answer: dict[str, Any], what: str) -> int:
    return sum(device[what] for device in answer["devices"])


def inventories(c: Cluster) -> int:
    duties = (ask(c, "/v1/admin/jobs?limit=1") or {"work": []})["work"]
    return sum(w["done"] for w in duties if w["why"] == "reconcile")


@pytest.mark.slow
def test_an_old_catalog_throws_nothing_away_before_it_is_rebuilt(tmp_path: Path) -> None:
    """An operator restores last night's backup and starts the cluster on it before he reads the manual. Everything
    written since is unknown to it, collection and orphans are due at once, and nothing may go."""
    backup = tmp_path / "backup"
    with cluster(tmp_path / "c", env=QUICK) as c:
        with SyncStore(c.gateway, c.token) as store:
            kept, gone = write_old(store)
            metadata(c, "backup", str(backup))
            write_young(c, store, kept, gone)
        # a refused conditional write left chunks that are orphans until they are collected
        whole = wait_until(lambda: (a := compared(c))["differences"] == 0 and a, seconds=180, what="no difference")
        assert total(whole, "chunks") > 150, whole
        c.kill_everything()
        lose_catalog(c)
        metadata(c, "restore", str(backup))
        c.start()
        wait_until(lambda: (ask(c, "/v1/admin/status") or {})["deletion_barred"], seconds=180, what="deletion barred")
        wait_reconciled(c)
        first = compared(c)
        listed = inventories(c)
        wait_until(lambda: inventories(c) >= listed + 12, seconds=180, what="two more inventories of every device")
        second = compared(c)
        assert total(first, "unknown") + total(first, "pending") > 80 and first["differences"], first
        assert total(second, "chunks") >= total(first, "chunks") and total(second, "unknown") >= total(first, "unknown")
        c.kill_everything()
        lose_catalog(c)     # what ran on the old catalog has written to it: a rebuild starts from the backup anew
        metadata(c, "restore", str(backup))
        with object_servers_only(c):
            print(metadata(c, "rebuild"))
        c.start()
        with SyncStore(c.gateway, c.token) as store:
            check(store, kept, gone)
            wait_reconciled(c)
            check(store, kept, gone)
        _shows_it(c)


def _shows_it(c: Cluster) -> None:
    """The command: a machine-readable result, and an exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "tierstore.cli.main", "admin", "compare", "start", "--wait", "--json",
         "--endpoint", c.gateway, "--token", c.token],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert done.returncode in (0, 8), done
    assert (done.returncode == 8) == (answer["differences"] > 0), done
    assert not answer["is_running"] and total(answer, "missing") == 0 == total(answer, "checksum_differs"), answer
