"""The synchronous client, derived from the asynchronous one: `python -m tests.opsin.synchronous` (`make client`) writes it.

Each `opsin/async_NAME.py` gives `opsin/NAME.py`: without `async` and `await`, with the names that WORDS has for the others. What the two do
differently, such as threads in place of tasks, stands behind a name of its own in a module that both import.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

OPSIN = Path(__file__).resolve().parents[2] / "opsin"
WORDS = {
    r"\basync (def|for|with)\b": r"\1",
    r"\bawait ": "",
    r"\basyncio\.to_thread\((\w+), ": r"\1(",
    r"\bimport asyncio\n": "import time\n",
    r"\basyncio\.sleep\b": "time.sleep",
    r"\bAwaitable\[([^\[\]]+)\]": r"\1",
    r"\bAwaitable, ": "",
    r"\b([Aa]n) `Async": r"a `",
    r"\bAsync([A-Z])": r"\1",
    r"\basync_(\w+)": r"\1",
    r"\b__a(enter|exit)__\b": r"__\1__",
    r"\ba(close|read|iter_text)\(": r"\1(",
    r"\bmap_tasks\b": "map_threads",
    r" for asyncio\.": ".",
    r"\bshared between tasks\b": "shared between threads",
    r"\A# `make client` derives (\w+\.py) from this file\.": r"# Derived from async_\1 by `make client`: change that file.",
}
"""Regular expression → what stands in its place, one after the other."""


def sources() -> list[Path]:
    return sorted(OPSIN.glob("async_*.py"))


def target_of(source: Path) -> Path:
    return source.with_name(source.name.removeprefix("async_"))


def derived(source: Path) -> str:
    """The text of the synchronous twin, as ruff formats it."""
    text = source.read_text(encoding="utf-8")
    for asynchronous, synchronous in WORDS.items():
        text = re.sub(asynchronous, synchronous, text)
    for command in (("check", "--fix", "--select", "I,F401,F811"), ("format",)):
        text = _ruff(text, target_of(source), *command)
    return text


def _ruff(text: str, name: Path, *command: str) -> str:
    """Raises CalledProcessError for what ruff cannot mend."""
    arguments = [sys.executable, "-m", "ruff", *command, "--quiet", "--stdin-filename", str(name), "-"]
    return subprocess.run(arguments, input=text, check=True, capture_output=True, encoding="utf-8", cwd=OPSIN).stdout


def write() -> Iterator[Path]:
    for source in sources():
        target_of(source).write_text(derived(source), encoding="utf-8")
        yield target_of(source)


if __name__ == "__main__":
    for written in write():
        print(written)
