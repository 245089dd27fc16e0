"""End to end: the whole cluster by its REST door, beside nginx, under one load client.

`python -m bench.e2e [--rows put4k,get4k] [--rounds N] [--seconds S] [--json FILE] [--directory DIR]`

`tierstore up` with three object servers and two synced copies, SQLite; nginx with sendfile and its DAV module, two
workers, which checks, syncs and replicates nothing: the machine's limit. Judged is CPU per operation of all server
processes; rates depend on what else the machine does. Before the windows of a large GET the promoter is waited for;
what it moves is a row of its own (bench.e2e.settle). Exit status 1 when a must is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from bench import nginx
from bench.cluster import BUCKET, running
from bench.e2e.load import M, Played, Replayer, Target
from bench.e2e.play import Player
from bench.e2e.rows import ROWS, Row
from bench.e2e.settle import Settled, settle
from bench.options import bench_main
from bench.result import Result

#: Windows in which the host or other processes took more cores than this are dropped when calmer ones exist.
STEAL_MAX, OTHERS_MAX = 0.1, 0.25


def run(root: Path, options: argparse.Namespace) -> list[Result]:
    """Alternate the two targets row by row."""
    rows = [row for row in ROWS if row.name in options.rows]
    replayer = Replayer(root)
    reference = nginx.Nginx(root / "nginx", workers=2) if nginx.executable() else None
    windows: dict[tuple[str, str], list[Played]] = {}
    settled: dict[str, Settled] = {}
    with running(root / "cluster") as cluster:
        players = [Player(replayer, Target(
            "tierstore", cluster.gateway_port, f"/v1/objects/{BUCKET}", cluster.up,
            {"Authorization": cluster.authorization},
        ))]  # fmt: skip
        try:
            if reference is not None:
                reference.start()
                assert reference.process is not None
                players.append(Player(replayer, Target("nginx", reference.port, "/bench", reference.process.pid)))
            for row in rows:
                if row.operation == "GET" and row.size >= M:
                    players[0].window(row, seconds=options.seconds, seed=-1)    # read once: this is promoted now
                    settled[row.name] = settle(cluster)
                for number in range(options.rounds):
                    for player in players[:: 1 if number % 2 else -1]:
                        if row.operation == "LIST" and player.target.name == "nginx":
                            continue        # nginx's index is no page of a listing
                        played = player.window(row, seconds=options.seconds, seed=number)
                        windows.setdefault((player.target.name, row.name), []).append(played)
                        print(f"  {player.target.name:10s} {row.name:9s} {played.rate:9.1f}/s "
                              f"{played.cpu_ms:8.3f} ms  p99 {played.p99_ms:7.2f} ms  {_roles(played)}  "
                              f"steal {played.steal:.2f} others {played.others:.2f}",
                              file=sys.stderr, flush=True)  # fmt: skip
        finally:
            if reference is not None:
                reference.stop()
    results = [_result(row, windows[("tierstore", row.name)], windows.get(("nginx", row.name), [])) for row in rows]
    return results + [found.result(name) for name, found in settled.items()]


def _roles(played: Played) -> str:
    return " ".join(f"{name} {spent:.3f}" for name, spent in sorted(played.by_role.items()) if spent >= 0.0005)


def _calm(windows: list[Played]) -> list[Played]:
    calm = [window for window in windows if window.steal <= STEAL_MAX and window.others <= OTHERS_MAX]
    return calm or [min(windows, key=lambda window: window.steal + window.others)]


def _result(row: Row, ours: list[Played], theirs: list[Played]) -> Result:
    ours = _calm(ours)
    cpu = statistics.median([window.cpu_ms for window in ours])
    rate = statistics.median([window.rate for window in ours])
    middle = sorted(ours, key=lambda window: window.cpu_ms)[len(ours) // 2]
    detail = f"{rate:,.0f}/s  p99 {statistics.median([window.p99_ms for window in ours]):.1f} ms  {_roles(middle)}"
    if theirs:
        theirs = _calm(theirs)
        detail += (f"  nginx {statistics.median([window.rate for window in theirs]):,.0f}/s "
                   f"{statistics.median([window.cpu_ms for window in theirs]):.3f} ms")  # fmt: skip
    return Result(f"e2e {row.name}", cpu, must=row.must, aim=row.aim, unit="ms CPU", is_less_better=True,
                  cpu_us=cpu * 1e3, detail=detail)  # fmt: skip


if __name__ == "__main__":
    bench_main("end to end against nginx", [row.name for row in ROWS], run, rounds=3, seconds=1.0)
