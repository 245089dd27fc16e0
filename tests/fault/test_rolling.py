"""`tierstore admin roll` under load (R13): drain, restart and return of every process, nobody sees an error."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.kit.cluster import Cluster, cluster, wait_until
from tests.kit.http import Broken, Client
from tests.kit.load import Load, body_of, judge

MIB = 1 << 20


@dataclass
class Streams:
    """Clients that put and get bodies so large that restarts come in their middle; no write is ever repeated."""

    c: Cluster
    size: int
    rounds_done: int = 0
    failures: list[str] = field(default_factory=list)
    _stop: bool = False

    async def run(self, number: int) -> None:
        client, turn = Client(self.c.gateway, token=self.c.token, seconds=300), 0
        while not self._stop:
            turn += 1
            body = body_of(number * 1000 + turn, self.size)
            for method, content in (("PUT", body), ("GET", None)):
                try:
                    answer = await client.request(method, f"/v1/objects/load/stream/{number}", content)
                except Broken as error:
                    self.failures.append(f"{method} {turn}: {error}")
                    break
                if answer.status != 200 or (method == "GET" and answer.body != body):
                    self.failures.append(f"{method} {turn}: {answer.status} {answer.body[:200]!r}")
                    break
            else:
                self.rounds_done += 1
        client.close()

    def stop(self) -> None:
        self._stop = True


async def _roll(c: Cluster, rounds: int) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tierstore.cli.main", "admin", "roll", "--rounds", str(rounds),
        "--data", str(c.data / "cluster"), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "TIERSTORE_ENDPOINT": c.gateway, "TIERSTORE_TOKEN": c.token},
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), 600 * rounds)
    return process.returncode or 0, output.decode()


@pytest.mark.parametrize(
    ("rounds", "size"), [(1, 20 * MIB), pytest.param(3, 100 * MIB, marks=pytest.mark.slow)], ids=["quick", "three"]
)
def test_a_roll_of_every_process_fails_no_request(tmp_path: Path, rounds: int, size: int) -> None:
    """Restarts are routine: also for bodies in flight, and for a client that never repeats a write. Histories stay
    linearizable and listings complete (R15)."""

    async def main(c: Cluster) -> None:
        load = Load(c.gateway, c.token, seed=rounds + 40, seconds=300)
        await load.prepare()
        load.start()
        streams = Streams(c, size)
        tasks = [asyncio.create_task(streams.run(number)) for number in range(2)]
        before = {p.name: c.pid(p.name) for p in c.processes()}
        began = time.monotonic()
        status, output = await _roll(c, rounds)
        took = time.monotonic() - began

        def is_enough() -> bool:
            return bool(
                streams.failures
                or (streams.rounds_done >= 2 * rounds and load.outcome.counts["put 200"] >= 100 * rounds)
            )

        await asyncio.to_thread(
            wait_until, is_enough, seconds=600, what=lambda: f"work: {streams} {load.outcome.counts}"
        )
        streams.stop()
        await asyncio.gather(*tasks)
        outcome = await load.stop()
        found = await judge(c.gateway, c.token, outcome)
        print(
            f"{rounds} rounds of {len(before)} processes in {took:.0f} s, {streams.rounds_done} streams of "
            f"{size // MIB} MiB both ways, {dict(outcome.counts)}"
        )
        assert status == 0, output
        same = [name for name, pid in before.items() if c.pid(name) == pid]
        assert not same, f"not restarted: {same}"
        order = [line.split()[0] for line in output.splitlines() if " restarted in " in line]
        assert order == ["objectd1", "objectd2", "objectd3", "metadata1", "gateway1"] * rounds
        assert not found, found[:20]
        failed = {
            what: n for what, n in outcome.counts.items() if what.endswith("broken") or what.split(" ")[1][0] == "5"
        }
        assert not failed and not streams.failures, (failed, streams.failures[:5])

    with cluster(tmp_path, "--servers", "3") as c:
        asyncio.run(main(c))
