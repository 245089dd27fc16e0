"""One simulated run from its seed: ten virtual minutes of clients and faults, then peace, then judgement.

    PYTHONHASHSEED=0 python -m tests.simulation.run [--short] SEED [SEED ...]      --short: 100 s of faults
    TIERSTORE_SEED=7 PYTHONHASHSEED=0 python -m tests.simulation.run        prints its whole story
    TIERSTORE_STORIES=DIR                                                   keeps the stories of failed runs there

The hash seed is fixed because sets of text are walked in an order that depends on it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from dataclasses import dataclass, field

from tests.kit import virtual_time
from tests.kit.linearizability import check_history
from tests.kit.simulation import SimCluster
from tests.kit.virtual_time import VirtualLoop
from tests.simulation.invariants import DeletionWatch, state_of_work, unrest
from tests.simulation.nemesis import CALM, CLIENTS, Nemesis
from tests.simulation.workload import BUCKET, Facts, SimClient, Violation

FAULT_SECONDS = 420.0
SHORT_FAULT_SECONDS = 100.0
#: From the last fault on: dead servers are back, copies made, orphans found and collected.
PEACE_SECONDS_MAX = 330.0
POLL_SECONDS = 5.0
#: A run with less than this in 7 minutes of faults did not test anything.
OPERATIONS_MIN = 200
FAULTS_MIN = 10


class _Unexpected(logging.Handler):
    """A traceback in a log is a bug, whoever survived it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(f"{record.name}: {record.getMessage()}: {record.exc_info[1]!r:.300}")


@dataclass
class Verdict:
    seed: int
    digest: str = ""
    virtual_seconds: float = 0.0
    operations: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    messages: int = 0
    deletions: int = 0
    violations: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)

    def line(self) -> str:
        acked = sum(count for what, count in self.operations.items() if what.endswith(" ok"))
        verdict = "; ".join(self.violations) or "held"
        return (
            f"seed {self.seed}: {acked} operations acknowledged, {sum(self.faults.values())} faults, "
            f"{self.messages} messages, {self.deletions} deletions, {self.virtual_seconds:.0f} virtual seconds, "
            f"trace {self.digest}: {verdict}"
        )


async def _play(loop: VirtualLoop, verdict: Verdict, *, fault_seconds: float, keep_all: bool) -> None:
    cluster = SimCluster(loop, verdict.seed, keep_all=keep_all)
    cluster.network.faults = CALM
    facts = Facts()
    clients: list[SimClient] = []
    try:
        await cluster.start()
        watch = DeletionWatch(cluster)
        for name in CLIENTS:
            skew_ms = cluster.rng.choice([0, -3000, 60_000])
            store = await cluster.client(name, skew_ms=skew_ms)
            clients.append(SimClient(cluster, store, name, facts, cluster.fork()))
        await clients[0].store.buckets.create(BUCKET)
        nemesis = Nemesis(cluster, cluster.fork(), watch)
        try:
            async with asyncio.TaskGroup() as group:
                for client in clients:
                    group.create_task(client.run())
                await nemesis.run(fault_seconds)
                await nemesis.heal()
                for client in clients:
                    client.is_stopping = True
            await _rest(cluster)
            await _judge(clients, facts)
        except* Violation as errors:
            verdict.violations += [str(error) for error in errors.exceptions]
        verdict.violations += watch.violations
        verdict.faults, verdict.deletions = nemesis.done, watch.deletions
    finally:
        verdict.operations = facts.done
        verdict.virtual_seconds = loop.time()
        for client in clients:
            await client.store.close()
        await cluster.stop()
        verdict.digest, verdict.messages, verdict.story = cluster.trace.digest, cluster.trace.count, cluster.trace.lines


async def _rest(cluster: SimCluster) -> None:
    """Until everything is whole and clean. Raises Violation when it does not come to that."""
    until = cluster.loop.time() + PEACE_SECONDS_MAX
    while why := unrest(cluster):
        if cluster.loop.time() > until:
            for line in state_of_work(cluster):
                cluster.trace.say("  ", line)
            raise Violation(f"not at rest after {PEACE_SECONDS_MAX:.0f} s of peace: {why}")
        await asyncio.sleep(POLL_SECONDS)
    cluster.trace.say("at rest")


async def _judge(clients: list[SimClient], facts: Facts) -> None:
    """Read everything once more, then look at the histories."""
    for key in sorted(facts.owned):
        await clients[0].read_once(key, must_answer=True)
    for key in sorted({event[0] for event in facts.history}):
        called = clients[0].cluster.loop.time()
        _, found = await clients[0]._get(key)
        if found == "?":
            raise Violation(f"{key} cannot be read though nothing is broken")
        facts.history.append((key, called, clients[0].cluster.loop.time(), "get", None, found))
    bad = check_history(facts.history)
    if bad:
        raise Violation(f"not linearizable (None: not decided): {bad}")


def play(seed: int, *, fault_seconds: float = FAULT_SECONDS, keep_all: bool = False) -> Verdict:
    """One run, judged."""
    verdict = Verdict(seed)
    handler = _Unexpected()
    logging.getLogger().addHandler(handler)
    try:
        virtual_time.run(
            seed, lambda loop: _play(loop, verdict, fault_seconds=fault_seconds, keep_all=keep_all), simulation=True
        )
    except Exception as error:  # a run that breaks down is a verdict too: its seed must be told
        verdict.violations.append(f"the run broke down: {error!r}")
    finally:
        logging.getLogger().removeHandler(handler)
    verdict.violations += handler.found
    if not verdict.violations:
        acked = sum(count for what, count in verdict.operations.items() if what.endswith(" ok"))
        share = fault_seconds / FAULT_SECONDS
        if acked < OPERATIONS_MIN * share or sum(verdict.faults.values()) < FAULTS_MIN * share:
            verdict.violations.append(f"an empty run is no pass: {verdict.operations}, {verdict.faults}")
    return verdict


def main() -> int:
    logging.getLogger().addHandler(logging.NullHandler())
    words = sys.argv[1:]
    fault_seconds = SHORT_FAULT_SECONDS if "--short" in words else FAULT_SECONDS
    seeds = [int(text) for text in words if text != "--short"] or [int(os.environ["TIERSTORE_SEED"])]
    is_told = "TIERSTORE_SEED" in os.environ
    keep_all = is_told or "TIERSTORE_STORIES" in os.environ
    failed = 0
    for seed in seeds:
        verdict = play(seed, fault_seconds=fault_seconds, keep_all=keep_all)
        if is_told:
            print("\n".join(verdict.story))
            print(json.dumps({"operations": verdict.operations, "faults": verdict.faults}, indent=1))
        if verdict.violations and (place := os.environ.get("TIERSTORE_STORIES")):
            with open(os.path.join(place, f"seed-{seed}.txt"), "w") as file:
                file.write("\n".join([*verdict.story, verdict.line(), ""]))
        print(verdict.line(), flush=True)
        failed += bool(verdict.violations)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
