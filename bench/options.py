"""The options that every bench has, its directory, and how it ends: a table, JSON, an exit status."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.result import Result, print_results


def bench_main(
    description: str, names: Sequence[str], run: Callable[[Path, argparse.Namespace], list[Result]], *,
    rounds: int, seconds: float, more: Callable[[argparse.ArgumentParser], object] | None = None,
) -> None:  # fmt: skip
    """Parse, run in a fresh directory, print, write JSON, exit 1 when a must was missed. options.rows is a list."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rows", default=",".join(names), help="of " + ",".join(names))
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seconds", type=float, default=seconds, help="length of a window")
    parser.add_argument("--json", default="", help="write the results there too")
    parser.add_argument("--directory", default="", help="where the data lies; default: a temporary directory")
    if more is not None:
        more(parser)
    options = parser.parse_args()
    options.rows = options.rows.split(",")
    unknown = set(options.rows) - set(names)
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}; rows are {', '.join(names)}")
    root = Path(tempfile.mkdtemp(prefix="tierstore-bench-", dir=options.directory or None))
    try:
        results = run(root, options)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print_results(results)
    if options.json:
        Path(options.json).write_text(json.dumps([result.as_json() for result in results], indent=1))
    sys.exit(any(result.is_missed for result in results))
