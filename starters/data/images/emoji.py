"""Emoji of several artists, rendered once and cached. Flags and skin tones are left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.arrays import UInt8Array
from starters.data.images.iconify import Style, icons, rasterise
from training.checkpoint import replacing, write_atomically

_LEFT_OUT = frozenset({"flag", "flags", "tone", "skin", *(f"tone{number}" for number in range(1, 6))})
"""Words of names that are left out: flags, and skin tones, which hardly change a drawing."""


def _is_left_out(name: str) -> bool:
    return not _LEFT_OUT.isdisjoint(name.split("-"))


def build(styles: Sequence[Style], side: int, cache: Path) -> tuple[tuple[str, ...], UInt8Array]:
    """Return names and drawings (N, side, side, 4), mapped; obtain and render them if `cache` lacks them. Raises DataError."""
    settings = json.dumps([side, *((style.name, style.package.sha256) for style in styles)])
    base = cache / f"emoji-{hashlib.sha256(settings.encode()).hexdigest()[:16]}"
    drawings, index = base.with_suffix(".rgba"), base.with_suffix(".json")
    if not index.is_file():
        names: list[str] = []
        with replacing(drawings) as partial, partial.open("wb") as target:
            for style in styles:
                for name, svg in icons(style, cache).items():
                    if not _is_left_out(name):
                        target.write(np.asarray(rasterise(svg, side)).tobytes())
                        names.append(f"{style.name}/{name}")
        write_atomically(index, json.dumps(names))
    stored = tuple(json.loads(index.read_text(encoding="utf-8")))
    return stored, np.memmap(drawings, np.uint8, "r").reshape(-1, side, side, 4)
