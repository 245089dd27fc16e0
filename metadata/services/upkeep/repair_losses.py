"""Which devices are gone for good, so that what they held must be made elsewhere.

Repair halts when more than a third of the servers vanish at once (rule 15), until they are back or an operator says
`continue`: then it is the network or ourselves that broke, and copying everything would make it worse.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import msgspec

from metadata.catalog import leases
from metadata.catalog.database import Database
from metadata.services.cluster.liveness import vanished_too_many
from metadata.services.cluster.membership import Cluster

#: Setting: ids of the servers of which an operator said that they are really gone (JSON).
CONTINUED: Final = "repair-continued"
#: Servers whose last heartbeats lie within this span vanished at once.
AT_ONCE_MS: Final = 60_000


@dataclass(slots=True)
class RepairStatus:
    """For `admin status`: what is being made whole again."""

    is_halted: bool = False
    halted_why: str = ""
    lost_devices: list[int] = field(default_factory=list)
    stuck: int = 0


class Losses:
    """Judges who is gone. Of one process; the operator's word is in the catalog."""

    def __init__(self, database: Database, cluster: Cluster) -> None:
        self._database = database
        self._cluster = cluster
        self._view = cluster.view
        self._continued: frozenset[int] = frozenset()
        self._failed_since: dict[int, int] = {}
        self.status = RepairStatus()

    def devices(self) -> list[int]:
        """Devices whose copies are to be made elsewhere: past their grace, and not while repair is halted."""
        now_ms = self._cluster.now_ms()
        timers = self._cluster.settings.timers
        grace_ms = int((timers.dead_seconds + timers.repair_grace_seconds) * 1000)
        dead = [
            s for s in self._view.servers.values()
            if s.role == "objectd" and s.state in ("dead", "removed")
        ]  # fmt: skip
        self._judge_halt([s.id for s in dead if s.state == "dead"])
        if self.status.is_halted:
            return []
        gone = {s.id for s in dead if s.state == "removed" or now_ms - s.seen_at_ms >= grace_ms}
        absent = {s.id for s in dead}
        failed = {d.id for d in self._view.devices.values() if d.health == "failed" and d.server not in absent}
        # A device that failed may pass its check again: it has the same grace as a server, from when we first saw it.
        self._failed_since = {d: self._failed_since.get(d, now_ms) for d in failed}
        failed_ms = int(timers.repair_grace_seconds * 1000)
        lost = [
            d.id for d in self._view.devices.values()
            if d.server in gone or d.state == "removed" or now_ms - self._failed_since.get(d.id, now_ms) >= failed_ms
        ]  # fmt: skip
        self.status.lost_devices = lost
        return lost

    def _judge_halt(self, dead: list[int]) -> None:
        members = [s for s in self._view.servers.values() if s.role == "objectd" and s.state != "removed"]
        seen = {s.id: s.seen_at_ms for s in members}
        newest = max((seen[s] for s in dead), default=0)
        at_once = [s for s in dead if newest - seen[s] <= AT_ONCE_MS]
        self.status.is_halted = vanished_too_many(at_once, len(members)) and not set(at_once) <= self._continued
        names = ", ".join(sorted(self._view.servers[s].name for s in at_once))
        self.status.halted_why = (
            f"{len(at_once)} of {len(members)} object servers vanished at once ({names}): repair waits for them or for "
            "an operator's word"
            if self.status.is_halted
            else ""
        )

    async def resume(self) -> None:
        """An operator's word: the servers that are dead now are really gone. Durable when it returns; it holds for
        these servers until they came back."""
        gone = sorted(s.id for s in self._view.servers.values() if s.state == "dead")
        text = msgspec.json.encode(gone).decode()
        await self._database.write(lambda c: leases.set_setting(c, CONTINUED, text))
        self._continued = frozenset(gone)

    async def recall(self) -> None:
        """Take up an operator's word from the catalog (a restart, another process), less whoever is back."""
        text = await self._database.read(lambda c: leases.setting(c, CONTINUED))
        given = frozenset(msgspec.json.decode(text, type=list[int])) if text else frozenset()
        dead = {s.id for s in self._view.servers.values() if s.state == "dead"}
        # Right after a start everybody counts as alive for one lease: what was said is not forgotten then.
        settled = self._cluster.now_ms() - self._cluster.watching_since_ms
        self._continued = given & dead
        if given - dead and settled > 2000 * self._cluster.settings.timers.dead_seconds:
            left = msgspec.json.encode(sorted(self._continued)).decode()
            await self._database.write(lambda c: leases.set_setting(c, CONTINUED, left))
