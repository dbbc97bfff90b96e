"""Confusion matrix of an action recognition network, as SVG."""

from __future__ import annotations

from collections.abc import Sequence

FILE = "confusion.svg"
_CELL, _LEFT, _TOP = 34, 120, 110


def draw(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Draw the matrix: true classes with moments in rows, predicted classes in columns, shares of each row as blue."""
    rows = [row for row in range(len(labels)) if sum(confusion[row])]
    width, height = _LEFT + _CELL * len(labels) + 20, _TOP + _CELL * len(rows) + 20
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        '<text x="8" y="16" font-weight="bold">Moments of unseen recordings: done (rows) and recognised (columns)</text>',
    ]
    for column, label in enumerate(labels):
        x = _LEFT + _CELL * (column + 0.5)
        lines.append(f'<text x="{x}" y="{_TOP - 8}" transform="rotate(-50 {x} {_TOP - 8})">{label}</text>')
    for place, row in enumerate(rows):
        y = _TOP + _CELL * place
        lines.append(f'<text x="{_LEFT - 8}" y="{y + _CELL / 2 + 4}" text-anchor="end">{labels[row]}</text>')
        for column, count in enumerate(confusion[row]):
            share = count / sum(confusion[row])
            x = _LEFT + _CELL * column
            edge = ' stroke="#57606a"' if row == column else ' stroke="#d0d7de"'
            lines.append(
                f'<rect x="{x}" y="{y}" width="{_CELL - 2}" height="{_CELL - 2}" fill="#1f6feb" fill-opacity="{share:.2f}"{edge}/>'
            )
            if count:
                colour = "white" if share > 0.5 else "black"
                lines.append(f'<text x="{x + _CELL / 2 - 1}" y="{y + _CELL / 2 + 3}" text-anchor="middle" fill="{colour}">{count}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"
