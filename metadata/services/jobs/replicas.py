"""The changes of a chunk's replicas that jobs bring about: is another copy wanted, may one go. Rules 2 and 4.

Used where jobs are handed out, where their results are taken, and by the duties that plan (repair, drain, tiering,
inventories). Everything runs inside the caller's transaction, with the chunk's row locked by `locate`.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from metadata.catalog import garbage, jobs
from metadata.catalog.book import Located
from metadata.catalog.jobs import JobRow, NewJob
from metadata.catalog.leases import Connection
from metadata.catalog.packed import BAD, DELETING, LIVE, PackedChunk, Replica
from metadata.services.cluster.view import ClusterView
from metadata.services.jobs.work import CLASS_DRAIN, CopyWork, DropWork, ReplicaBook, can_delete, home_servers
from tierstore.ticket import ROLE_CACHE, ROLE_HOME


class Replicas:
    """One per job queue."""

    def __init__(self, view: ClusterView, book: ReplicaBook, copies_of: Callable[[Located], int]) -> None:
        self._view = view
        self._book = book
        self.copies_of = copies_of

    def locate(self, c: Connection, via: int, chunk: bytes) -> Located | None:
        """The chunk's row: by the device that the job remembers, else by any that has it now (it may have moved)."""
        located = self._book.locate(c, via, chunk)
        if located is not None:
            return located
        for device in garbage.placed(c, [chunk], list(self._view.devices)).get(chunk, []):
            located = self._book.locate(c, device, chunk)
            if located is not None:
                return located
        return None

    def is_wanted(self, located: Located, row: JobRow, work: CopyWork) -> bool:
        replicas = located.chunk.replicas
        if any(r.device == row.device_id and r.state == LIVE for r in replicas):
            return False
        if work.role != ROLE_HOME:
            return True
        server = self._view.devices[row.device_id].server
        homes = home_servers(self._view, replicas, without=work.drop)
        if server in homes:
            return False    # two homes never share a server
        return len(homes) < self.copies_of(located)

    def has_enough(self, located: Located, *, without: int = 0) -> bool:
        """Whether enough homes count, leaving one device out."""
        return len(home_servers(self._view, located.chunk.replicas, without=without)) >= self.copies_of(located)

    def may_be_deleted(self, located: Located, device: int, generation: int) -> bool:
        """Whether the copy whose deletion was queued may still go: the chunk's row says so of this very copy, or does
        not name the device, and enough homes are elsewhere now. They were when it was marked; rot may have been found
        since, and then the marked copy is the better for being there (it is read as a last resort)."""
        mine = next((r for r in located.chunk.replicas if r.device == device), None)
        if mine is not None and (mine.state != DELETING or mine.generation != generation):
            return False
        if mine is not None and mine.role == ROLE_CACHE:
            return any(r.state == LIVE for r in located.chunk.replicas)
        return self.has_enough(located, without=device)

    @staticmethod
    def may_stay(chunk: PackedChunk, device: int) -> bool:
        """Whether a home copy that has just been replaced may stay as the chunk's only cache copy."""
        victim = next((r for r in chunk.replicas if r.device == device), None)
        others = any(r.role == ROLE_CACHE and r.state == LIVE for r in chunk.replicas)
        return victim is not None and victim.state == LIVE and not others

    def without(
        self, c: Connection, located: Located, replicas: list[Replica], device: int, *, via: int, now_ms: int
    ) -> list[Replica]:
        """The replicas after the one on `device` was let go, if the rest is enough without it (rule 4).

        On a device that answers it is marked as deleting, which never reverts, and its deletion is queued; on one that
        is gone or read-only its entry is dropped: should the device return, its inventory shows the copy as a stray."""
        victim = next((r for r in replicas if r.device == device), None)
        if victim is None or victim.state == DELETING:
            return replicas
        if victim.role == ROLE_HOME and victim.state == LIVE:
            homes = home_servers(self._view, replicas, without=device)
            if len(homes) < self.copies_of(located):
                return replicas
        rest = [r for r in replicas if r.device != device]
        if not rest:
            return replicas     # the last one named: whoever looks for the bytes begins there, bad or not
        if victim.state == BAD or not can_delete(self._view, device):
            return rest
        generation = (victim.generation + 1) & 0xFFFF
        self.queue_drop(
            c, located.chunk.id, device, via=via, generation=generation, now_ms=now_ms,
            discard=victim.role == ROLE_CACHE,
        )  # fmt: skip
        return [*rest, victim._replace(state=DELETING, generation=generation)]

    def queue_drop(
        self, c: Connection, chunk: bytes, device: int, *, via: int, generation: int, now_ms: int,
        discard: bool = False,
    ) -> None:  # fmt: skip
        """Queue the deletion of one replica that is marked as deleting (or that no row names)."""
        info = self._view.devices.get(device)
        if info is None:
            return
        payload = msgspec.msgpack.encode(DropWork(via, generation, discard))
        job = NewJob("delete", "demote", CLASS_DRAIN, info.server, device, chunk=chunk, payload=payload)
        jobs.add(c, [job], now_ms=now_ms)
