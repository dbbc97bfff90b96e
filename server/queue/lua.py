"""The queue's Lua scripts, by file name. `common.lua` stands before each of them.

redis-py's Script objects send EVALSHA and load the script again when Redis has forgotten it (restart, fail-over).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "scripts"
REFUSED_WHEN_FULL = {"enqueue"}
"""All others free memory or keep the service alive, so they run even if Redis is above its maxmemory."""


@cache
def source(name: str) -> str:
    shebang = "#!lua" if name in REFUSED_WHEN_FULL else "#!lua flags=allow-oom"
    return f"{shebang}\n{(FOLDER / 'common.lua').read_text()}\n{(FOLDER / f'{name}.lua').read_text()}"
