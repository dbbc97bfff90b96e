"""Words of the code and of its documentation: `python docs/words.py`, a part of `make lint`.

Without arguments it checks all that is not pending (word_rules/pending.py). `python docs/words.py FOLDER…` lists all hits in
folders or files, pending or not and those of ruff's D401 among them, and counts them by rule.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from word_rules import docstrings, names, prose
from word_rules.pending import PENDING
from word_rules.source import Source

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    "models/systems",
    "models/checkpoints",
    "models/layers",
    "models/media",
    "models/people",
    "models/processes",
    "models",
    "kernels",
    "training",
    "starters",
    "opsin",
    "server",
    "benchmarks",
    "examples",
    "tests",
    "tools",
    "docs",
    ".",
)
RULES = names.RULES | docstrings.RULES | prose.RULES
D401 = ["check", "--isolated", "--select", "D401", "--output-format", "concise"]
FIXTURES = "lint.pydocstyle.property-decorators = ['pytest.fixture']"


@dataclass(frozen=True)
class Hit:
    path: PurePosixPath
    line: int
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message} [{self.rule}]"

    @property
    def is_pending(self) -> bool:
        return self.rule in PENDING.get(folder_of(self.path), ())


def folder_of(path: PurePosixPath) -> str:
    """Return the folder of FOLDERS that a file belongs to, `.` for other files."""
    return next(folder for folder in FOLDERS if path.is_relative_to(folder))


@cache
def glossary() -> list[tuple[str, str]]:
    """Return each term with the last column of its row."""
    rows = (line.strip("| ").split(" | ") for line in (ROOT / "docs/glossary.md").read_text().splitlines() if line.startswith("| **"))
    return [(row[0].strip("* "), row[3] if len(row) == 4 else "") for row in rows]


@cache
def replaced_words(folder: str) -> dict[str, str]:
    """Return word → term that stands for it: words in backquotes of the last column, unless it says "not in `FOLDER/`"."""
    return {word: term for term, cell in glossary() if f"not in `{folder}/`" not in cell for word in re.findall(r"`(\w+)`", cell)}


def files() -> list[PurePosixPath]:
    """Return the tracked files, and new ones that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [path for path in map(PurePosixPath, sorted(set(listed.stdout.splitlines()))) if (ROOT / path).is_file()]


def hits_of(source: Source) -> Iterator[Hit]:
    """Check one Python file. Raises SyntaxError."""
    for rule, check in RULES.items():
        for line, message in check(source):
            yield Hit(source.path, line, rule, message)
    if not source.is_test:
        for line, message in names.replaced_words(source, replaced_words(source.path.parts[0])):
            yield Hit(source.path, line, "glossary", message)


def all_hits() -> Iterator[Hit]:
    for term, rows in Counter(term for term, _ in glossary()).items():
        if rows > 1:
            yield Hit(PurePosixPath("docs/glossary.md"), 1, "glossary", f"{term} has {rows} rows")
    sources = []
    for path in files():
        text = (ROOT / path).read_text(encoding="utf-8")
        if path.suffix == ".md":
            for line, message in prose.markdown_words(text):
                yield Hit(path, line, "markdown-word", message)
        else:
            sources.append(Source(path, text))
            yield from hits_of(sources[-1])
    for source, line, message in names.repeated_classes(sources):
        yield Hit(source.path, line, "class-repeated", message)


def ruff_hits(paths: list[PurePosixPath]) -> Iterator[Hit]:
    ruff = Path(sys.executable).with_name("ruff")
    found = subprocess.run([ruff, *D401, "--config", FIXTURES, *map(str, paths)], cwd=ROOT, capture_output=True, text=True)
    for path, line, message in re.findall(r"^(.+?):(\d+):\d+: D401 (.*)$", found.stdout, re.M):
        yield Hit(PurePosixPath(path), int(line), "D401", message)


def main() -> None:
    paths = [PurePosixPath((Path.cwd() / argument).resolve().relative_to(ROOT)) for argument in sys.argv[1:]]
    try:
        hits = [hit for hit in all_hits() if not hit.is_pending or paths]
    except SyntaxError as error:
        sys.exit(f"{error.filename}:{error.lineno}: {error.msg}")
    if paths:
        hits = [hit for hit in hits if any(hit.path.is_relative_to(path) for path in paths)]
        hits = sorted([*hits, *ruff_hits(paths)], key=lambda hit: (hit.path, hit.line))
    print(*hits, sep="\n" if hits else "", file=sys.stdout if paths else sys.stderr, end="\n" if hits else "")
    if paths:
        for rule, count in Counter(hit.rule for hit in hits).most_common():
            print(f"{count:6} {rule}")
    sys.exit(1 if hits else 0)


if __name__ == "__main__":
    main()
