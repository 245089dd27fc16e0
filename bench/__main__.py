"""`make bench`: every row of the bars, one table, exit status 1 when a must is missed.

    python -m bench [GROUP[:ROW,ROW] ...] [--json FILE] [--list]

Each group runs in a process of its own, one after another; about 5 minutes in all. A group that fails counts as missed.
The tiering bench has a target of its own (`make bench-tiering`). Ratios are taken in one run, both sides in turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import nginx
from bench.result import Result, print_results

#: group -> (its rows, does it need nginx)
GROUPS = {
    "objectd_get": ("4k,64k,1m,64m", True),
    "gateway_get": ("4k,1m,64m,lookup", True),
    "objectd_put": ("tmpfs-4k,tmpfs-64k,tmpfs-1m,durable-4k,durable-64m", True),
    "metadata_names": ("put,grouping,lookup,page", False),
    "postgres_names": ("put", False),
    "fanout": ("fan-out", False),
    "objectd_slow": ("p99", False),
    "memory": ("rss,ready", False),
    "restart": ("ready", False),
    "readers_after_kill": ("one,many", False),
    "e2e": ("put4k,put1m,put64m,get4k,get1m,get64m,head4k,list1000,mixed,del4k", False),
    "s3": ("get4k,get1m,put4k,put1m", False),
    "s3_peer": ("get4k,get64k,get1m,put4k,put64k,put1m,head4k,head64k,head1m,list4k,list64k,del4k,del64k,del1m", False),
    "sites": ("async-put,sync-put,first-byte,link,arrival,near", False),
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the bars.")
    parser.add_argument("groups", nargs="*", metavar="GROUP[:ROW,ROW]", help=f"of {', '.join(GROUPS)}; default: all")
    parser.add_argument("--json", default="", help="write the results there too")
    parser.add_argument("--directory", default="", help="where the data lies; default: a temporary directory")
    parser.add_argument("--list", action="store_true", help="show groups and rows, measure nothing")
    options = parser.parse_args()
    if options.list:
        for name, (rows, _) in GROUPS.items():
            print(f"{name}: {rows.replace(',', ' ')}")
        return 0
    wanted = dict(text.partition(":")[::2] for text in options.groups) or dict.fromkeys(GROUPS, "")
    unknown = set(wanted) - set(GROUPS)
    if unknown:
        parser.error(f"no group {', '.join(sorted(unknown))}; groups are {', '.join(GROUPS)}")
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, rows in wanted.items():
            if GROUPS[name][1] and nginx.executable() is None:
                print(f"== {name} is skipped: it needs nginx (Debian package nginx-light)", flush=True)
                continue
            results += _run(name, rows or GROUPS[name][0], Path(scratch) / f"{name}.json", options.directory)
    print()
    print_results(results)
    if options.json:
        Path(options.json).write_text(json.dumps([result.as_json() for result in results], indent=1))
    missed = [result.row for result in results if result.is_missed]
    if missed:
        print(f"\nmissed: {', '.join(missed)}")
    return 1 if missed else 0


def _run(name: str, rows: str, file: Path, directory: str) -> list[Result]:
    """One group's results; a failure is a missed row of its name."""
    print(f"\n== {name}", flush=True)
    began = time.monotonic()
    command = [sys.executable, "-m", f"bench.{name}", "--rows", rows, "--json", str(file)]
    if directory:
        command += ["--directory", directory]
    done = subprocess.run(command, check=False)
    print(f"-- {name}: {time.monotonic() - began:.0f} s", flush=True)
    if not file.exists():
        return [Result(name, 0.0, must=1.0, unit="run", detail=f"the bench ended with exit status {done.returncode}")]
    found = json.loads(file.read_text())
    return [Result(**{key: value for key, value in row.items() if key != "verdict"}) for row in found]


if __name__ == "__main__":
    sys.exit(main())
