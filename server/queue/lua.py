"""The queue's Lua scripts, by file name. The names of the rows' fields and `common.lua` stand before each of them.

redis-py's Script objects send EVALSHA and load the script again when Redis has forgotten it (restart, fail-over).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from server.queue import rows

FOLDER = Path(__file__).parent / "scripts"
REFUSED_WHEN_FULL = {"enqueue"}
"""All others free memory or keep the service alive, so they run even if Redis is above its maxmemory."""


@cache
def source(name: str) -> str:
    shebang = "#!lua" if name in REFUSED_WHEN_FULL else "#!lua flags=allow-oom"
    return "\n".join((shebang, rows.as_lua(), (FOLDER / "common.lua").read_text(), (FOLDER / f"{name}.lua").read_text()))
