"""Logs of scores, a JSON value per line, which stopped evaluations continue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_log(file: Path) -> list[Any]:
    """Read the rows of a log; create a missing one, and remove an incomplete last line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows
