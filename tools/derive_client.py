"""The synchronous client, derived from the asynchronous one: `python -m tools.derive_client` (`make client`) writes it; with `--check`,
a part of `make lint`, it only says which files are out of date.

Each `opsin/async_NAME.py` gives `opsin/NAME.py`: without `async` and `await`, with the names that WORDS has for the others. What the two do
differently, such as threads instead of tasks, has a name of its own in a module that both import.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

OPSIN = Path(__file__).resolve().parents[1] / "opsin"
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
    r"\bfor (\w+) in ([^\n]+):\n +yield \1\n": r"yield from \2\n",
    r"\bmap_tasks\b": "map_threads",
    r" for asyncio\.": ".",
    r"\bshared between tasks\b": "shared between threads",
    r"\A# `make client` derives (\w+\.py) from this file\.": r"# Derived from async_\1 by `make client`: change that file.",
}
"""Regular expression → what stands in its place, one after the other, in code, texts and comments."""
LEFT_OUT = re.compile(r"\b(async|await)\b")
"""Words that are left out, which would make a hole in a sentence."""


class Underivable(Exception):
    """A file that no synchronous client comes from; the message says where and why."""


def sources() -> list[Path]:
    return sorted(OPSIN.glob("async_*.py"))


def target_of(source: Path) -> Path:
    return source.with_name(source.name.removeprefix("async_"))


def derive(source: Path) -> str:
    """Derive the text of the synchronous twin, formatted by ruff. Raises Underivable."""
    text = source.read_text(encoding="utf-8")
    for line, prose in _prose(text, source):
        if hole := LEFT_OUT.search(prose):
            raise Underivable(f"{_name_of(source)}:{line}: `make client` would leave {hole[0]!r} out of this sentence: say it without")
    for asynchronous, synchronous in WORDS.items():
        text = re.sub(asynchronous, synchronous, text)
    for command in (("check", "--fix", "--select", "I,F401,F811"), ("format",)):
        text = _ruff(text, source, *command)
    return text


def differing() -> dict[Path, str]:
    """Return path → expected text of the twins that are out of date. Raises Underivable."""
    texts = {target_of(source): derive(source) for source in sources()}
    return {path: text for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text}


def out_of_date(path: Path) -> str:
    return f"{_name_of(path)} is derived and out of date: change async_{path.name}, not {path.name}, then `make client`"


def _prose(text: str, source: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line of comments, docstrings and other texts, except for examples. Raises Underivable."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise Underivable(f"{_name_of(source)}:{error.lineno}: {error.msg}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _sentences(inspect.cleandoc(node.value), node.lineno)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _sentences(text: str, first: int) -> Iterator[tuple[int, str]]:
    """Yield the lines of paragraphs that are not code, with their numbers. first: number of the text's first line."""
    for paragraph in re.finditer(r"(?:.+\n?)+", text):
        try:
            ast.parse(paragraph[0])
        except SyntaxError:
            yield from enumerate(paragraph[0].splitlines(), first + text.count("\n", 0, paragraph.start()))


def _ruff(text: str, source: Path, *command: str) -> str:
    """Run ruff on a text and return the result. Raises Underivable, with ruff's words, if it cannot correct the text."""
    arguments = [sys.executable, "-m", "ruff", *command, "--quiet", "--stdin-filename", str(target_of(source)), "-"]
    ended = subprocess.run(arguments, input=text, check=False, capture_output=True, encoding="utf-8", cwd=OPSIN)
    if ended.returncode:
        raise Underivable(f"{_name_of(source)}: what is derived from it is refused by ruff {command[0]}:\n{ended.stderr.strip()}")
    return ended.stdout


def _name_of(path: Path) -> str:
    return f"opsin/{path.name}"


def main(arguments: list[str]) -> int:
    try:
        changed = differing()
    except Underivable as error:
        print(error, file=sys.stderr)
        return 1
    if arguments == ["--check"]:
        print(*map(out_of_date, changed), sep="\n", end="\n" if changed else "", file=sys.stderr)
        return 1 if changed else 0
    for path, text in changed.items():
        path.write_text(text, encoding="utf-8")
        print(_name_of(path))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
