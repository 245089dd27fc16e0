"""`make bench`: every bench with a bar, one after another, each in a process of its own. Exit 1 if one fails.

    python -m bench [--only NAME ...]        names: those of the modules

Each prints its table (must, aim, measured) and the CPU beside it; ratios are taken in one run, both sides in turns. The
tiering bench has a target of its own (`make bench-tiering`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

BENCHES = ("objectd_get", "objectd_put", "objectd_slow", "metadata_names")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the benches that have bars.")
    parser.add_argument("--only", nargs="+", choices=BENCHES, default=BENCHES, metavar="NAME")
    options = parser.parse_args()
    failed = []
    for name in options.only:
        print(f"\n== {name}", flush=True)
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False)
        print(f"-- {name}: {time.monotonic() - began:.0f} s, exit {done.returncode}", flush=True)
        if done.returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
