"""The agent: registration, heartbeats, and what a server does while metadata is away or says odd things."""

from __future__ import annotations

import asyncio
import random
import stat
from pathlib import Path

import pytest

from objectd.agent_state import FILE_NAME, AgentState, AgentStateFile
from objectd.heat import COUNT_MAX, HeatCounter, unpack_entries
from tests.unit.objectd.world import CLUSTER, METADATA, World, play
from tierstore.errors import ConfigError, ConflictError, NotAuthenticated, TicketRefused, UnavailableError
from tierstore.names import ChunkId
from tierstore.wire.cluster import DeviceGrant, TicketKey


def body(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def test_a_new_server_joins_and_its_devices_note_the_cluster() -> None:
    """Rule 1: a device must know its cluster and the catalog's sequence before anything may be deleted on it."""

    async def test(world: World) -> None:
        ssd, hdd = world.device(1), world.device(2, tier="hdd")
        server = await world.start("one", ssd, hdd)
        register = world.metadata.registrations[0]
        assert (register.role, register.name, register.incarnation) == ("objectd", "one", 1)
        assert [report.tier for report in register.devices] == ["ssd", "hdd"]
        await world.until(lambda: hdd.seen_sequence == 100)
        assert (ssd.cluster_id, hdd.cluster_id) == (CLUSTER, CLUSTER)
        assert server.reasons_not_ready() == []

    play(test)


def test_heartbeats_come_each_second_with_state_and_space() -> None:
    """Placement and liveness live on them."""

    async def test(world: World) -> None:
        device = world.device(1)
        server = await world.start("one", device)
        await world.put(server, 1, body(5000))
        begun = len(world.metadata.heartbeats)
        await asyncio.sleep(10)
        beats = world.metadata.heartbeats[begun:]
        assert 8 <= len(beats) <= 12
        assert [b.sequence for b in beats] == list(range(beats[0].sequence, beats[0].sequence + len(beats)))
        report = beats[-1].devices[0]
        assert report.chunks == 1 and report.used_bytes >= 5000 and report.state == "ok"
        assert beats[-1].job_slots == server.config.background.job_slots

    play(test)


def test_a_server_serves_with_what_it_kept_while_metadata_is_away() -> None:
    """R10: reads go on through a metadata outage, also for a server that restarts in it."""

    async def test(world: World) -> None:
        device = world.device(1)
        first = await world.start("one", device)
        data = body(1000)
        chunk = await world.put(first, 1, data)
        world.network.remove(METADATA)
        kept = AgentState(
            name="one", instance=b"one".ljust(16, b"-"), incarnation=2, server=1, secret="tsd.1.s",
            cluster_id=CLUSTER, devices=[DeviceGrant(device.uuid, 1)], ticket_keys=world.metadata.keys[1],
        )  # fmt: skip
        again = await world.start("one", device, state=kept, wait=False)
        assert not again.agent.is_registered and again.reasons_not_ready() == []
        assert await world.get(again, 1, chunk, data) == data
        await world.until(lambda: again.agent.failures_total > 2)
        world.network.register(METADATA, world.metadata.server)
        await world.until(lambda: again.agent.is_registered)
        assert world.metadata.registrations[-1].incarnation == 2

    play(test)


def test_a_server_never_registered_is_not_ready_and_refuses() -> None:
    """Without keys no ticket can be judged: closed by default. Its page says what it waits for, and it comes when it
    may, without a restart."""

    async def test(world: World) -> None:
        world.network.remove(METADATA)
        server = await world.start("one", world.device(1), wait=False)
        await world.until(lambda: "unreachable" in server.reasons_not_ready()[0])
        world.metadata.keys[0] = [TicketKey(1, bytes(32))]
        with pytest.raises(TicketRefused):
            await world.get(server, 1, ChunkId(bytes(16)), b"x")
        world.metadata.error = ConflictError("another server has that name", code="server-name-taken")
        world.network.register(METADATA, world.metadata.server)
        await world.until(lambda: "another server has that name" in server.reasons_not_ready()[0])
        world.metadata.error = None
        await world.until(lambda: not server.reasons_not_ready())

    play(test)


def test_heat_is_sent_again_until_it_is_acknowledged() -> None:
    """A lost heartbeat must neither lose nor double the counts."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        data = body(1000)
        chunk = await world.put(server, 1, data)
        world.metadata.acknowledges_heat = False
        await world.get(server, 1, chunk, data)
        await world.until(lambda: sum(bool(b.heat) for b in world.metadata.heartbeats) >= 3)
        await world.get(server, 1, chunk, data)
        sent = [b for b in world.metadata.heartbeats if b.heat]
        assert len({(b.heat_sequence, b.heat) for b in sent}) == 1
        world.metadata.acknowledges_heat = True
        await world.until(lambda: world.metadata.heat.get(chunk) == 2.0)
        await asyncio.sleep(3)
        assert world.metadata.heat == {chunk: 2.0}

    play(test)


def test_asked_to_register_again_it_does() -> None:
    """Metadata forgot this life (takeover, restored catalog): the server must come back by itself."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        world.metadata.reregister.add(server.standing.server)
        await world.until(lambda: len(world.metadata.registrations) == 2)
        await world.until(lambda: server.agent.is_registered)

    play(test)


def test_what_a_refused_heartbeat_carried_is_told_again() -> None:
    """Asked to register again, metadata took nothing of that heartbeat: results and findings must not be lost."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        job = world.job(server, "dance", 1)
        await world.until(lambda: server.jobs.failed_total == 1)
        server.slots.note_bad(ChunkId(bytes(16)), server.slots.slot(1).id, "bad-block")
        world.metadata.reports.clear()
        world.metadata.reregister.add(server.standing.server)
        await world.until(lambda: world.metadata.bad)
        assert len(world.metadata.registrations) == 2
        assert job in world.metadata.reports or not server.jobs.reports()

    play(test)


def test_a_secret_refused_in_a_heartbeat_leads_to_a_new_registration() -> None:
    """The catalog was rebuilt while the server ran: it comes back by its join token, without a restart."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        world.metadata.error = NotAuthenticated("who?")
        await world.until(lambda: not server.agent.is_registered)
        world.metadata.error = None
        await world.until(lambda: server.agent.is_registered)
        assert len(world.metadata.registrations) == 2

    play(test)


def test_a_withdrawn_restart_is_told_too() -> None:
    """An operator changed his mind: the server must get chunks again."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        server.drain.announce()
        await world.until(lambda: world.metadata.heartbeats[-1].state == "draining")
        server.drain.withdraw()
        await world.until(lambda: world.metadata.heartbeats[-1].state == "up")

    play(test)


def test_a_secret_the_catalog_does_not_know_falls_back_to_the_join_token() -> None:
    """After a rebuilt catalog every server must be able to come back."""

    async def test(world: World) -> None:
        kept = AgentState(name="one", instance=bytes(16), incarnation=5, server=9, secret="tsd.9.old", cluster_id="was")
        server = await world.start("one", world.device(1), state=kept)
        assert server.standing.server == 1 and server.agent.secret == "tsd.1.s"

    play(test)


def test_rotated_keys_are_taken_up_and_the_newest_signs() -> None:
    """Keys rotate daily, two are valid: tickets of both must work, receipts be signed with the new one."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        old = world.metadata.keys[1][0]
        world.metadata.keys[1] = [old, TicketKey(2, b"n" * 32)]
        await world.until(lambda: 2 in server.standing.keys)
        receipt = server.standing.sign(
            device=world.servers["one"].slots.slot(1).id, chunk=ChunkId(bytes(16)), segment=0, offset=0,
            chunk_bytes=1, crc32c=0,
        )  # fmt: skip
        from tierstore.ticket import open_receipt

        assert open_receipt(receipt, {2: b"n" * 32}).incarnation == 1

    play(test)


def test_an_announced_restart_is_told_at_once_and_takes_no_jobs() -> None:
    """Rolling restarts: placement must stop before the process does."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        server.drain.announce()
        await world.until(lambda: world.metadata.heartbeats[-1].state == "draining", seconds=0.9)
        assert world.metadata.heartbeats[-1].job_slots == 0
        assert server.reasons_not_ready() == ["a restart is announced"]

    play(test)


def test_errors_of_metadata_are_retried_with_a_bound_and_nothing_is_lost() -> None:
    """503s of a restarting metadata service must not lose reports."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        world.metadata.error = UnavailableError("restarting")
        await world.until(lambda: server.agent.failures_total >= 1)     # no heartbeat is on its way past the error
        server.slots.note_bad(ChunkId(bytes(16)), server.slots.slot(1).id, "bad-block")
        await world.until(lambda: server.agent.failures_total >= 4)
        world.metadata.error = None
        await world.until(lambda: world.metadata.bad)
        assert len(world.metadata.bad) == 1

    play(test)


def test_the_state_file_is_private_whole_and_counts_lives(tmp_path: Path) -> None:
    """It holds the secret and the keys; an incarnation used twice would make stale receipts count."""
    file = AgentStateFile(str(tmp_path / "state"))
    state = file.open(name="a", new_instance=b"i" * 16)
    assert (state.incarnation, state.instance) == (1, b"i" * 16)
    path = tmp_path / "state" / FILE_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="in use"):
        AgentStateFile(str(tmp_path / "state")).open(name="a", new_instance=b"j" * 16)
    file.close()
    again = AgentStateFile(str(tmp_path / "state"))
    assert again.open(name="a", new_instance=b"j" * 16) == AgentState(name="a", instance=b"i" * 16, incarnation=2)
    again.close()
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ConfigError, match="damaged"):
        AgentStateFile(str(tmp_path / "state")).open(name="a", new_instance=b"j" * 16)
    assert "secret" not in repr(AgentState(name="a", instance=b"", secret="secret"))


def test_heat_is_bounded_and_saturates() -> None:
    """A scan over millions of chunks must not fill the memory, nor a hot chunk overflow float16."""
    heat = HeatCounter(entries_max=2, now_seconds=0.0)
    for number in range(5):
        heat.count(ChunkId(bytes([number]) * 16), 100_000.0)
    batch = heat.batch(10.0)
    assert batch is not None and heat.dropped == 3 and batch.seconds == 10.0
    assert [reads for _, reads in unpack_entries(batch.entries)] == [COUNT_MAX, COUNT_MAX]
    heat.acknowledge(batch.sequence)
    assert heat.batch(11.0) is None
