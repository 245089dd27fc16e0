"""`python -m bench.tiering.picture`: draw docs/concepts/tiering.svg. Plain SVG text, measured curves, no dependency.

Left: how a score rises with reads and what it stands for later. Right: hit ratio against the size of the fast tier,
on a seeded `drift` workload, with and without the RAM cache, against an inline S3-FIFO of the same size.
"""

from __future__ import annotations

from pathlib import Path

from bench.tiering.bars import POLICY, s3fifo_ratio
from bench.tiering.synthetic import generate
from tierstore.policy.heat import HeatTable, pack_delta
from tierstore.policy.simulate import Fleet, replay

TARGET = Path(__file__).resolve().parents[2] / "docs" / "concepts" / "tiering.svg"
WIDTH, HEIGHT, MARGIN = 380, 250, 48
SHARES = (0.02, 0.05, 0.1, 0.2, 0.3)
COLOURS = ("#1b6ca8", "#d1495b", "#66a182")

Line = tuple[str, list[tuple[float, float]]]


def heat_lines() -> list[Line]:
    """Reads per hour of two chunks over eight hours: one read steadily, one by a crowd in the third hour."""
    heat = HeatTable(half_life_seconds=3600)
    steady, crowd = bytes(15) + b"\x01", bytes(15) + b"\x02"
    lines: list[Line] = [("10 reads an hour", []), ("120 reads in one hour", [])]
    for minute in range(0, 8 * 60 + 1, 2):
        at = minute * 60.0
        reads = [(steady, 1 / 3)] + ([(crowd, 4.0)] if 120 <= minute < 180 else [])
        heat.merge(pack_delta(reads), at)
        for (_, points), chunk in zip(lines, (steady, crowd), strict=True):
            points.append((minute / 60, heat.heat_per_hour(chunk, at)))
    return lines


def curve_lines() -> list[Line]:
    """Share of reads served fast, for fast tiers of several sizes."""
    trace = generate("drift", seed=1, objects=4000, requests=60_000, span=4 * 3600.0).trace
    footprint = trace.footprint_bytes
    lines: list[Line] = [("promoter + 1 % mem", []), ("promoter alone", []), ("inline S3-FIFO", [])]
    for share in SHARES:
        fast = int(footprint * share)
        for (_, points), mem in zip(lines, (footprint // 100, 0), strict=False):
            points.append((100 * share, replay(trace, POLICY, Fleet({"ssd": fast}, mem)).fast_ratio))
        lines[2][1].append((100 * share, s3fifo_ratio(trace, fast)[0]))
    return lines


def panel(left: int, title: str, x_name: str, y_name: str, lines: list[Line]) -> str:
    """One diagram of the picture: axes, three marks on each, lines with their names."""
    x_max = max(x for _, points in lines for x, _ in points)
    y_max = 1.08 * max(y for _, points in lines for _, y in points)
    wide, high = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN

    def place(x: float, y: float) -> str:
        return f"{left + MARGIN + wide * x / x_max:.1f},{HEIGHT - MARGIN - high * y / y_max:.1f}"

    bottom, start = HEIGHT - MARGIN, left + MARGIN
    parts = [
        f'<text x="{left + WIDTH / 2}" y="20" text-anchor="middle" font-weight="bold">{title}</text>',
        f'<path d="M{start},{MARGIN} V{bottom} H{start + wide}" fill="none" stroke="#444"/>',
        f'<text x="{left + WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">{x_name}</text>',
        f'<text x="{start - 34}" y="{MARGIN - 10}">{y_name}</text>',
    ]
    for part in (0.0, 0.5, 1.0):
        x, y = place(part * x_max, part * y_max).split(",")
        parts.append(f'<text x="{x}" y="{bottom + 15}" text-anchor="middle">{part * x_max:.3g}</text>')
        parts.append(f'<text x="{start - 5}" y="{y}" text-anchor="end">{part * y_max:.2g}</text>')
    for n, (name, points) in enumerate(lines):
        path = " ".join(place(x, y) for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[n]}" stroke-width="2"/>')
        parts.append(f'<text x="{start + wide - 4}" y="{MARGIN + 14 + 15 * n + (90 if x_max > 10 else 0)}" '
                     f'text-anchor="end" fill="{COLOURS[n]}">{name}</text>')  # fmt: skip
    return "\n".join(parts)


def draw() -> str:
    """The whole picture."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11">\n<rect width="{2 * WIDTH}" height="{HEIGHT}" fill="white"/>\n'
        + panel(0, "Heat of two chunks (half-life 1 h)", "hours", "heat per hour", heat_lines())
        + "\n"
        + panel(WIDTH, "Reads served fast", "fast tier, % of footprint", "share", curve_lines())
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
    print(TARGET)
