"""Plot of the loss of each phase, an SVG file in the bundle's folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from training.run_logger import read_log

FILE = "training.svg"
_WIDTH, _HEIGHT, _LEFT, _TOP = 640, 220, 60, 30
_POINTS = 400


def write(folder: Path, runs: Path, phases: Sequence[str]) -> Path:
    """Draw the losses of the phases that have a log."""
    logs = {name: [row["loss"] for row in read_log(runs / name)] for name in phases}
    charts = [
        chart for number, (name, losses) in enumerate((n, ls) for n, ls in logs.items() if ls) for chart in _chart(name, losses, number)
    ]
    height = max(1, sum(bool(losses) for losses in logs.values())) * _HEIGHT
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">'
    file = folder / FILE
    file.write_text(
        "\n".join([head, f'<rect width="{_WIDTH}" height="{height}" fill="white"/>', *charts, "</svg>"]) + "\n", encoding="utf-8"
    )
    return file


def _chart(name: str, losses: Sequence[float], number: int) -> list[str]:
    """Losses over steps, averaged over so many that the curve has at most 400 points."""
    width = math.ceil(len(losses) / _POINTS)
    means = [sum(losses[start : start + width]) / len(losses[start : start + width]) for start in range(0, len(losses), width)]
    low, high = min(means), max(means)
    top, bottom, right = number * _HEIGHT + _TOP, (number + 1) * _HEIGHT - _TOP, _WIDTH - 20
    x = [_LEFT + (right - _LEFT) * position / max(1, len(means) - 1) for position in range(len(means))]
    y = [bottom - (bottom - top) * (mean - low) / ((high - low) or 1) for mean in means]
    curve = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return [
        f'<text x="{_LEFT}" y="{top - 10}" font-weight="bold">{name}: loss {losses[-1]:.4f} after {len(losses):,} steps</text>',
        f'<line x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}" stroke="grey"/>',
        f'<line x1="{_LEFT}" y1="{top}" x2="{_LEFT}" y2="{bottom}" stroke="grey"/>',
        f'<text x="{_LEFT - 6}" y="{top + 4}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{_LEFT - 6}" y="{bottom + 4}" text-anchor="end">{low:.3g}</text>',
        f'<text x="{right}" y="{bottom + 16}" text-anchor="end">step {len(losses):,}</text>',
        f'<polyline points="{curve}" fill="none" stroke="#1f6feb" stroke-width="1.5"/>',
    ]
