"""Rules on docstrings. Those of functions are imperative, which ruff's D401 checks for most words; here are the words that it lets pass."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from word_rules.source import Docstring, Function, Hit, PythonFile, has_noun_docstring, vocabulary

OPENINGS = vocabulary(
    "As At Behind Below Beside Between By For From In Inside It Its Of So That Their Those To Under Until What Whatever "
    "When Where Who Whoever Whose With Within Without"
)
NOT_IMPERATIVE = vocabulary("All Both Each Every No None One Several Their These They Those Two Whether")
CLASS_VERBS = vocabulary("Decides Does Gives Holds How Is Has Keeps Knows Makes Reads Says Sends Takes Tells Waits Why Writes")
UNITS = {
    "Seconds": ("_s", "_seconds", "_at"),
    "Milliseconds": ("_ms", "_milliseconds"),
    "Bytes": ("bytes",),
    "Pixels": ("pixels",),
    "Characters": ("_chars", "_characters"),
    "Degrees": ("_degrees",),
}
MAX_WORDS = 25
ARRAYS = re.compile(r"\b(Tensor|NDArray)\b")
SHAPE = re.compile(r"\([^()]*,[^()]*\)|\([^()\s]+\)|\bscalar\b|\bshape\b", re.I)


def opening(source: PythonFile) -> Iterator[Hit]:
    for docstring in source.docstrings:
        word = docstring.first_word
        if word in OPENINGS or re.match(r"The same([.,:;]| (of|for|as|to|in|at|with|from|but|where|whatever)\b)", docstring.text):
            yield docstring.line, f"a docstring that opens with {word!r} is not a sentence: begin with a verb (function) or a noun"


def mood(source: PythonFile) -> Iterator[Hit]:
    for docstring, _ in _functions_with_docstrings(source):
        if docstring.first_word in NOT_IMPERATIVE and docstring.text.lstrip().startswith(docstring.first_word):
            yield docstring.line, f"{docstring.first_word!r} opens the docstring of a function: begin with an imperative, 'Return …'"


def shape_first(source: PythonFile) -> Iterator[Hit]:
    for docstring, function in _functions_with_docstrings(source):
        if function.name not in ("forward", "backward") and re.match(r"\s*[(→\[]", docstring.text):
            yield docstring.line, "a shape opens the docstring: begin with a verb, 'Project x to …: (B, N, C) → …'"


def raises_first(source: PythonFile) -> Iterator[Hit]:
    for docstring in source.docstrings:
        if (
            docstring.first_word == "Raises"
            and docstring.text.lstrip().startswith("Raises")
            and not isinstance(docstring.owner, ast.ClassDef)
        ):
            yield docstring.line, "begin with what the function does; 'Raises X if …' comes last"


def parameter_first(source: PythonFile) -> Iterator[Hit]:
    for docstring, function in _functions_with_docstrings(source):
        arguments = function.args
        names = {argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
        if function.name != "__init__" and (found := re.match(r"\s*`?(\w+)`?:", docstring.text)) and found[1] in names:
            yield docstring.line, f"the parameter {found[1]!r} opens the docstring: begin with what the function does"


def ellipsis(source: PythonFile) -> Iterator[Hit]:
    for docstring in source.docstrings:
        if re.match(r"\s*(\.\.\.|…)", docstring.text) or re.search(r"(\.\.\.|…)\s*$", docstring.text):
            yield docstring.line, "a docstring that begins or ends with an ellipsis: write complete sentences"


def where_for_if(source: PythonFile) -> Iterator[Hit]:
    for docstring in source.docstrings:
        if found := re.search(r"\b(None|Raises [A-Z][A-Za-z]+|[Ee]mpty|0|False|True|null),? where\b", docstring.text):
            yield docstring.line, f"{found[0]!r}: write '{found[1]} if …'"


def long_sentence(source: PythonFile) -> Iterator[Hit]:
    for docstring in source.docstrings:
        sentence = re.split(r"[.:;](?:\s|$)|\n\s*\n", docstring.text.strip(), maxsplit=1)[0]
        if (count := len(re.findall(r"[A-Za-z][\w'`.-]*", sentence))) > MAX_WORDS:
            yield docstring.line, f"the first sentence has {count} words, more than {MAX_WORDS}: make two of it"


def class_verb(source: PythonFile) -> Iterator[Hit]:
    for docstring in source.docstrings:
        if isinstance(docstring.owner, ast.ClassDef) and docstring.first_word in CLASS_VERBS:
            yield docstring.line, f"{docstring.first_word!r} opens the docstring of a class: begin with a noun, 'A pool of …'"


def unit_first(source: PythonFile) -> Iterator[Hit]:
    """Find fields and constants whose docstring begins with a unit that their name does not have."""
    for docstring in source.docstrings:
        endings = UNITS.get(docstring.first_word, ())
        names = list(_assigned_names(docstring.owner))
        if endings and names and not any(name.lower().endswith(endings) for name in names):
            yield docstring.line, f"begin with what it is ('Timeout in seconds'), or end the name in {endings[0]!r}"


def shape_of_array(source: PythonFile) -> Iterator[Hit]:
    """Find public functions of models and training whose docstrings do not say the shape of the array that they return."""
    if source.path.parts[0] not in ("models", "training", "kernels") or source.is_test:
        return
    for docstring, function in _functions_with_docstrings(source):
        returned = ast.unparse(function.returns) if function.returns else ""
        public = not function.name.startswith("_") and function.name not in ("forward", "backward")
        if public and ARRAYS.search(returned) and not re.search(r"dict\[|Mapping\[", returned) and not SHAPE.search(docstring.text):
            yield docstring.line, f"{function.name} returns {returned}: say its shape, '(B, N, C)'"


def _functions_with_docstrings(source: PythonFile) -> Iterator[tuple[Docstring, Function]]:
    for docstring in source.docstrings:
        if isinstance(docstring.owner, Function) and not has_noun_docstring(docstring.owner):
            yield docstring, docstring.owner


def _assigned_names(node: ast.AST) -> Iterator[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    for target in targets:
        yield target.id if isinstance(target, ast.Name) else getattr(target, "attr", "")


RULES = {
    "docstring-opening": opening,
    "docstring-mood": mood,
    "docstring-shape-first": shape_first,
    "docstring-raises-first": raises_first,
    "docstring-parameter-first": parameter_first,
    "docstring-ellipsis": ellipsis,
    "docstring-where": where_for_if,
    "docstring-long": long_sentence,
    "docstring-class": class_verb,
    "docstring-unit": unit_first,
    "docstring-array": shape_of_array,
}
