"""`python -m bench.tiering`: print the bars of the tiering policy; exit 1 when a must is not met.

`--only twitter52|fb2010|synthetic|cost` leaves out the rest of the table (not of the work before it)."""

from __future__ import annotations

import argparse
import sys

from bench.tiering.bars import measure


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tiering", description=__doc__)
    parser.add_argument("--only", default="", help="rows whose subject begins with this")
    chosen = parser.parse_args()
    print(f"{'':20} {'':38} {'must':>9} {'aim':>7} {'measured':>9}")
    failed = 0
    for bar in measure():
        if not bar.subject.startswith(chosen.only):
            continue
        failed += not bar.is_met
        sign = "<=" if bar.at_most else ">="
        aim = "" if bar.aim is None else f"{bar.aim:g}"
        verdict = "MISSED" if not bar.is_met else "" if bar.aim is None or not bar.is_aim_met else "aim"
        row = f"{bar.subject:20} {bar.what:38} {sign} {bar.must:<6g} {aim:>7} {bar.measured:9.4f} {verdict:6}"
        print(f"{row} {bar.note}".rstrip(), flush=True)
    print("every must is met" if not failed else f"{failed} missed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
