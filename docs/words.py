"""Words of the code: `python docs/words.py`, a part of `make lint`. docs/glossary.md is the list that it reads.

It refuses docstrings that open with a word of OPENINGS, since they are no sentences; names of classes, functions and modules with a word
that the glossary replaces; in `server/`, names of classes that stand for two things; and terms that the glossary has twice.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GLOSSARY = ROOT / "docs" / "glossary.md"
FOLDERS = ("server", "models", "training", "starters", "kernels", "opsin", "benchmarks")
OPENINGS = ("Of", "What", "Who", "Whose", "That")
NAMES = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def glossary() -> list[tuple[str, str]]:
    """Each term, with the last column of its row."""
    rows = (line.strip("| ").split(" | ") for line in GLOSSARY.read_text().splitlines() if line.startswith("| **"))
    return [(row[0].strip("* "), row[3] if len(row) == 4 else "") for row in rows]


def replaced_words(folder: str) -> dict[str, str]:
    """Word → the term that stands for it: words in backquotes of the last column, unless it says "not in `FOLDER/`"."""
    return {word: term for term, cell in glossary() if f"not in `{folder}/`" not in cell for word in re.findall(r"`(\w+)`", cell)}


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of each, those of fields and constants among them."""
    for node in ast.walk(tree):
        for statement in getattr(node, "body", ()) if not isinstance(node, ast.Lambda | ast.IfExp) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str):
                yield statement.lineno, statement.value.value


def words_of(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+", name)}


def tree_of(path: Path) -> ast.Module:
    """Raises SyntaxError."""
    return ast.parse(path.read_text(), str(path.relative_to(ROOT)))


def faults() -> Iterator[str]:
    for term, rows in Counter(term for term, _ in glossary()).items():
        if rows > 1:
            yield f"docs/glossary.md: {term} has {rows} rows"
    for folder in FOLDERS:
        replaced = replaced_words(folder)
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.is_relative_to(ROOT / "starters/tests"):
                continue
            yield from faults_of(path.relative_to(ROOT), tree_of(path), replaced)
    yield from twice_named()


def faults_of(where: Path, tree: ast.AST, replaced: dict[str, str]) -> Iterator[str]:
    for line, text in docstrings(tree):
        if (opening := re.match(r"\s*(\w+)", text)) and opening[1] in OPENINGS:
            yield f"{where}:{line}: a docstring that opens with {opening[1]!r} is no sentence"
    names = [(where.stem, 1), *((node.name, node.lineno) for node in ast.walk(tree) if isinstance(node, NAMES))]
    for name, line in names:
        for word in sorted(words_of(name) & replaced.keys()):
            yield f"{where}:{line}: {name}: the glossary says {replaced[word]!r} in place of {word!r}"


def twice_named() -> Iterator[str]:
    classes = defaultdict[str, list[str]](list)
    for path in sorted((ROOT / "server").rglob("*.py")):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    for name, places in classes.items():
        if len(places) > 1:
            yield f"{', '.join(places)}: {name} is the name of {len(places)} classes"


def main() -> None:
    try:
        found = list(faults())
    except SyntaxError as error:
        found = [f"{error.filename}:{error.lineno}: {error.msg}"]
    print(*found, sep="\n", file=sys.stderr)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
