"""One Python file as the rules read it: its tree, its docstrings and its comments."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

Function = ast.FunctionDef | ast.AsyncFunctionDef
Hit = tuple[int, str]  # line, what to write instead


@dataclass(frozen=True)
class Docstring:
    """A docstring of a module, class or function, or the string below a field or constant, which is then the `owner`."""

    owner: ast.AST
    line: int
    text: str

    @property
    def first_word(self) -> str:
        found = re.match(r"\W*([A-Za-z][A-Za-z'-]*)", self.text)
        return found[1] if found else ""


@dataclass(frozen=True)
class PythonFile:
    """path: relative to the repository. Raises SyntaxError if `text` is not Python."""

    path: PurePosixPath
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, str(self.path))

    @property
    def is_test(self) -> bool:
        return "tests" in self.path.parts

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def functions(self) -> list[Function]:
        return [node for node in self.nodes if isinstance(node, Function)]

    @cached_property
    def classes(self) -> list[ast.ClassDef]:
        return [node for node in self.nodes if isinstance(node, ast.ClassDef)]

    @cached_property
    def docstrings(self) -> list[Docstring]:
        return [docstring for node in self.nodes for docstring in _docstrings_in(node)]

    @cached_property
    def comments(self) -> list[Hit]:
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return [(token.start[0], token.string.lstrip("#! ")) for token in tokens if token.type == tokenize.COMMENT]

    @cached_property
    def names(self) -> list[tuple[int, str]]:
        """Line and name of everything that the file gives a name to: definitions, parameters, variables and attributes."""
        return sorted({(line, name) for node in self.nodes for line, name in _stored_names(node)})


def _docstrings_in(node: ast.AST) -> Iterator[Docstring]:
    body = node.body if isinstance(node, ast.Module | ast.ClassDef | Function) else []
    for index, statement in enumerate(body):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str):
            yield Docstring(body[index - 1] if index else node, statement.lineno, statement.value.value)


def _stored_names(node: ast.AST) -> Iterator[tuple[int, str]]:
    match node:
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            yield node.lineno, node.name
        case ast.Name(ctx=ast.Store()):
            yield node.lineno, node.id
        case ast.Attribute(ctx=ast.Store()):
            yield node.lineno, node.attr
        case ast.arg():
            yield node.lineno, node.arg


def vocabulary(text: str) -> frozenset[str]:
    return frozenset(text.split())


def parts(name: str) -> list[str]:
    """Return the words of a name in lower case: both `snake_case` and `CamelCase` are split."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def decorators(node: Function) -> set[str]:
    """Return the last names of the decorators, such as `property` or `fixture`."""
    bare = [decorator.func if isinstance(decorator, ast.Call) else decorator for decorator in node.decorator_list]
    return {decorator.attr if isinstance(decorator, ast.Attribute) else getattr(decorator, "id", "") for decorator in bare}


def has_noun_docstring(node: Function) -> bool:
    """Return True for properties and fixtures, whose docstrings say what they are instead of what they do."""
    return any("property" in name or name in ("fixture", "setter") for name in decorators(node))
