"""The planted bugs: each one line of the product changed for the worse, and the quick tests of which one must fail.

They are the twelve of the reliability table. Unsigned copy-source is the S3 door's and comes with it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """old must stand in the file exactly once. tests: what pytest is given; selected further by `only` (-k)."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    only: str = ""


MUTANTS = (
    Mutant(
        "no fsync in the segment committer", "objectd/store/committer.py",
        "        os.fdatasync(fd)\n", "        pass\n",
        ("tests/unit/store/test_faults.py::test_nothing_is_acknowledged_before_its_sync",),
    ),
    Mutant(
        "no fsync of a new file's bytes", "objectd/store/files.py",
        "        os.fdatasync(self._fd)\n", "        pass\n",
        ("tests/unit/store/test_faults.py::test_nothing_is_acknowledged_before_its_sync",),
    ),
    Mutant(
        "no fsync of the directory of a new file", "objectd/store/layout.py",
        "    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)\n    try:\n        os.fsync(fd)\n",
        "    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)\n    try:\n        pass\n",
        ("tests/unit/store/test_faults.py::test_nothing_is_acknowledged_before_its_sync",),
    ),
    Mutant(
        "acknowledged after one copy", "metadata/services/names/receipts.py",
        "        if of_chunk.homes < copies:\n", "        if of_chunk.homes < 1:\n",
        ("tests/contract/test_catalog_names.py::test_receipts_must_be_genuine_of_enough_servers_and_of_this_life",),
        "sqlite",
    ),
    Mutant(
        "two copies on one server count as two", "metadata/services/names/receipts.py",
        "                homes.add(server)\n", "                homes.add(device)\n",
        ("tests/contract/test_catalog_names.py::test_receipts_must_be_genuine_of_enough_servers_and_of_this_life",),
        "sqlite",
    ),
    Mutant(
        "a failed fsync is tried again", "objectd/store/committer.py",
        "                    failure = error\n            try:\n                self._loop",
        "                    _sync(group, self._spindle)\n            try:\n                self._loop",
        ("tests/unit/store/test_faults.py::test_a_failed_sync_fails_every_waiter_and_the_device",),
    ),
    Mutant(
        "a committer that was given up syncs on", "objectd/store/committer.py",
        "        self._is_given_up = True\n", "        pass\n",
        ("tests/unit/store/test_faults.py",), "given_up",
    ),
    Mutant(
        "a close waits for writers instead of records", "objectd/store/appends.py",
        "        if self._outstanding:\n            # not the records' own",
        "        if any(not item.future.done() for item in self._outstanding):\n            # not the records' own",
        ("tests/unit/store/test_faults.py",), "turn_of_the_close",
    ),
    Mutant(
        "what was asked ahead is believed after a write", "metadata/catalog/postgres_session.py",
        "        self._ahead.clear()\n", "",
        ("tests/contract/test_catalog_postgres.py",), "asked_ahead",
    ),
    Mutant(
        "commits on PostgreSQL do not share their lock", "metadata/catalog/postgres_session.py",
        "    def guard(self) -> None:\n", "    def guard(self) -> None:\n        return self._begin()\n",
        ("tests/contract/test_catalog_postgres.py",), "locks_commits_out",
    ),
    Mutant(
        "a device goes on after a failed fsync", "objectd/store/committer.py",
        "            if failure is None and not self._is_given_up:\n                try:\n                    _sync",
        "            if True:\n                failure = None\n                try:\n                    _sync",
        ("tests/unit/store/test_parts.py",), "failed_sync",
    ),
    Mutant(
        "no checksum check on streamed reads", "tierstore/transport/verified.py",
        "            if crc_of(view[at : at + BLOCK_BYTES]) != sums[block]:\n", "            if sums is None:\n",
        ("tests/unit/transport/test_object_client.py",), "bad_block",
    ),
    Mutant(
        "no checksum check on range reads in one piece", "tierstore/transport/object_client.py",
        "            verify_block(data[at : at + BLOCK_BYTES], sums[number], chunk=chunk, block=number)\n",
        "            assert at >= 0\n",
        ("tests/unit/transport/test_object_client.py",), "bad_block",
    ),
    Mutant(
        "block sums are not compared with the catalog", "tierstore/transport/verified.py",
        "        if combine_sums(sums, chunk_bytes) != crc32c:\n", "        if crc32c < 0:\n",
        ("tests/unit/transport/test_object_client.py",), "catalog",
    ),
    Mutant(
        "wall-clock order of versions", "tierstore/clock.py",
        "        tick = max(now_ms << COUNTER_BITS, self._last + 1)\n        if after:\n",
        "        tick = now_ms << COUNTER_BITS\n        if False:\n",
        ("tests/unit/core/test_clock.py",),
    ),
    Mutant(
        "a late delete is applied", "metadata/services/names/facts.py",
        "    if deadline_ms < now_ms:\n", "    if deadline_ms < 0:\n",
        ("tests/contract/test_catalog_names.py::test_a_late_operation_is_refused",), "sqlite",
    ),
    Mutant(
        "a repeated operation is applied again", "metadata/services/names/commit.py",
        "            if repeat is not None:\n", "            if repeat is not None and not checked:\n",
        ("tests/contract/test_catalog_names.py::test_a_repeated_operation_gets_the_first_result_and_applies_once",),
        "sqlite",
    ),
    Mutant(
        "an upload in flight is collected", "metadata/services/upkeep/inventories.py",
        "now_ms - allocated_at_ms(UploadId(chunk[:UPLOAD_ID_BYTES])) > self._over_ms\n", "True\n",
        ("tests/unit/cluster/test_redundancy.py",), "upload",
    ),
    Mutant(
        "a leased upload is collected", "metadata/services/upkeep/inventories.py",
        "        alive = garbage.leased(c, uploads, now_ms=now_ms)\n", "        alive: set[bytes] = set()\n",
        ("tests/unit/cluster/test_redundancy.py",), "upload",
    ),
    Mutant(
        "a stray is judged by the reverse table alone", "metadata/services/upkeep/inventories.py",
        "                if located is None or any(r.device == device for r in located.chunk.replicas):\n",
        "                if located is None:\n",
        ("tests/unit/cluster/test_inventory_race.py",),
    ),
    Mutant(
        "a condemned upload may commit", "metadata/services/names/fact_reads.py",
        "            facts.condemned = {row[0] for row in session.fetch(operations.CONDEMNED, _keys(uploads))}\n",
        "            facts.condemned = set()\n",
        ("tests/contract/test_catalog_names.py::test_condemned_and_lapsed_uploads_are_refused_and_leases_prolong",),
        "sqlite",
    ),
    Mutant(
        "an upload commits twice", "metadata/services/names/writes.py",
        '        return [(mark, b"") for mark in sorted(marks)]\n', "        return []\n",
        ("tests/contract/test_catalog_names.py::test_an_upload_commits_once_whatever_operations_name_it",), "sqlite",
    ),
    Mutant(
        "SQLite with synchronous=NORMAL", "metadata/catalog/sqlite.py",
        '"synchronous = FULL"', '"synchronous = NORMAL"',
        ("tests/unit/catalog/test_sqlite_durability.py",),
    ),
    Mutant(
        "a ticket's act is not checked", "tierstore/ticket.py",
        "    if len(raw) != form.size + MAC_BYTES or raw[0] != kind:\n", "    if len(raw) != form.size + MAC_BYTES:\n",
        ("tests/unit/core/test_ticket.py",),
    ),
    Mutant(
        "a ticket's signature is not checked", "tierstore/ticket.py",
        "    if not hmac.compare_digest(_mac(payload, key), raw[form.size :]):\n", "    if not payload:\n",
        ("tests/unit/core/test_ticket.py",),
    ),
    Mutant(
        "nobody takes writes between suspect and no placement", "metadata/services/names/allocate.py",
        "needs_suspects = self._needs_suspects(item)\n", "needs_suspects = False\n",
        ("tests/unit/cluster/test_membership.py",), "silent",
    ),
    Mutant(
        "a long read knows one window of its body", "tierstore/sdk/get.py",
        "            while self._known_to < self._end and len(self._chunks)",
        "            while False and len(self._chunks)",
        ("tests/unit/sdk/test_walks.py",), "replaced_at_once",
    ),
    Mutant(
        "drop before copy", "metadata/services/jobs/replicas.py",
        "            if len(homes) < self.copies_of(located):\n                return replicas\n",
        "            if not homes:\n                return replicas\n",
        ("tests/unit/cluster/test_redundancy.py",),
    ),
    Mutant(
        "a job deletes without its lease", "objectd/work/remove.py",
        "        lease.check()\n        if not self._may_delete(slot):\n", "        if not self._may_delete(slot):\n",
        ("tests/unit/objectd/test_work.py",),
    ),
    Mutant(
        "an old catalog deletes", "objectd/work/remove.py",
        "        if not self._may_delete(slot):\n", "        if slot is None:\n",
        ("tests/unit/objectd/test_work.py",), "deleted",
    ),
    Mutant(
        "the only copy of another site's body goes", "metadata/services/sites/fetched.py",
        "for one in here if one.name in vouched]", "for one in here]",
        ("tests/contract/test_catalog_sites_fetched.py",), "vouches",
    ),
)
