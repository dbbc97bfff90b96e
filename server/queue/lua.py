"""The queue's Lua scripts, by file name. Readers and writers of rows (rows.py) and what they share (`parts/`) stand before each of them.

Whoever runs one sends EVALSHA, and loads the script again when Redis has forgotten it (restart, fail-over).
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

from server.queue import rows

FOLDER = Path(__file__).parent / "scripts"
REFUSED_WHEN_FULL = {"enqueue", "enqueue_record", "keep_scene"}
"""All others free memory or keep the service alive, so they run even if Redis is above its maxmemory."""


@cache
def source(name: str) -> str:
    """With the parts that its first line asks for: what a script does not need would be compiled and run at each of its calls."""
    script = _read(name)
    asked = re.match(r"-- needs: (.*)", script)
    text = "\n".join([_read("parts/base"), *(_read(f"parts/{part}") for part in (asked[1].split() if asked else ())), script])
    shebang = "#!lua" if name in REFUSED_WHEN_FULL else "#!lua flags=allow-oom"
    return "\n".join((shebang, rows.as_lua(text), text))


@cache
def sha(name: str) -> str:
    """What EVALSHA calls it."""
    return hashlib.sha1(source(name).encode(), usedforsecurity=False).hexdigest()


def _read(name: str) -> str:
    return (FOLDER / f"{name}.lua").read_text()
