"""The hit-ratio curves of a comparison as a picture: SVG by hand, PNG by Pillow (the extra `plot`).

Owns the drawing: the same shapes for both, laid out once. Writes one file.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from xml.sax.saxutils import escape

from tierstore.errors import ConfigError
from tierstore.units import format_size

_WIDTH, _HEIGHT, _LEFT, _TOP = 640, 400, 70, 40
_COLOURS: Final = {"current": "#888888", "proposed": "#1f77b4"}
#: Pixels of a PNG for each unit of the layout.
_SCALE: Final = 2

Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True)
class _Line:
    points: tuple[tuple[float, float], ...]
    colour: str
    width: int = 1


@dataclass(frozen=True, slots=True)
class _Text:
    x: float
    y: float                      # of the base line
    text: str
    size: int = 12
    anchor: Anchor = "start"


def save(path: Path, answer: dict[str, Any]) -> None:
    """Draw the curves into PATH.svg or PATH.png. Raises ConfigError (another ending, no Pillow, disk)."""
    if path.suffix not in (".svg", ".png"):
        raise ConfigError(f"{path}: the name ends in .svg or .png, which says what is drawn")
    try:
        if path.suffix == ".svg":
            path.write_text(svg(answer), encoding="utf-8")
        else:
            _png(path, answer)
    except OSError as error:
        raise ConfigError(f"{path}: {error}") from None


def svg(answer: dict[str, Any]) -> str:
    """The picture as SVG text."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for shape in _shapes(answer):
        if isinstance(shape, _Line):
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{shape.colour}" stroke-width="{shape.width}"/>'
            )
        else:
            parts.append(
                f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size}" text-anchor="{shape.anchor}">'
                f"{escape(shape.text)}</text>"
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _png(path: Path, answer: dict[str, Any]) -> None:
    try:
        image_module = importlib.import_module("PIL.Image")
        draw_module, font_module = importlib.import_module("PIL.ImageDraw"), importlib.import_module("PIL.ImageFont")
    except ImportError:
        raise ConfigError(
            "PNG needs Pillow: pip install 'tierstore[plot]', or take a name that ends in .svg"
        ) from None
    image = image_module.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), "white")
    draw = draw_module.Draw(image)
    for shape in _shapes(answer):
        if isinstance(shape, _Line):
            points = [(x * _SCALE, y * _SCALE) for x, y in shape.points]
            draw.line(points, fill=shape.colour, width=shape.width * _SCALE, joint="curve")
        else:
            anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
            font = font_module.load_default(shape.size * _SCALE)
            draw.text((shape.x * _SCALE, shape.y * _SCALE), shape.text, fill="black", font=font, anchor=anchor)
    image.save(path, "PNG")


def _shapes(answer: dict[str, Any]) -> Iterator[_Line | _Text]:
    curves = {name: answer[name]["curve"]["points"] for name in ("current", "proposed")}
    largest = max((p["fast_bytes"] for points in curves.values() for p in points), default=1) or 1
    wide, high = _WIDTH - _LEFT - 20, _HEIGHT - _TOP - 60

    def at(point: dict[str, Any]) -> tuple[float, float]:
        return _LEFT + wide * point["fast_bytes"] / largest, _TOP + high * (1 - point["hit_ratio"])

    yield _Text(_LEFT, 22, "Reads served faster than the slow tier", 14)
    for n in range(6):
        y = _TOP + high * (1 - n / 5)
        yield _Line(((_LEFT, y), (_LEFT + wide, y)), "#dddddd")
        yield _Text(_LEFT - 8, y + 4, f"{n * 20} %", anchor="end")
    for n in range(5):
        yield _Text(_LEFT + wide * n / 4, _TOP + high + 18, format_size(int(largest * n / 4)), anchor="middle")
    for n, (name, points) in enumerate(curves.items()):
        if len(points) > 1:
            yield _Line(tuple(map(at, points)), _COLOURS[name], 2)
        x = _LEFT + n * 120
        yield _Line(((x, _HEIGHT - 20), (x + 14, _HEIGHT - 20)), _COLOURS[name], 4)
        yield _Text(x + 20, _HEIGHT - 15, name)
    yield _Text(_LEFT + wide, _HEIGHT - 15, "size of the fast tier", anchor="end")
