"""The order of bodies: the hottest first, and nobody waits for ever."""

from __future__ import annotations

import random

import pytest

from metadata.catalog.sites import QueueRow
from metadata.services.sites.link import bandwidth
from metadata.services.sites.order import AGING_TURNS, SLICE_ROWS, BodyOrder, Waiting
from tierstore.gateway.sites import route_of
from tierstore.wire.sites import Peer, Peers


def _row(sequence: int) -> QueueRow:
    return QueueRow(sequence, 0, 1, f"k{sequence}", sequence, 1, 100)


def _order(heat: dict[bytes, float], lost: list[int] | None = None) -> BodyOrder:
    return BodyOrder(lambda chunks: [heat.get(chunk, 0.0) for chunk in chunks], lambda: lost or ())


def _rank(order: BodyOrder) -> None:
    for _ in order.ranking():
        pass


def _taken(order: BodyOrder) -> list[int]:
    return [waiting.row.sequence for waiting in iter(order.take, None)]


def test_hot_bodies_go_first_and_the_oldest_every_fourth_turn() -> None:
    order = _order({bytes([i]): float(i % 10 == 0) * (100 - i) for i in range(100)})
    order.add([Waiting(_row(i), [bytes([i])]) for i in range(100)])
    taken = _taken(order)
    assert sorted(taken) == list(range(100))
    hot = [i for i in range(100) if i % 10 == 0]
    assert max(taken.index(i) for i in hot) < len(hot) * AGING_TURNS / (AGING_TURNS - 1) + AGING_TURNS


def test_a_cold_body_is_taken_within_the_aging_bound_however_many_hot_ones_come() -> None:
    order = _order({b"hot": 1000.0})
    order.add([Waiting(_row(i), [b"cold"]) for i in range(5)])
    sequence = 100
    seen: list[int] = []
    for _ in range(5 * AGING_TURNS):
        order.add([Waiting(_row(sequence), [b"hot"])])
        sequence += 1
        waiting = order.take()
        assert waiting is not None
        seen.append(waiting.row.sequence)
    assert [i for i in seen if i < 100] == [0, 1, 2, 3, 4]


def test_heat_that_changes_while_a_body_waits_counts_from_the_next_ranking() -> None:
    heat = {b"a": 1.0, b"b": 2.0, b"c": 3.0}
    order = _order(heat)
    order.add([Waiting(_row(i), [chunk]) for i, chunk in enumerate(heat)])
    first = order.take()
    assert first is not None and first.row.sequence == 2
    heat[b"a"] = 9.0
    _rank(order)
    assert _taken(order) == [0, 1]


def test_a_body_whose_copies_became_fewer_goes_before_all() -> None:
    """A server of this site is dead: until that is repaired, the other site's copy may be the one that is left."""
    lost: list[int] = []
    order = _order({b"hot": 100.0}, lost)
    order.add([Waiting(_row(i), [b"hot"], (1, 2)) for i in range(20)])
    order.add([Waiting(_row(20 + i), [b"cold"], (2, 3)) for i in range(3)])
    lost.append(3)
    order.add([Waiting(_row(30), [b"cold"], (3, 4))])
    first = order.take()
    assert first is not None and first.row.sequence == 30       # of those known to be endangered by now
    _rank(order)
    assert order.peek_bytes() == 100 and _taken(order) == [20, 21, 22, *range(20)]


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_come_and_go_while_others_are_ranked_are_each_taken_once(seed: int) -> None:
    """The ranking of a long queue lets requests in between its slices: what they bring must not be lost or doubled."""
    rng = random.Random(seed)
    heat = {bytes([i]): float(i) for i in range(8)}
    order = _order(heat)
    waiting = list(range(3 * SLICE_ROWS))

    def row(sequence: int) -> Waiting:
        return Waiting(_row(sequence), [bytes([rng.randrange(8)]) for _ in range(rng.randrange(3))])

    order.add([row(i) for i in waiting])
    taken: list[int] = []
    for _ in range(3):
        for _ in order.ranking():
            for _ in range(rng.randrange(SLICE_ROWS // 2)):
                found = order.take()
                assert found is not None
                taken.append(found.row.sequence)
            more = range(len(waiting), len(waiting) + rng.randrange(SLICE_ROWS // 2))
            order.add([row(i) for i in more])
            waiting += more
            if rng.random() < 0.2:
                break       # given up half-way: the worker's loop failed
    again = taken.pop()
    order.add([row(again)])         # to be tried again
    assert len(order) == len(waiting) - len(taken)
    taken += _taken(order)
    assert sorted(taken) == waiting and not len(order) and not order.peek_bytes()


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
