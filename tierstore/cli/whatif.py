"""`tierstore admin policy simulate`: the table of a comparison, and replays of trace files here.

Owns how a comparison is shown; the replay is policy/whatif.py, for recorded history in the service, for a trace file in
this process (so a large file need not travel).
"""

from __future__ import annotations

import gzip
import io
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tierstore.cli.output import print_table, say
from tierstore.errors import ConfigError, RequestError
from tierstore.names import TIERS
from tierstore.policy.parser import parse
from tierstore.policy.simulate import SPEEDS, Fleet, Speed
from tierstore.policy.trace import Trace, parse_csv
from tierstore.policy.whatif import compare
from tierstore.units import format_size

TRACE_BYTES_MAX: Final = 4 << 30


def read_trace(path: Path) -> Trace:
    """A trace file, CSV or gzipped CSV. Raises ConfigError, RequestError(code="bad-trace")."""
    try:
        if path.stat().st_size > TRACE_BYTES_MAX:
            raise ConfigError(f"{path} is larger than {format_size(TRACE_BYTES_MAX)}")
        with path.open("rb") as raw:
            is_gzip = raw.read(2) == b"\x1f\x8b"
        with (gzip.open(path, "rb") if is_gzip else path.open("rb")) as file:
            return parse_csv(io.TextIOWrapper(file, "utf-8", newline=""))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def fleet_of(tiers: list[dict[str, Any]], tiering: dict[str, Any], footprint_bytes: int) -> Fleet:
    """Today's tiers, from /v1/admin/tiers and /v1/admin/tiering. A cluster without a fast tier is taken to have an ssd
    of a tenth of the footprint."""
    by_name = {row["tier"]: row for row in tiers}
    order = sorted(by_name, key=lambda tier: TIERS.index(tier) if tier in TIERS else len(TIERS))
    if not order:
        raise RequestError("the cluster has no devices yet", code="not-ready")
    residents = {row["tier"]: row["resident_bytes"] for row in tiering.get("tiers", [])}
    fast = {tier: by_name[tier]["capacity_bytes"] for tier in order[:-1]} or {"ssd": footprint_bytes // 10}
    # as metadata counts it: what makes room by itself takes none
    extra = {
        tier: residents.get(tier, 0) + row.get("trash_bytes", 0) + row.get("garbage_bytes", 0)
        for tier, row in by_name.items()
    }
    taken = {tier: max(0, by_name[tier]["used_bytes"] - extra[tier]) for tier in order[:-1]}
    speeds = dict(SPEEDS)
    for tier, row in by_name.items():
        typical = SPEEDS.get(tier, SPEEDS["hdd"])
        speeds[tier] = Speed(
            row["read_ms"] / 1000 or typical.seconds, row["read_bytes_per_second"] or typical.bytes_per_second
        )
    return Fleet(
        fast, int(tiering.get("mem_capacity_bytes", 0)), order[-1], speeds,
        chunk_bytes=int(tiering.get("chunk_bytes", 0)),
        rate_scale=max(1, min((by_name[tier]["devices"] for tier in order[:-1]), default=1)), taken=taken,
    )  # fmt: skip


def replay_here(trace: Trace, current: dict[str, Any], proposed: dict[str, Any], fleet: Fleet) -> dict[str, Any]:
    """The answer that the service gives, for a trace file. Raises RequestError(code="bad-policy")."""
    fleet = replace(fleet, is_timed=bool((trace.time % 1).any()))      # whole seconds cannot tell who waited
    answer = compare(trace, parse(current), parse(proposed), fleet)
    return {**answer, "requests": len(trace)}


def show(answer: dict[str, Any]) -> None:
    """The comparison as tables."""
    current, proposed = answer["current"], answer["proposed"]
    rows: list[list[Any]] = []
    for name in ("hit_ratio", "byte_hit_ratio"):
        for tier in current[name]:
            rows.append([f"{name} {tier}", f"{current[name][tier]:.4f}", f"{proposed[name].get(tier, 0):.4f}"])
    for name, value in current.items():
        if isinstance(value, int | float):
            is_bytes = name.startswith(("bytes_moved_per_day", "ssd_wear"))
            shown = [format_size(v) if is_bytes else f"{v:,.4g}" for v in (value, proposed[name])]
            rows.append([name, *shown])
    print_table(["", "current", "proposed"], rows, right=["current", "proposed"])
    if answer.get("prefixes"):
        say()
        lines = [
            [p["prefix"], p["gets"], f"{p['current']:.4f}", f"{p['proposed']:.4f}", f"{p['gets_gained']:+d}"]
            for p in answer["prefixes"]
        ]
        head = ["prefix", "gets", "fast now", "fast then", "gets gained"]
        print_table(head, lines, right=head[1:])
    if "curve" in proposed:
        say()
        say(f"hit ratio against the size of the fast tier (sample {proposed['curve']['sample_share']:.3g}, "
            f"error {proposed['curve']['error']:.4f})")  # fmt: skip
        pairs = zip(current["curve"]["points"], proposed["curve"]["points"], strict=True)
        print_table(
            ["fast tier", "current", "proposed"],
            [[format_size(a["fast_bytes"]), f"{a['hit_ratio']:.4f}", f"{b['hit_ratio']:.4f}"] for a, b in pairs],
            right=["fast tier", "current", "proposed"],
        )
