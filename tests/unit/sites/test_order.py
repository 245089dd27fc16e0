"""The order of bodies: the hottest first, and nobody waits for ever."""

from __future__ import annotations

from metadata.catalog.sites import QueueRow
from metadata.services.sites.link import bandwidth
from metadata.services.sites.order import AGING_TURNS, BodyOrder
from tierstore.gateway.sites import route_of
from tierstore.wire.sites import Peer, Peers


def _row(sequence: int) -> QueueRow:
    return QueueRow(sequence, 0, 1, f"k{sequence}", sequence, 1, 100)


def test_hot_bodies_go_first_and_the_oldest_every_fourth_turn() -> None:
    heat = {bytes([i]): float(i % 10 == 0) * (100 - i) for i in range(100)}
    order = BodyOrder(lambda chunk: heat[chunk])
    for i in range(100):
        order.add(_row(i), [bytes([i])])
    taken = [row.sequence for row in iter(order.take, None)]
    assert sorted(taken) == list(range(100))
    hot = [i for i in range(100) if i % 10 == 0]
    assert max(taken.index(i) for i in hot) < len(hot) * AGING_TURNS / (AGING_TURNS - 1) + AGING_TURNS


def test_a_cold_body_is_taken_within_the_aging_bound_however_many_hot_ones_come() -> None:
    order = BodyOrder(lambda chunk: 1000.0 if chunk == b"hot" else 0.0)
    for i in range(5):
        order.add(_row(i), [b"cold"])
    sequence = 100
    seen: list[int] = []
    for _ in range(5 * AGING_TURNS):
        order.add(_row(sequence), [b"hot"])
        sequence += 1
        row = order.take()
        assert row is not None
        seen.append(row.sequence)
    assert [i for i in seen if i < 100] == [0, 1, 2, 3, 4]


def test_heat_that_changes_while_a_body_waits_counts_from_the_next_ranking() -> None:
    heat = {b"a": 1.0, b"b": 2.0, b"c": 3.0}
    order = BodyOrder(heat.__getitem__)
    for i, chunk in enumerate(heat):
        order.add(_row(i), [chunk])
    first = order.take()
    assert first is not None and first.sequence == 2
    heat[b"a"] = 9.0
    order.rank()
    second = order.take()
    assert second is not None and second.sequence == 0


def test_bandwidth_follows_the_time_of_the_day() -> None:
    link = {"rate": "10MiB/s", "schedule": [{"from": "22:00", "to": "06:00", "rate": "1MiB/s"}]}
    hour = 3_600_000
    assert bandwidth(link, 12 * hour) == 10 << 20
    assert bandwidth(link, 23 * hour) == bandwidth(link, 5 * hour) == 1 << 20
    assert bandwidth({}, 0) == 0


def test_the_near_site_is_that_of_the_narrowest_network_then_this_one_then_by_latency() -> None:
    peers = Peers(
        "a",
        [
            Peer("b", 2, ["http://b"], "", ["10.0.0.0/8"], 50.0), Peer("c", 3, ["http://c"], "", ["10.1.0.0/16"], 90.0),
            Peer("d", 4, ["http://d"], "", [], 5.0),
        ],
    )  # fmt: skip

    def order(address: str) -> list[str]:
        return [site.site for site in route_of(address, ["http://a"], peers).sites]

    assert order("10.1.2.3") == ["c", "b", "a", "d"]
    assert order("10.2.2.3") == ["b", "a", "d", "c"]
    assert order("192.168.1.1") == ["a", "d", "b", "c"]
    assert order("no address") == ["a", "d", "b", "c"]
