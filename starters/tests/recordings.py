"""Packages of recorded notes in a cache, as if they had been downloaded and unpacked: files named after keys, and GUS patches."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starters.tests.soundfonts import RATE, Recording
from tests.support.audio import wav


def cached_notes(cache: Path, name: str, preset: str, notes: Mapping[str, Recording], **fields: Any) -> dict[str, Any]:
    """Write an instrument as files named after keys and return its entry of a recipe."""
    folder, entry = _make_package(cache, name)
    for file, recording in notes.items():
        (folder / f"{file}.wav").write_bytes(wav(recording, RATE))
    return {**entry, "preset": preset, **fields}


def cached_patches(cache: Path, name: str, patches: Mapping[str, bytes]) -> dict[str, Any]:
    """Patches by their names below the folder, such as `Tone_000/000_Piano`."""
    folder, entry = _make_package(cache, name)
    for file, content in patches.items():
        path = folder / f"{file}.pat"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return entry


def patch(recording: Recording, hertz: float, loop: tuple[int, int] | None = None) -> bytes:
    """Encode a patch with one 16-bit recording. loop: start and end, in samples."""
    content, (start, end) = (recording * 32767).astype("<i2").tobytes(), loop or (0, 0)
    root, modes = round(hertz * 1000), 1 | 4 * (loop is not None)
    header = b"GF1PATCH110\0ID#000002\0".ljust(129, b"\0") + bytes(63) + b"\0\0\0\0\0\0\1".ljust(47, b"\0")
    fields = struct.pack("<7sBIIIHIII", b"made up", 0, len(content), 2 * start, 2 * end, RATE, 8175, 8_000_000, root)
    return header + fields.ljust(55, b"\0") + bytes([modes]) + bytes(40) + content


def _make_package(cache: Path, name: str) -> tuple[Path, dict[str, Any]]:
    sha256 = f"{sum(name.encode()):064x}"[::-1]
    folder = cache / f"{name}-{sha256[:12]}" / "package"
    folder.mkdir(parents=True)
    return folder, {"npm": {"name": name, "version": "1.0.0", "sha256": sha256}, "folder": "package", "license": "CC0"}
