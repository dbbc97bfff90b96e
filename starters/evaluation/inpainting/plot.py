"""Plot of quality over denoising steps, as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

FILE = "steps.svg"
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 360, 60, 180, 40, 40
_COLOURS = {"uniform": "#1f6feb", "logsnr": "#bf3989", "calm": "#1a7f37"}
_NAMES = {"uniform": "uniform steps", "logsnr": "steps even in log-SNR", "calm": "uniform, less noise"}


def draw(quality: Mapping[str, Any]) -> str:
    """Draw perceptual distance with two standard errors over the number of steps; other methods are horizontal lines."""
    first = quality["inpainting"][0]["holes"]
    rows = [row for row in quality["inpainting"] if row["holes"] == first]
    curves = {spacing: _curve(rows, spacing) for spacing in _COLOURS if any(row["key"].split()[0] == spacing for row in rows)}
    levels = [row for row in rows if row["key"].split()[0] not in _COLOURS]
    highest = max(row["perceptual"]["value"] + 2 * row["perceptual"]["standard_error"] for row in rows)
    max_steps = max(steps for curve in curves.values() for steps, _ in curve)

    def x(steps: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * math.log(steps) / (math.log(max_steps) or 1)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * value / (highest or 1)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-weight="bold">Perceptual distance over denoising steps ({first}; lower is better; ± 2 SE)</text>',
        f'<line x1="{_LEFT}" y1="{y(0):.1f}" x2="{_WIDTH - _RIGHT}" y2="{y(0):.1f}" stroke="grey"/>',
        f'<line x1="{_LEFT}" y1="{_TOP}" x2="{_LEFT}" y2="{y(0):.1f}" stroke="grey"/>',
        f'<text x="{_LEFT - 6}" y="{_TOP + 4}" text-anchor="end">{highest:.3f}</text>',
        f'<text x="{_LEFT - 6}" y="{y(0) + 4:.1f}" text-anchor="end">0</text>',
    ]
    for place, row in zip(_without_overlap([y(row["perceptual"]["value"]) for row in levels]), levels, strict=True):
        level = y(row["perceptual"]["value"])
        lines += [
            f'<line x1="{_LEFT}" y1="{level:.1f}" x2="{_WIDTH - _RIGHT}" y2="{level:.1f}" stroke="grey" stroke-dasharray="4 3"/>',
            f'<text x="{_WIDTH - _RIGHT + 6}" y="{place + 4:.1f}">{row["name"]}</text>',
        ]
    for number, (spacing, curve) in enumerate(curves.items()):
        lines += _polyline(curve, x, y, _COLOURS[spacing])
        lines.append(f'<text x="{_LEFT + 160 * number}" y="{_HEIGHT - 6}" fill="{_COLOURS[spacing]}">{_NAMES[spacing]}</text>')
    lines += [
        f'<text x="{x(steps):.1f}" y="{y(0) + 16:.1f}" text-anchor="middle">{steps}</text>'
        for steps in sorted({steps for curve in curves.values() for steps, _ in curve})
    ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _curve(rows: Sequence[Mapping[str, Any]], spacing: str) -> list[tuple[int, Mapping[str, float]]]:
    """Return steps and perceptual distance; a single step is the same for every spacing."""
    named = [(row["key"].split(), row["perceptual"]) for row in rows]
    return sorted(
        ((int(key[1]), value) for key, value in named if key[0] == spacing or (key[0] == "uniform" and key[1] == "1")),
        key=lambda point: point[0],
    )


def _polyline(curve: Sequence[tuple[int, Mapping[str, float]]], x: Any, y: Any, colour: str) -> Iterator[str]:
    points = " ".join(f"{x(steps):.1f},{y(value['value']):.1f}" for steps, value in curve)
    yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    for steps, value in curve:
        low, high = (y(value["value"] + sign * 2 * value["standard_error"]) for sign in (-1, 1))
        yield f'<line x1="{x(steps):.1f}" y1="{low:.1f}" x2="{x(steps):.1f}" y2="{high:.1f}" stroke="{colour}"/>'
        yield f'<circle cx="{x(steps):.1f}" cy="{y(value["value"]):.1f}" r="3" fill="{colour}"/>'


def _without_overlap(places: Sequence[float], gap: float = 14) -> list[float]:
    """Move the heights of labels down so that they do not overlap."""
    moved: dict[int, float] = {}
    last = -math.inf
    for number in sorted(range(len(places)), key=lambda number: places[number]):
        last = max(places[number], last + gap)
        moved[number] = last
    return [moved[number] for number in range(len(places))]
