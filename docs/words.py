"""Words of the code and of its documentation: `python docs/words.py`, a part of `make lint`.

`python docs/words.py FOLDER…` lists the hits in folders or files and counts them by rule.
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
from word_rules.source import PythonFile

ROOT = Path(__file__).resolve().parent.parent
RULES = names.RULES | docstrings.RULES | prose.RULES
ACROSS_FILES = {"class-repeated": names.repeated_classes, "alias-repeated": names.repeated_aliases}


@dataclass(frozen=True)
class Hit:
    path: PurePosixPath
    line: int
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message} [{self.rule}]"


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
    """Return the tracked files, and new ones that git does not ignore, without the model cards, which bundles' digests pin."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = map(PurePosixPath, sorted(set(listed.stdout.splitlines())))
    return [path for path in paths if (ROOT / path).is_file() and not path.match("bundles/*/*/README.md")]


def hits_of(source: PythonFile) -> Iterator[Hit]:
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
            sources.append(PythonFile(path, text))
            yield from hits_of(sources[-1])
    for rule, check in ACROSS_FILES.items():
        for source, line, message in check(sources):
            yield Hit(source.path, line, rule, message)


def main() -> None:
    paths = [PurePosixPath((Path.cwd() / argument).resolve().relative_to(ROOT)) for argument in sys.argv[1:]]
    try:
        hits = list(all_hits())
    except SyntaxError as error:
        sys.exit(f"{error.filename}:{error.lineno}: {error.msg}")
    chosen = [hit for hit in hits if not paths or any(hit.path.is_relative_to(path) for path in paths)]
    if chosen:
        print(*sorted(chosen, key=lambda hit: (hit.path, hit.line)), sep="\n")
        sys.exit("\n".join(f"{count:6} {rule}" for rule, count in Counter(hit.rule for hit in chosen).most_common()))


if __name__ == "__main__":
    main()
