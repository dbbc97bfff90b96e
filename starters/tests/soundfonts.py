"""SoundFonts of made-up instruments, and a cache that holds them and the installed tinysoundfont as if they had been downloaded."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

RATE = 16_000
ROOT_KEY = 60
RENDERER = {"name": "tinysoundfont", "version": "0.3.7", "sha256": "0" * 64}

Recording = NDArray[np.float32]
"""(samples,), from -1 to 1, of the note `ROOT_KEY`."""


def tone(hertz: float, harmonics: int, seconds: float = 1.0) -> Recording:
    time = np.arange(int(seconds * RATE)) / RATE
    waves = [np.sin(2 * np.pi * hertz * number * time) / number for number in range(1, harmonics + 1)]
    return (0.5 * np.sum(waves, axis=0) / np.abs(np.sum(waves, axis=0)).max()).astype(np.float32)


def hiss(seconds: float = 1.0) -> Recording:
    return np.random.default_rng(0).uniform(-0.5, 0.5, int(seconds * RATE)).astype(np.float32)


def write_font(file: Path, presets: Mapping[tuple[int, int], Recording]) -> None:
    """Encode a SoundFont 2 with a recording for each bank and program, played over all keys."""
    samples, headers, at = b"", b"", 0
    for number, recording in enumerate(presets.values()):
        content = (recording * 32767).astype("<i2").tobytes()
        end = at + len(recording)
        headers += struct.pack("<20s5IBbHH", f"sample {number}".encode(), at, end, at, end, RATE, ROOT_KEY, 0, 0, 1)
        samples += content + bytes(2 * 46)  # silence after each, as the format asks
        at = end + 46
    headers += struct.pack("<20s5IBbHH", b"EOS", 0, 0, 0, 0, 0, 0, 0, 0, 0)
    rows = list(presets)
    count = len(rows)
    pdta = {
        b"phdr": b"".join(struct.pack("<20sHHHIII", f"p{n}".encode(), program, bank, n, 0, 0, 0) for n, (bank, program) in enumerate(rows))
        + struct.pack("<20sHHHIII", b"EOP", 0, 0, count, 0, 0, 0),
        b"pbag": b"".join(struct.pack("<HH", n, 0) for n in range(count + 1)),
        b"pmod": bytes(10),
        b"pgen": b"".join(struct.pack("<HH", 41, n) for n in range(count)) + bytes(4),  # 41: the instrument
        b"inst": b"".join(struct.pack("<20sH", f"i{n}".encode(), n) for n in range(count)) + struct.pack("<20sH", b"EOI", count),
        b"ibag": b"".join(struct.pack("<HH", n, 0) for n in range(count + 1)),
        b"imod": bytes(10),
        b"igen": b"".join(struct.pack("<HH", 53, n) for n in range(count)) + bytes(4),  # 53: the sample
        b"shdr": headers,
    }
    info = _chunk(b"ifil", struct.pack("<HH", 2, 1)) + _chunk(b"isng", b"EMU8000\0") + _chunk(b"INAM", b"made up\0")
    lists = [
        _chunk(b"LIST", b"INFO" + info),
        _chunk(b"LIST", b"sdta" + _chunk(b"smpl", samples)),
        _chunk(b"LIST", b"pdta" + b"".join(_chunk(name, content) for name, content in pdta.items())),
    ]
    file.write_bytes(_chunk(b"RIFF", b"sfbk" + b"".join(lists)))


def cached_renderer(cache: Path) -> dict[str, str]:
    """How a recipe names the installed package; it lies in the cache as its unpacked wheel would."""
    found = find_spec("tinysoundfont")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("tinysoundfont is not installed: it has no wheel for this Python")
    folder = cache / f"tinysoundfont-{RENDERER['sha256'][:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "tinysoundfont"
    if not link.exists():
        link.symlink_to(found.submodule_search_locations[0])
    return RENDERER


def cached_font(cache: Path, name: str, presets: Mapping[tuple[int, int], Recording], **fields: Any) -> dict[str, Any]:
    """Write a font as an unpacked Debian package and return its entry of a recipe."""
    sha256 = f"{sum(name.encode()):064x}"[::-1]
    folder = cache / f"{name}-{sha256[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    write_font(folder / "font.sf2", presets)
    return {"package": {"name": name, "version": "1.0-1", "sha256": sha256}, "file": "font.sf2", "license": "CC0", **fields}


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
