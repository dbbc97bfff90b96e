"""Words of the code in `server/`: `python docs/words.py`, a part of `make lint`. docs/glossary.md is the list that it reads.

It refuses docstrings that open with a word of OPENINGS, since they are no sentences; names of classes, functions and modules with a word
that the glossary replaces; and names of classes that stand for two things.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GLOSSARY = ROOT / "docs" / "glossary.md"
OPENINGS = ("Of", "What", "Who", "Whose", "That")
NAMES = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def replaced_words() -> dict[str, str]:
    """Word → the term that stands for it, from the table's last column: words in backquotes."""
    rows = (line.strip("| ").split(" | ") for line in GLOSSARY.read_text().splitlines() if line.startswith("| "))
    return {word: row[0].strip("* ") for row in rows if len(row) == 4 for word in re.findall(r"`(\w+)`", row[3])}


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of each, those of fields and constants among them."""
    for node in ast.walk(tree):
        for statement in getattr(node, "body", ()) if not isinstance(node, ast.Lambda | ast.IfExp) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str):
                yield statement.lineno, statement.value.value


def words_of(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+", name)}


def faults() -> Iterator[str]:
    replaced = replaced_words()
    classes = defaultdict[str, list[str]](list)
    for path in sorted((ROOT / "server").rglob("*.py")):
        where, tree = path.relative_to(ROOT), ast.parse(path.read_text())
        for line, text in docstrings(tree):
            if (opening := re.match(r"\s*(\w+)", text)) and opening[1] in OPENINGS:
                yield f"{where}:{line}: a docstring that opens with {opening[1]!r} is no sentence"
        names = [(path.stem, 1), *((node.name, node.lineno) for node in ast.walk(tree) if isinstance(node, NAMES))]
        for name, line in names:
            for word in sorted(words_of(name) & replaced.keys()):
                yield f"{where}:{line}: {name}: the glossary says {replaced[word]!r} in place of {word!r}"
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name].append(f"{where}:{node.lineno}")
    for name, places in classes.items():
        if len(places) > 1:
            yield f"{', '.join(places)}: {name} is the name of {len(places)} classes"


def main() -> None:
    found = list(faults())
    print(*found, sep="\n", file=sys.stderr)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
