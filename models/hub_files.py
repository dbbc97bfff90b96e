"""Names of a model's files on hubs. Imports no torch: downloads need none of the engine's libraries."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files with the weights, or with an index of such files; the first that exists counts."""
MAX_JSON_BYTES = 64 << 20
PLAIN_NAME = re.compile(r"\w[\w.-]{0,199}", re.ASCII)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError."""
    try:
        if file.exists() and not file.is_file():
            raise ValueError("it is not an ordinary file")  # a pipe or a device may be read for ever
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"it is larger than {MAX_JSON_BYTES >> 20} MiB")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: holds a {type(content).__name__} where an object is needed")
    return content


def shards(index: Path) -> list[str]:
    """Return the names of the files among which an index divides the weights. Raises ValueError."""
    table = read_json(index).get("weight_map")
    if not isinstance(table, Mapping) or not table:
        raise ValueError(f"{index}: weight_map must map the names of tensors to files")
    names = sorted({str(name) for name in table.values()})
    for name in names:
        if not PLAIN_NAME.fullmatch(name):
            raise ValueError(f"{index}: weight_map: {name[:200]!r} is not a name of a file in its folder")
    return names
