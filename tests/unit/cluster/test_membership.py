"""Who may join, what becomes of devices that move, and who is alive when."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from metadata.services.cluster.liveness import Timers, judge, vanished_too_many
from metadata.services.names.allocate import AllocateService
from tests.unit.cluster.cluster_kit import Server, joined, new_world, registration, report
from tierstore.auth.access import Principal
from tierstore.errors import AccessDenied, ConflictError, NotAuthenticated
from tierstore.wire.names import AllocateItem


async def test_a_server_joins_with_the_token_and_comes_back_with_its_secret() -> None:
    """Otherwise a server could never leave the join token out of its configuration."""
    world = await new_world()
    a = await joined(world, "a", 1, 2)
    assert a.registered is not None and a.registered.secret.startswith(f"tsd.{a.id}.")
    assert len(a.registered.devices) == 2 and len(a.registered.ticket_keys) == 1
    who = world.cluster.authenticate(str(a.id), a.registered.secret)
    assert who.server == a.id
    a.incarnation = 2
    message = registration("a", devices=a.devices, incarnation=2, join_token="")
    again = await world.registrar.register(message, server=a.id)
    assert again.server == a.id and again.secret == "" and again.devices == a.registered.devices


async def test_nobody_joins_without_the_token() -> None:
    """A stranger that could join would be given chunks."""
    world = await new_world()
    with pytest.raises(NotAuthenticated):
        await world.registrar.register(registration("a", devices=[], join_token="wrong"))
    with pytest.raises(NotAuthenticated):
        world.cluster.authenticate("1", "tsd.1.guess")


async def test_a_repeated_registration_changes_nothing() -> None:
    """The answer may be lost on its way: the server asks again and must get the same ids."""
    world = await new_world()
    a = await joined(world, "a", 1)
    first = a.registered
    again = await world.registrar.register(registration("a", devices=a.devices))
    assert first is not None and again.server == first.server and again.devices == first.devices
    assert again.ticket_keys == first.ticket_keys


async def test_an_older_incarnation_is_refused() -> None:
    """A state directory restored from a backup would give receipts of a life that is over."""
    world = await new_world()
    a = await joined(world, "a", 1)
    a.incarnation = 5
    await a.join()
    with pytest.raises(ConflictError, match="older"):
        await world.registrar.register(registration("a", devices=a.devices, incarnation=4), server=a.id)


async def test_a_name_is_taken_over_only_from_a_dead_server() -> None:
    """Two servers under one name would overwrite each other's membership."""
    world = await new_world()
    a = await joined(world, "a", 1)
    stranger = registration("a", devices=[report(9)], instance=99)
    with pytest.raises(ConflictError, match="held by another"):
        await world.registrar.register(stranger)
    world.clock.advance(25)
    world.cluster.judge_all()
    old_keys = a.registered.ticket_keys if a.registered else []
    taken = await world.registrar.register(stranger)
    assert taken.server == a.id and taken.secret
    assert [k.key for k in taken.ticket_keys] != [k.key for k in old_keys]
    assert len(taken.ticket_keys) == 1


async def test_a_device_of_another_cluster_is_refused() -> None:
    """It would be taken for empty room, and its chunks for orphans."""
    world = await new_world()
    with pytest.raises(ConflictError) as caught:
        await world.registrar.register(registration("a", devices=[report(1, cluster_id="feed", chunks=3)]))
    assert caught.value.code == "device-of-another-cluster"


async def test_a_rebuild_takes_the_cluster_id_of_the_first_server_that_is_taken() -> None:
    """A refused registration must leave nothing behind: every server that came later was refused for good, and the
    rebuild waited for them."""
    world = await new_world()
    world.registrar.replaceable_cluster_id = world.cluster.view.cluster_id
    mixed = [report(1, cluster_id="feed"), report(2, cluster_id="beef")]
    with pytest.raises(ConflictError, match="belongs to cluster beef, this is feed"):
        await world.registrar.register(registration("a", devices=mixed))
    assert world.cluster.view.cluster_id == world.registrar.replaceable_cluster_id
    servers = [
        registration(name, devices=[report(number, cluster_id="feed", chunks=3), report(number + 1, cluster_id="feed")])
        for number, name in ((3, "b"), (5, "c"), (7, "d"))
    ]
    answers = await asyncio.gather(*(world.registrar.register(server) for server in servers))
    assert {answer.cluster_id for answer in answers} == {"feed"} == {world.cluster.view.cluster_id}
    with pytest.raises(ConflictError, match="belongs to cluster beef, this is feed"):
        await world.registrar.register(registration("e", devices=[report(9, cluster_id="beef")]))


async def test_a_device_moves_with_its_id_when_its_server_is_dead() -> None:
    """Disks are carried from a broken machine to a whole one; their chunks must be found there."""
    world = await new_world()
    a = await joined(world, "a", 1)
    b = await joined(world, "b", 2)
    moved = registration("b", devices=[report(2), report(1, chunks=7)], incarnation=2)
    with pytest.raises(ConflictError) as caught:
        await world.registrar.register(moved, server=b.id)
    assert caught.value.code == "device-in-use"
    world.clock.advance(25)
    world.cluster.judge_all()
    answer = await world.registrar.register(moved, server=b.id)
    assert [g.device for g in answer.devices] == [b.device(), a.device()]
    device = world.cluster.view.devices[a.device()]
    assert device.server == b.id and not device.counts_for_copies


async def test_a_device_that_its_server_no_longer_reports_is_failed_and_may_move() -> None:
    """Pulling a disk out of a running server must not leave its chunks counted as readable."""
    world = await new_world()
    a = Server(world, "a", [report(1), report(2)])
    await a.join()
    gone = a.device(1)
    a.devices = a.devices[:1]
    await a.beat()
    assert world.cluster.view.devices[gone].health == "failed"
    b = Server(world, "b", [report(3), report(2, chunks=1)])
    await b.join()
    assert world.cluster.view.devices[gone].server == b.id


async def test_states_follow_silence() -> None:
    """Reads avoid a suspect after 3 s, writes after 5 s, repair starts from dead at 20 s."""
    world = await new_world()
    a = await joined(world, "a", 1)
    world.clock.advance(100)
    await a.beat()
    info = world.cluster.view.servers[a.id]
    seen = []
    for seconds in (1, 2.5, 2, 15):
        world.clock.advance(seconds)
        world.cluster.judge_all()
        seen.append((info.state, info.accepts_new))
    assert seen == [("up", True), ("suspect", True), ("suspect", False), ("dead", False)]
    await a.beat()
    assert (info.state, info.accepts_new) == ("up", True)


async def test_a_write_is_placed_or_told_to_wait_however_long_all_servers_are_silent() -> None:
    """Between suspect (3 s) and no placement (5 s) nobody was up and nobody was expected back: every write failed at
    once, on a busy machine and whenever the holder of the duties was killed."""
    world = await new_world()
    servers = [await joined(world, name, number) for number, name in enumerate("ab", 1)]
    for server in servers:
        await server.beat()
    allocations = AllocateService(world.cluster.view, world.clock, random.Random(1))
    who = Principal(access="A", user="a", grants={"*": "admin"})
    found: dict[str, list[float]] = {"placed": [], "waits": [], "refused": []}
    for _ in range(44):
        answer = allocations.allocate(AllocateItem([], copies=2), who)
        silent = round((world.cluster.now_ms() - world.cluster.view.servers[servers[0].id].seen_at_ms) / 1000, 1)
        found["placed" if not answer.code else "waits" if answer.returning else "refused"].append(silent)
        world.clock.advance(0.5)
        world.cluster.judge_all()
    assert max(found["placed"]) < 5 <= min(found["waits"]) and max(found["waits"]) < 20 <= min(found["refused"]), found


async def test_a_suspect_gets_new_chunks_only_while_the_others_are_too_few() -> None:
    """A hung server holds up every write that goes there."""
    world = await new_world()
    a, b, c = [await joined(world, name, number) for number, name in enumerate("abc", 1)]
    allocations = AllocateService(world.cluster.view, world.clock, random.Random(1))
    who = Principal(access="A", user="a", grants={"*": "admin"})
    world.clock.advance(3.5)
    for server in (b, c):
        await server.beat()
    world.cluster.judge_all()
    assert world.cluster.view.servers[a.id].state == "suspect"

    def chosen(**fields: Any) -> set[int]:
        made = [allocations.allocate(AllocateItem([], **fields), who).allocations[0] for _ in range(30)]
        return {target.server for allocation in made for target in allocation.targets + allocation.spares}

    assert chosen(copies=2) == {b.id, c.id}
    assert chosen(copies=3) == {a.id, b.id, c.id}
    assert chosen(copies=2, exclude_servers=[c.id]) >= {a.id, b.id}


async def test_after_a_start_nobody_is_dead_for_one_lease() -> None:
    """A metadata process that was down for an hour must not start repairing everybody."""
    world = await new_world()
    a = await joined(world, "a", 1)
    await a.beat()
    await world.heartbeats.flush()
    world.clock.advance(3600)
    again = await new_world(world.database, world.clock, "m2")
    info = again.cluster.view.servers[a.id]
    assert info.state == "suspect" and not info.accepts_new
    again.clock.advance(19)
    again.cluster.judge_all()
    assert info.state == "suspect"
    again.clock.advance(2)
    assert again.cluster.judge_all() == [a.id] and info.state == "dead"


async def test_an_announced_restart_has_two_minutes() -> None:
    """A rolling restart is routine: it must not start a repair, and nothing new is placed meanwhile."""
    world = await new_world()
    a = await joined(world, "a", 1)
    await a.beat(state="draining")
    info = world.cluster.view.servers[a.id]
    assert info.state == "draining" and not info.accepts_new
    world.clock.advance(100)
    world.cluster.judge_all()
    assert info.state == "suspect"
    a.incarnation = 2
    await a.join()
    assert world.cluster.view.servers[a.id].state == "up"
    await a.beat(state="draining")
    world.clock.advance(121)
    world.cluster.judge_all()
    assert world.cluster.view.servers[a.id].state == "dead"


async def test_a_heartbeat_of_another_life_is_told_to_register_again() -> None:
    """Metadata restored from a backup, or a late packet of an old life: neither may count."""
    world = await new_world()
    a = await joined(world, "a", 1)
    a.incarnation = 2
    assert (await a.beat()).reregister


async def test_a_heartbeat_s_answer_tells_the_revision_of_the_policy() -> None:
    """A gateway that serves nobody hears of a new policy by nothing else."""
    world = await new_world()
    a = await joined(world, "a", 1)
    world.cluster.policy = lambda: (5, b"")
    assert (await a.beat()).policy_revision == 5


async def test_flushed_heartbeats_are_seen_by_another_process() -> None:
    """With several metadata processes liveness is a row, not one process' memory."""
    world = await new_world()
    other = await new_world(world.database, world.clock, "m2")
    a = await joined(world, "a", 1)
    world.clock.advance(30)
    await a.beat(load=0.5)
    await world.heartbeats.flush()
    await other.cluster.refresh()
    info = other.cluster.view.servers[a.id]
    assert info.state == "up" and info.load == 0.5
    assert other.cluster.authenticate(str(a.id), a.registered.secret if a.registered else "").server == a.id


async def test_ticket_keys_rotate_daily_and_two_are_valid() -> None:
    """A key in use is never pulled away: tickets and receipts under way stay good."""
    world = await new_world()
    a = await joined(world, "a", 1)
    assert await world.cluster.rotate_keys() == 0
    for _ in range(3):
        world.clock.advance(86_401)
        await a.beat()
        old = world.cluster.view.signing_key(a.id)
        assert await world.cluster.rotate_keys() == 1
        assert world.cluster.view.signing_key(a.id) == old, "a key that servers may not have yet must not sign"
        world.clock.advance(11)
        await world.cluster.refresh()
        assert world.cluster.view.signing_key(a.id) != old
        answer = await a.beat()
        assert len(answer.ticket_keys) == 2 and answer.ticket_keys[-1].id == world.cluster.view.signing_key(a.id)[0]  # type: ignore[index]


async def test_the_map_names_everyone_and_its_revision_rises() -> None:
    """Clients refetch the map when its revision differs from theirs."""
    world = await new_world()
    await joined(world, "a", 1)
    first = world.cluster.cluster_map(metadata_urls=["http://m"])
    assert [(s.name, s.state) for s in first.servers] == [("a", "up")] and first.sites[0].metadata == ["http://m"]
    world.clock.advance(60)
    world.cluster.judge_all()
    second = world.cluster.cluster_map(metadata_urls=["http://m"])
    assert second.revision > first.revision and second.servers[0].state == "dead"


def test_a_third_of_the_servers_gone_at_once_halts() -> None:
    """A cut network looks like many dead servers; copying everything then would be the worst answer."""
    assert not vanished_too_many([1], 3)
    assert vanished_too_many([1, 2], 3) and vanished_too_many([1, 2], 5)
    assert not vanished_too_many([1, 2], 6)


def test_a_stopping_server_gets_nothing_new() -> None:
    """It said that it goes."""
    verdict = judge(Timers(), now_ms=1000, seen_ms=1000, watching_since_ms=0, stopping=True)
    assert verdict.life == "stopping" and not verdict.may_place


async def test_a_removed_server_is_refused() -> None:
    """What an operator removed must not creep back."""
    from metadata.catalog import servers

    world = await new_world()
    a = await joined(world, "a", 1)
    await world.database.write(lambda c: servers.change_server(c, a.id, state="removed"))
    await world.cluster.refresh()
    with pytest.raises(AccessDenied):
        world.cluster.authenticate(str(a.id), a.registered.secret if a.registered else "")
    with pytest.raises(AccessDenied):
        await a.join()

