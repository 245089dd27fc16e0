"""The in-process network: faults happen as told, and a seed replays a run exactly."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.kit import virtual_time
from tierstore.errors import UnavailableError
from tierstore.serving.inprocess import InProcessServer
from tierstore.serving.table import Route
from tierstore.transport.inprocess import Faults, Network


def build(network: Network, log: list[bytes]) -> InProcessServer:
    def handle(exchange: object) -> None:
        log.append(exchange.target)  # type: ignore[attr-defined]
        exchange.reply(200, b"ok")  # type: ignore[attr-defined]

    server = InProcessServer([Route(b"POST", b"/do/", handle)])
    network.register("http://b:1", server)
    return server


async def outcomes(network: Network, count: int, seconds: float = 1.0) -> list[str]:
    transport = network.transport("http://a:1")

    async def one(number: int) -> str:
        try:
            reply = await transport.call("http://b:1", b"POST", b"/do/%d" % number, body=b"x", seconds=seconds)
        except UnavailableError as error:
            return error.code
        return reply.body.decode()

    return list(await asyncio.gather(*(one(number) for number in range(count))))


def play(seed: int) -> tuple[list[str], list[bytes], float]:
    """One run with every fault on; what callers and the server saw, and the virtual time it took."""

    async def main() -> tuple[list[str], list[bytes], float]:
        faults = Faults(delay_min=0.001, delay_max=0.02, request_loss=0.1, answer_loss=0.1, duplication=0.2)
        network = Network(random.Random(seed), faults)
        log: list[bytes] = []
        server = build(network, log)
        results = await outcomes(network, 200)
        await network.close()
        await server.close()
        return results, log, asyncio.get_running_loop().time()

    return virtual_time.run(seed, lambda loop: main())


def test_the_same_seed_replays_the_same_run_and_another_does_not() -> None:
    """A failure found by a seed must come back with it."""
    assert play(1) == play(1)
    assert play(1)[1] != play(2)[1]


def test_lost_and_doubled_messages_really_happen() -> None:
    """A simulation without faults proves nothing."""
    results, log, _ = play(3)
    assert 10 < results.count("deadline") < 80
    assert len(log) - len(set(log)) > 10                        # delivered twice
    answered = {b"/do/%d" % n for n, result in enumerate(results) if result == "ok"}
    assert answered < set(log)                                  # applied although the caller heard nothing


def test_partitions_silence_and_removal_look_as_they_do_in_the_field() -> None:
    """Cut: deadline. One way: applied but unheard. Silent: accepted, never answered. Removed: refused at once."""

    async def main() -> None:
        network = Network(random.Random(1))
        log: list[bytes] = []
        server = build(network, log)
        network.partition({"http://a:1"}, {"http://b:1"})
        assert await outcomes(network, 2) == ["deadline"] * 2 and not log
        network.heal()
        network.partition({"http://b:1"}, {"http://a:1"}, both_ways=False)
        assert await outcomes(network, 2) == ["deadline"] * 2 and len(log) == 2
        network.heal()
        network.silent.add("http://b:1")
        assert await outcomes(network, 1) == ["deadline"]
        network.silent.clear()
        assert await outcomes(network, 1) == ["ok"]
        network.remove("http://b:1")
        with pytest.raises(UnavailableError) as caught:
            await network.transport("x").call("http://b:1", b"POST", b"/do/1", seconds=1)
        assert caught.value.code == "unreachable"
        await server.close()

    virtual_time.run(1, lambda loop: main())
