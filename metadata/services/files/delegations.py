"""Delegations: which mount may say by itself that a name is not in a directory (ADR 0685).

Given to a mount that reads a directory whole, while no transaction is open; taken back before the commit of anybody
else's change that may bring a name there. So what can be seen, acknowledged or not, was told. Nothing is waited for:
the mount sees it in a page of memory (wire/delegations), or dies with the connection to this process.

Invariant: all changes of names pass through this process (Database.watch_names refuses where others write too).
Bounds: SLOTS delegations; the oldest makes room. Cost of a change where nobody holds any in the bucket: one look-up.
"""

from __future__ import annotations

from collections.abc import Sequence

from metadata.catalog.inodes import DIRECTORY
from tierstore.wire.delegations import SLOTS, slot_of


class Delegations:
    """One per process. `give` in the event loop while nothing is written; the rest also in the writer's thread."""

    def __init__(self, words: memoryview, *, first: int, place: str) -> None:
        """words: the page. first: a number that no earlier process's numbers come near. place: of the page's door."""
        self._words = words
        self._number = first
        self.place = place
        #: bucket id -> path of a directory -> {mount: number}
        self._held: dict[int, dict[str, dict[str, int]]] = {}
        self._holders: list[tuple[int, str, str]] = [(0, "", "")] * SLOTS
        self.given = 0
        self.taken_back = 0

    def give(self, bucket_id: int, path: str, mount: str) -> int:
        """The mount may answer for names of the directory, which it is being told as a whole."""
        self._number += 1
        slot = slot_of(self._number)
        if self._words[slot]:
            self._take_back(self._words[slot])
        mounts = self._held.setdefault(bucket_id, {}).setdefault(path, {})
        before = mounts.get(mount)
        if before is not None:
            self._words[slot_of(before)] = 0
        mounts[mount] = self._number
        self._holders[slot] = bucket_id, path, mount
        self._words[slot] = self._number
        self.given += 1
        return self._number

    def came(self, names: Sequence[tuple[int, str]], by: str) -> None:
        """Rows (bucket id, key) that are about to stand where none stood. by: the mount that brings them."""
        if not self._held:
            return
        for bucket_id, path in names:
            held = self._held.get(abs(bucket_id))
            if held is None:
                continue
            if bucket_id < 0:
                if not path.startswith(DIRECTORY):
                    continue
                path = path[len(DIRECTORY) :]
            path = path.rstrip("/")
            while path and held:
                path = path.rpartition("/")[0]
                for mount, number in list(held.get(path, {}).items()):
                    if mount != by:
                        self._take_back(number)

    def moved(self, bucket_id: int) -> None:
        """Directories of the bucket have other paths after the commit, or it is gone."""
        for mounts in list(self._held.get(abs(bucket_id), {}).values()):
            for number in list(mounts.values()):
                self._take_back(number)

    def _take_back(self, number: int) -> None:
        slot = slot_of(number)
        self._words[slot] = 0
        bucket_id, path, mount = self._holders[slot]
        self.taken_back += 1
        held = self._held.get(bucket_id)
        if held is None or held.get(path, {}).get(mount) != number:
            return
        del held[path][mount]
        if not held[path]:
            del held[path]
        if not held:
            del self._held[bucket_id]
