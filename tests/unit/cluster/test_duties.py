"""One holder at a time, duties that survive their own failures, heat that is counted once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from metadata.catalog import leases
from metadata.promoter.heat import HeatGatherer
from metadata.promoter.runner import DutyRunner, Step
from metadata.services.cluster.duties import LEASE_SECONDS, DutySwitches, Holder, LeaseKeeper
from tests.unit.cluster.cluster_kit import new_database
from tierstore.clock import ManualClock
from tierstore.errors import ConflictError, UnavailableError
from tierstore.policy.heat import pack_delta


async def test_the_lease_moves_when_its_holder_dies_and_old_epochs_cannot_write() -> None:
    """Two promoters at once would copy and delete against each other."""
    database, clock = await new_database(), ManualClock()
    a = LeaseKeeper(database, clock, Holder("a", "http://a"))
    b = LeaseKeeper(database, clock, Holder("b", "http://b"))
    first = await a.renew()
    assert first and await b.renew() == 0 and b.holder.url == "http://a"
    clock.advance(LEASE_SECONDS - 1)
    assert a.epoch == 0, "the holder gives up before the row does"
    assert await b.renew() == 0
    clock.advance(2)
    second = await b.renew()
    assert second == first + 1 and await a.renew() == 0
    with pytest.raises(ConflictError) as caught:
        await database.write(lambda c: leases.require_epoch(c, "promoter", first))
    assert caught.value.code == "lease-lost"
    await database.write(lambda c: leases.require_epoch(c, "promoter", second))
    await b.release()
    assert await a.renew() == second + 1


async def test_metadata_processes_that_share_a_database_know_each_other() -> None:
    """Clients that talk to metadata directly learn from the map where to go when the one they know dies."""
    database, clock = await new_database(), ManualClock()
    a = LeaseKeeper(database, clock, Holder("a", "http://a"))
    b = LeaseKeeper(database, clock, Holder("b", "http://b"))
    for keeper in (a, b, a):
        await keeper.renew()
    both = database.dialect == "postgresql"     # SQLite has one process
    assert a.urls == (["http://a", "http://b"] if both else ["http://a"])
    assert b.urls == (["http://b", "http://a"] if both else ["http://b"])
    clock.advance(LEASE_SECONDS + 1)
    await a.renew()
    assert a.urls == ["http://a"], "one that was killed is named no longer than a lease"
    await b.renew()
    after = LeaseKeeper(database, clock, Holder("b2", "http://b"))
    await after.renew()
    await b.release()
    await a.renew()
    assert a.urls == (["http://a", "http://b"] if both else ["http://a"]), "its successor came before it went"
    await after.release()
    await a.renew()
    assert a.urls == ["http://a"]


class Flaky:
    name = "flaky"
    interval_seconds = 1.0
    is_single = True

    def __init__(self) -> None:
        self.failures_left = 0
        self.epochs: list[int] = []

    async def step(self, epoch: int) -> Step:
        self.epochs.append(epoch)
        if self.failures_left:
            self.failures_left -= 1
            raise UnavailableError("away", code="unreachable")
        return Step(done=2, detail="fine")


async def test_a_duty_waits_for_the_lease_backs_off_and_obeys_its_pause() -> None:
    """A duty that dies with its first error would leave the cluster unrepaired in silence."""
    database, clock = await new_database(), ManualClock()
    lease, switches, duty = LeaseKeeper(database, clock, Holder("a", "")), DutySwitches(database), Flaky()
    runner = DutyRunner(duty, clock, lease, switches)
    assert await runner.turn() == 1.0 and runner.status.is_waiting_for_lease and not duty.epochs
    epoch = await lease.renew()
    assert await runner.turn() == 1.0 and duty.epochs == [epoch] and runner.status.done == 2
    duty.failures_left = 2
    waits = [await runner.turn() for _ in range(3)]
    assert waits == [2.0, 4.0, 1.0] and runner.status.failures == 2 and runner.status.error == ""
    await switches.set("flaky", paused=True)
    await runner.turn()
    assert runner.status.is_paused and len(duty.epochs) == 4
    other = DutySwitches(database)
    await other.load()
    assert other.is_paused("flaky"), "a pause is durable"


async def test_a_duty_ends_at_whatever_moment_it_is_cancelled() -> None:
    """A cancellation that was lost while a duty woke up kept a metadata process from its end until it was killed."""
    database, clock = await new_database(), ManualClock()
    lease, switches, duty = LeaseKeeper(database, clock, Holder("a", "")), DutySwitches(database), Flaky()
    await lease.renew()
    runner = DutyRunner(duty, clock, lease, switches)
    for turns in range(12):
        task = asyncio.create_task(runner.run())
        for _ in range(20):
            await asyncio.sleep(0)      # it waits for its next turn
        runner.kick()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        assert task.cancelled(), f"it goes on when it is cancelled {turns} turns after it was woken"


async def test_a_resent_heat_delta_is_counted_once_and_a_snapshot_is_taken_up(tmp_path: Path) -> None:
    """Heartbeats are sent again when their answer is lost; heat must survive a restart of metadata."""
    clock, path = ManualClock(), tmp_path / "heat.bin"
    heat = HeatGatherer(clock, path)
    chunk = bytes(range(16))
    delta = pack_delta([(chunk, 3.0)])
    assert heat.merge(1, 1, 5, delta) == 5
    before = heat.heat_per_hour(chunk)
    assert before > 0 and heat.merge(1, 1, 5, delta) == 5 and heat.heat_per_hour(chunk) == before
    assert heat.merge(1, 2, 1, delta) == 1 and heat.heat_per_hour(chunk) > before, "a new life counts from one again"
    await heat.save()
    again = HeatGatherer(clock, path)
    await again.load()
    assert again.heat_per_hour(chunk) == pytest.approx(heat.heat_per_hour(chunk))
    path.write_bytes(b"broken")
    cold = HeatGatherer(clock, path)
    await cold.load()
    assert cold.heat_per_hour(chunk) == 0
