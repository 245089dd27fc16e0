"""What must be true of a simulated cluster: at every deletion, and of all of it once it has come to rest."""

from __future__ import annotations

from collections import Counter

import sqlalchemy as sa

from metadata.catalog import schema
from metadata.catalog.packed import LIVE, Replica, unpack, unpack_replicas
from tests.kit.devices import LIVE as KEPT
from tests.kit.simulation import SimCluster, SimDevice
from tests.simulation.workload import Violation
from tierstore.ticket import ROLE_HOME


def references(cluster: SimCluster) -> dict[bytes, tuple[Replica, ...]]:
    """Every chunk that a name refers to, with its replicas, as committed now."""
    database = cluster.metadata.database
    assert database is not None

    def read(connection: sa.Connection) -> dict[bytes, tuple[Replica, ...]]:
        found: dict[bytes, tuple[Replica, ...]] = {}
        for table in (schema.objects, schema.versions):
            for row in connection.execute(sa.select(table.c.body).where(table.c.kind == schema.KIND_INLINE)):
                for chunk in unpack(bytes(row.body)) if row.body else ():
                    found[chunk.id] = chunk.replicas
        for row in connection.execute(sa.select(schema.chunks.c.id, schema.chunks.c.replicas)):
            found[bytes(row.id)] = unpack_replicas(bytes(row.replicas))
        return found

    return database.read_now(read)


class DeletionWatch:
    """Stands before every deletion of a chunk on a device: our own deletes never take a chunk below N+1 (rule 4)."""

    def __init__(self, cluster: SimCluster) -> None:
        self.cluster = cluster
        self.violations: list[str] = []
        self.deletions = 0
        self.ever_rotten: set[bytes] = set()
        for device in cluster.devices():
            device.before_trash = self._look

    def _look(self, device: SimDevice, chunk: bytes) -> None:
        self.deletions += 1
        if self.cluster.metadata.server is None:
            return      # ordered before it went; it is judged with the catalog of then, which is not to be had
        replicas = references(self.cluster).get(chunk)
        if replicas is None:
            return      # nothing refers to it
        view = self.cluster.view
        by_id = self.cluster.device_by_id()
        others = [
            r for r in replicas
            if r.state == LIVE and r.role == ROLE_HOME and r.device in by_id and by_id[r.device] is not device
        ]  # fmt: skip
        servers = {view.devices[r.device].server for r in others}
        mine = [r for r in replicas if by_id.get(r.device) is device]
        if any(r.state == LIVE for r in mine):
            self._say(f"{chunk.hex()} is deleted on {device.path} while the catalog has it live there")
        elif len(servers) < self.cluster.copies and chunk not in self.ever_rotten:
            # Rot that was found between the decision and the act is no fault of the decision.
            self._say(f"{chunk.hex()} is deleted on {device.path} with homes on {len(servers)} other servers")
        elif not any(by_id[r.device].is_good(chunk) for r in others):
            self._say(f"{chunk.hex()} is deleted on {device.path} while no other home has its bytes")

    def _say(self, what: str) -> None:
        self.violations.append(what)
        self.cluster.trace.say("VIOLATION", what)


def unrest(cluster: SimCluster) -> str:
    """Why the cluster is not whole yet; "" when every referenced chunk has its homes and nothing else is stored.

    Raises Violation for what no waiting mends: no good copy left anywhere, two homes on one server."""
    if cluster.metadata.server is None:
        return "metadata is away"
    view, by_id = cluster.view, cluster.device_by_id()
    wanted = references(cluster)
    for chunk, replicas in sorted(wanted.items()):
        live = [r for r in replicas if r.state == LIVE]
        if not any(by_id[r.device].is_good(chunk) for r in live if r.device in by_id):
            held = [d.path for d in cluster.devices() if chunk in d.kept]
            raise Violation(f"no good copy of {chunk.hex()} is left: {replicas}, stored on {held}")
        homes = Counter(view.devices[r.device].server for r in live if r.role == ROLE_HOME)
        if max(homes.values(), default=0) > 1:
            return f"{chunk.hex()} has two homes on one server: {replicas}"
        if len(homes) != cluster.copies:
            return f"{chunk.hex()} has {len(homes)} homes: {replicas}"
        if len(live) != len(replicas):
            return f"{chunk.hex()} has replicas that are not live: {replicas}"
        missing = [r.device for r in live if not by_id[r.device].is_good(chunk)]
        if missing:
            return f"{chunk.hex()} is not good on devices {missing}"
    by_device = {device.uuid: number for number, device in by_id.items()}
    for device in cluster.devices():
        number = by_device[device.uuid]
        for chunk, stored in sorted(device.kept.items()):
            if stored.state == KEPT and number not in [r.device for r in wanted.get(chunk, ())]:
                return f"{chunk.hex()} on {device.path} is an orphan"
    return ""


def state_of_work(cluster: SimCluster) -> list[str]:
    """For people: what the duties say and which jobs are open, when something does not come to rest."""
    server, database = cluster.metadata.server, cluster.metadata.database
    assert server is not None and database is not None
    duties, view = server.promoter.statuses(), server.view
    lines = [f"{duty.name}: {duty.detail} {duty.error} steps {duty.steps} failures {duty.failures}" for duty in duties]
    lines += [f"server {s.id} {s.name} {s.state}" for s in view.servers.values()]
    lines += [f"device {d.id} of {d.server} {d.state} counts {d.counts_for_copies}" for d in view.devices.values()]
    rows = database.read_now(lambda c: c.execute(sa.select(schema.jobs)).mappings().all())
    return lines + [f"job {dict(row)}" for row in rows[:50]]
