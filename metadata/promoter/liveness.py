"""Liveness: writes what heartbeats brought, reads what other processes heard, judges who is alive, rotates keys.

Runs in every metadata process: the view that lookups and allocations use must be true in each.
"""

from __future__ import annotations

from metadata.promoter.runner import Step
from metadata.services.cluster.duties import DutySwitches
from metadata.services.cluster.heartbeat import Heartbeats
from metadata.services.cluster.membership import Cluster


class LivenessDuty:
    """Judges each second; flushes at the interval that the kind of catalog wants."""

    name = "liveness"
    interval_seconds = 1.0
    is_single = False

    def __init__(self, cluster: Cluster, heartbeats: Heartbeats, switches: DutySwitches) -> None:
        self._cluster = cluster
        self._heartbeats = heartbeats
        self._switches = switches
        self._flushed_at_ms = 0

    async def step(self, epoch: int) -> Step:
        now_ms = self._cluster.now_ms()
        died = self._cluster.judge_all()
        if died or now_ms - self._flushed_at_ms >= self._heartbeats.flush_seconds * 1000:
            self._flushed_at_ms = now_ms
            await self._heartbeats.flush()
            await self._switches.load()
        states = [s.state for s in self._cluster.view.servers.values() if s.role == "objectd"]
        return Step(done=len(died), detail=f"{states.count('up')} of {len(states)} object servers up")


class KeyDuty:
    """Gives each object server a new ticket key once a day."""

    name = "ticket-keys"
    interval_seconds = 600.0
    is_single = True

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def step(self, epoch: int) -> Step:
        return Step(done=await self._cluster.rotate_keys())
