"""Keys, policy revisions, leases of allocations: who may, what holds, on every engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from metadata.catalog import feed, schema
from metadata.services.access.credentials import Credentials
from metadata.services.access.policies import Policies
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.auth.access import Principal, token_hash
from tierstore.errors import AccessDenied, ConfigError, ConflictError, NotAuthenticated, NotFound, RequestError
from tierstore.names import ServerId
from tierstore.policy import parser
from tierstore.ticket import open_write
from tierstore.wire.names import AllocateItem

__all__ = ["postgres", "run", "url_of"]


def _daemon(server: str, token: str) -> Principal:
    if token != "tsd.3.secret":
        raise NotAuthenticated("no")
    return Principal("", f"server {server}", server=int(server))


def _credentials(w: NamesWorld) -> Credentials:
    return Credentials(w.database, w.clock, daemon=_daemon)


def test_a_new_key_opens_and_a_revoked_one_does_not(run: Run) -> None:
    """A revoked key that still works is a breach."""

    async def check(w: NamesWorld) -> None:
        keys = _credentials(w)
        account, token = await keys.create(user="ann", grants={"bbb": "readwrite"}, who="ADMIN")
        header = f"Bearer {token}".encode()
        caller = await keys.caller(header)
        assert (caller.access, caller.user, dict(caller.grants)) == (account.access, "ann", {"bbb": "readwrite"})
        assert keys.caller_now(header) == caller, "the second time it is known at once"
        for wrong in (header[:-1] + b"_", b"Bearer tst.OTHER." + header.rsplit(b".", 1)[1], b"Basic x", None):
            with pytest.raises(NotAuthenticated):
                await keys.caller(wrong)
        await keys.set_enabled(account.access, enabled=False, who="ADMIN")
        with pytest.raises(NotAuthenticated):
            await keys.caller(header)
        await keys.set_enabled(account.access, enabled=True, who="ADMIN")
        await keys.set_grants(account.access, {"*": "readonly"}, who="ADMIN")
        assert dict((await keys.caller(header)).grants) == {"*": "readonly"}
        await keys.revoke(account.access, who="ADMIN")
        with pytest.raises(NotAuthenticated):
            await keys.caller(header)
        with pytest.raises(NotFound):
            await keys.revoke(account.access, who="ADMIN")
        changes = await w.database.read(lambda c: feed.read(c, 0, 100))
        assert sum(c.kind == schema.CHANGE_CREDENTIAL for c in changes) == 5
        assert token.encode() not in repr(await w.rows(schema.credentials)).encode(), "only its hash is kept"

    run(check)


def test_two_operators_at_once_undo_nothing_of_each_other(run: Run) -> None:
    """Who set the grants of a key wrote it back as it had been read, and a key that was disabled in that moment opened
    again; a key that was made while a policy was attached to its user went without."""

    async def check(w: NamesWorld) -> None:
        keys = _credentials(w)
        deny = json.dumps({"Statement": [{"Effect": "Deny", "Action": "s3:*", "Resource": "*"}]})
        for number in range(5):
            user = f"ann{number}"
            account, _ = await keys.create(user=user, grants={"bbb": "readwrite"}, who="ADMIN")
            await asyncio.gather(
                keys.set_enabled(account.access, enabled=False, who="ADMIN"),
                keys.set_grants(account.access, {"*": "readonly"}, who="OTHER"),
                keys.attach(user, "deny", deny, who="THIRD"),
                keys.create(user=user, grants={"bbb": "readwrite"}, who="FOURTH"),
            )
            found = [a for a in await keys.everyone() if a.user == user]
            changed = next(a for a in found if a.access == account.access)
            assert not changed.enabled and changed.grants == {"*": "readonly"}
            assert len(found) == 2 and all(len(a.policies) == 1 for a in found)

    run(check)


def test_another_process_notices_a_revocation_at_its_next_refresh(run: Run) -> None:
    """Several metadata processes: a revocation must reach all of them."""

    async def check(w: NamesWorld) -> None:
        one, two = _credentials(w), _credentials(w)
        account, token = await one.create(user="ann", grants={"*": "admin"}, who="ADMIN")
        header = f"Bearer {token}".encode()
        await two.refresh()
        await two.caller(header)
        await one.revoke(account.access, who="ADMIN")
        await two.refresh()
        with pytest.raises(NotAuthenticated):
            await two.caller(header)
        assert one.revision == two.revision

    run(check)


def test_only_daemons_act_for_somebody_else(run: Run) -> None:
    """Else any key could borrow an administrator's."""

    async def check(w: NamesWorld) -> None:
        keys = _credentials(w)
        account, token = await keys.create(user="ann", grants={"bbb": "readonly"}, who="ADMIN")
        root, _ = await keys.create(user="root", grants={"*": "admin"}, who="ADMIN")
        user = await keys.caller(f"Bearer {token}".encode())
        with pytest.raises(AccessDenied):
            await keys.behind(user, root.access)
        assert await keys.behind(user, "") == user == await keys.behind(user, account.access)
        gateway = await keys.caller(b"Bearer tsd.3.secret")
        assert (await keys.behind(gateway, account.access)).grants == {"bbb": "readonly"}
        with pytest.raises(NotAuthenticated):
            await keys.behind(gateway, "NOBODY")
        found = await keys.for_gateway(token_sha256=token_hash(token))
        assert (found.access, found.secret) == (account.access, account.secret)
        with pytest.raises(NotFound):
            await keys.for_gateway(access="NOBODY")

    run(check)


def test_expired_keys_are_refused_also_from_the_cache(run: Run) -> None:
    """A key for a day must not work for as long as the process runs."""

    async def check(w: NamesWorld) -> None:
        keys = _credentials(w)
        _, token = await keys.create(
            user="ann", grants={"*": "admin"}, who="ADMIN", expires_at_ms=w.clock.now_ms() + 1000
        )
        header = f"Bearer {token}".encode()
        await keys.caller(header)
        w.clock.advance(2)
        with pytest.raises(NotAuthenticated):
            await keys.caller(header)

    run(check)


def test_the_first_key_comes_from_the_settings_and_may_change(run: Run) -> None:
    """`up` keeps its keys over restarts, and an operator may rotate them."""

    async def check(w: NamesWorld) -> None:
        keys = _credentials(w)
        assert await keys.bootstrap(access="ROOT", secret="s", token="tst.ROOT.aaaa")
        assert not await keys.bootstrap(access="ROOT", secret="s", token="tst.ROOT.aaaa")
        assert (await keys.caller(b"Bearer tst.ROOT.aaaa")).grants == {"*": "admin"}
        assert await keys.bootstrap(access="ROOT", secret="s", token="tst.ROOT.bbbb")
        with pytest.raises(NotAuthenticated):
            await keys.caller(b"Bearer tst.ROOT.aaaa")
        assert not await keys.bootstrap(access="", secret="", token="")
        with pytest.raises(ConfigError, match=r"root\.token"):
            await keys.bootstrap(access="ROOT", secret="s", token="tst.OTHER.aaaa")

    run(check)


@pytest.mark.parametrize(
    "wish",
    [
        {"grants": {"*": "king"}}, {"grants": {"A B": "admin"}}, {"grants": {}, "access": "a b"},
        {"grants": {}, "user": "x" * 300},
    ],
)  # fmt: skip
def test_bad_keys_are_refused_by_name(run: Run, wish: dict[str, Any]) -> None:
    """Promise 9."""

    async def check(w: NamesWorld) -> None:
        with pytest.raises(RequestError):
            await _credentials(w).create(who="ADMIN", **{"user": "u", **wish})

    run(check)


def test_policies_are_checked_kept_and_rolled_back(run: Run) -> None:
    """A wrong policy must be found before it moves data, and undone in one step."""

    async def check(w: NamesWorld) -> None:
        servers = [3]
        policies = Policies(w.database, w.clock, parser.parse, servers=lambda: servers[0])
        seen: list[int] = []
        policies.listeners.append(lambda current: seen.append(current.revision))
        assert policies.current.revision == 0
        first = {"version": 1, "rules": [{"name": "a", "match": {"bucket": "bbb"}, "copies": 3}]}
        assert (await policies.set(first, who="ADMIN", note="three")).revision == 1
        assert policies.current.policy.rule_for("bbb", "k", 1, 0.0).copies == 3
        with pytest.raises((RequestError, ConfigError)):
            await policies.set({"version": 1, "rulez": []}, who="ADMIN")
        with pytest.raises(ConflictError, match="revision 1"):
            await policies.set({"version": 1}, who="ADMIN", expected=0)
        await policies.set({"version": 1}, who="ADMIN", expected=1)
        await policies.rollback(1, who="ADMIN")
        assert policies.current.policy.rule_for("bbb", "k", 1, 0.0).copies == 3
        assert [(r.revision, r.note) for r in await policies.history()] == [
            (3, "rollback to revision 1"), (2, ""), (1, "three"),
        ]  # fmt: skip
        other = Policies(w.database, w.clock, parser.parse, servers=lambda: 0)
        await other.refresh()
        assert other.current.revision == 3 and seen == [1, 2, 3]
        with pytest.raises(NotFound):
            await policies.rollback(99, who="ADMIN")
        await policies.rollback(0, who="ADMIN")         # whoever set the first one can undo that, too
        assert policies.current.revision == 4
        assert policies.current.policy == parser.parse({"version": 1})
        assert [r.action for r in await w.rows(schema.audit)] == ["bucket.create", *["policy.set"] * 4]

    run(check)


def test_more_copies_than_servers_are_refused_unless_it_is_meant(run: Run) -> None:
    """`copies = 9` for 3 on three servers: every write under that rule failed from that moment on, and nothing said
    why. What holds already goes on holding when a server is taken away."""

    async def check(w: NamesWorld) -> None:
        servers = [3]
        policies = Policies(w.database, w.clock, parser.parse, servers=lambda: servers[0])
        careful = {"version": 1, "rules": [{"name": "a"}, {"name": "b", "copies": 4}]}
        for wish in (policies.set(careful, who="ADMIN"), policies.set(careful, who="ADMIN", expected=0)):
            with pytest.raises(RequestError, match=r"rules\[1\].copies: 4 copies need 4 .* there are 3") as caught:
                await wish
            assert caught.value.code == "bad-policy"
        with pytest.raises(RequestError, match="there are 3"):
            policies.check(careful)
        assert policies.current.revision == 0
        assert policies.check(careful, is_forced=True)["rules"][1]["copies"] == 4
        assert (await policies.set(careful, who="ADMIN", is_forced=True)).revision == 1
        await policies.rollback(0, who="ADMIN")
        with pytest.raises(RequestError, match="there are 3"):
            await policies.rollback(1, who="ADMIN")
        servers[0] = 4
        assert (await policies.rollback(1, who="ADMIN")).revision == 3
        servers[0] = 3
        other = Policies(w.database, w.clock, parser.parse, servers=lambda: servers[0])
        await other.refresh()
        assert other.current.policy.rule_for("bbb", "k", 1, 0.0).name == "a" and other.current.revision == 3

    run(check)


def test_allocations_hold_tickets_that_their_servers_accept(run: Run) -> None:
    """The write's right is the ticket alone."""

    async def check(w: NamesWorld) -> None:
        result = w.allocations.allocate(AllocateItem(["ssd"], copies=2, count=3), ADMIN)
        assert not result.code and len({a.upload for a in result.allocations}) == 3
        for made in result.allocations:
            assert len({t.server for t in made.targets}) == 2 and {t.tier for t in made.targets} == {"ssd"}
            for target in (*made.targets, *made.spares):
                ticket = open_write(
                    target.ticket, w.view.ticket_keys[target.server], server=ServerId(target.server),
                    now_seconds=w.clock.now_ms() / 1000,
                )  # fmt: skip
                assert (ticket.upload, ticket.device) == (made.upload, target.device) and ticket.covers(0)
        upload = result.allocations[0].upload
        extra = w.allocations.allocate(AllocateItem(["hdd"], count=2, extra_tiers=["ssd", "nvme"]), ADMIN).allocations
        assert [[t.tier for t in a.extras] for a in extra] == [["ssd"]] * 2
        none = w.allocations.allocate(AllocateItem(["ssd"], extra_tiers=["ssd", "hdd"]), ADMIN).allocations
        assert none[0].extras == [], "nothing there is faster than the home copies"
        more = w.allocations.allocate(AllocateItem([], count=4, upload=upload, first_index=5), ADMIN).allocations
        assert [(a.upload, a.index) for a in more] == [(upload, i) for i in (5, 6, 7, 8)]

    run(check)


def test_allocations_avoid_servers_that_take_nothing(run: Run) -> None:
    """A draining or silent server gets no new chunks; too few servers are named as such."""

    async def check(w: NamesWorld) -> None:
        w.view.servers[1].state = "draining"
        w.view.servers[2].accepts_new = False
        w.view.bump()
        for _ in range(50):
            [made] = w.allocations.allocate(AllocateItem([]), ADMIN).allocations
            assert {t.server for t in made.targets} == {3, 4} and not made.spares
        assert w.allocations.allocate(AllocateItem([], copies=3), ADMIN).code == "not-enough-servers"
        for device in w.view.devices.values():
            device.health = "full"
        w.view.bump()
        assert w.allocations.allocate(AllocateItem([]), ADMIN).code == "cluster-full"
        assert w.allocations.allocate(AllocateItem([], count=0), ADMIN).code == "bad-allocation"
        assert w.allocations.allocate(AllocateItem([]), Principal("R", "r", {"*": "readonly"})).code == "access-denied"

    run(check)


def test_reads_prefer_servers_that_are_up_then_fast_tiers_and_keep_the_dead_last(run: Run) -> None:
    """A read must not begin at a dead server, nor fail because all look dead."""

    async def check(w: NamesWorld) -> None:
        await w.put("k", chunks=[w.chunk(devices=(10, 21, 30))])

        async def order() -> list[int]:
            w.view.bump()
            return [r.device for r in (await w.look("k")).chunks[0].replicas]

        assert (await order())[0] == 21
        w.view.servers[2].state = "suspect"
        assert (await order())[2] == 21
        w.view.servers[1].state = "dead"
        assert await order() == [30, 21, 10]
        for server in w.view.servers.values():
            server.state = "dead"
        assert len(await order()) == 3
        for server in w.view.servers.values():
            server.state = "up"
        w.view.servers[2].state = "removed"
        firsts = set()
        for number in range(40):
            key = f"k{number}"
            await w.put(key, chunks=[w.chunk(devices=(10, 21, 30))])
            found = {(await w.look(key)).chunks[0].replicas[0].device for _ in range(3)}
            assert len(found) == 1, "a chunk is read where it is in memory already"
            firsts |= found
        assert firsts == {10, 30}, "equals share the chunks"

    run(check)


def test_readers_leave_a_server_for_load_only_when_others_have_less(run: Run) -> None:
    """All servers of a busy machine are busy: whoever goes elsewhere then finds the chunk in nobody's RAM."""

    async def check(w: NamesWorld) -> None:
        await w.put("k", chunks=[w.chunk(devices=(10, 20))])

        async def first(*loads: float) -> int:
            for server, load in zip(w.view.servers.values(), loads, strict=True):
                server.load = load
            w.view.bump()
            w.clock.advance(2.0)
            return (await w.look("k")).chunks[0].replicas[0].device

        usual = await first(0.0, 0.0, 0.0, 0.0)
        other = {10: 20, 20: 10}[usual]
        busy = tuple(0.9 if server == usual // 10 else 0.1 for server in (1, 2, 3, 4))
        assert await first(0.9, 0.9, 0.9, 0.9) == usual
        assert await first(*busy) == other
        assert await first(*(min(load, 0.3) for load in busy)) == usual, "a hair's difference moves nobody"

    run(check)
