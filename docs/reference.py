"""Write what the site is built from: `python docs/reference.py FOLDER` copies docs and mkdocs.yml there, with the rows of claims.yaml in
them, and adds settings, routes, Python and commands as the code states them. Nothing of it is committed, so nothing can be out of date.

FOLDER is not the checkout: zensical empties the folder `.cache` next to its configuration, where a checkout keeps data of trainings.
"""

from __future__ import annotations

import ast
import asyncio
import enum
import importlib
import inspect
import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import yaml
from typer.main import get_command

import opsin
from opsin.cli.app import app as command_line
from server.gateway.app import create_app
from server.settings import Settings

OPTIONS = {
    "opsin.classification": "ClassifyCallOptions",
    "opsin.zero_shot": "ZeroShotOptions",
    "opsin.embedding": "EmbedOptions",
    "opsin.inpainting": "InpaintOptions",
    "opsin.actions": "ActionsOptions",
    "opsin.reconstruction": "ReconstructOptions",
}
"""Module → the keyword options of its method."""


HERE = Path(__file__).parent
NOT_SHOWN = ("*.json", "*.py", "*.yaml", "SOURCES.txt", "__pycache__")
UNUSED_REDIS = "redis://localhost:6379"
"""A gateway that is not started connects to nothing."""


def main(folder: Path) -> None:
    pages = folder / HERE.name
    shutil.rmtree(pages, ignore_errors=True)
    shutil.copytree(HERE, pages, ignore=shutil.ignore_patterns(*NOT_SHOWN))
    shutil.copy(HERE.with_name("mkdocs.yml"), folder)
    claims_page = pages / "claims.md"
    claims_page.write_text(claims_page.read_text(encoding="utf-8").replace("{{ claims }}", claims()), encoding="utf-8")
    (pages / "reference").mkdir()
    for name, write in PAGES.items():
        (pages / "reference" / f"{name}.md").write_text(write(), encoding="utf-8")


def claims() -> str:
    """Return the page of claims.yaml."""
    content = yaml.safe_load((HERE / "claims.yaml").read_text(encoding="utf-8"))
    rows = [
        (
            claim["what"],
            "<br>".join(claim["quotes"]),
            f"`{claim['command']}`",
            f"{content['machines'][claim['machine']]}; {claim['date']}",
            ", ".join(map(page_link, claim["pages"])),
        )
        for claim in content["claims"]
    ]
    return table(("", "figure", "command", "machine, date", "page"), rows)


def page_link(quoting: str) -> str:
    return f"[{quoting}]({quoting.removeprefix('docs/')})" if quoting.startswith("docs/") else quoting


def settings() -> str:
    """Return the page of the fields of `Settings`: name, type and bounds, default, docstring."""
    docstrings = attribute_docstrings(Settings)
    rows = []
    for name, field in Settings.model_fields.items():
        limits = {word: getattr(bound, key) for bound in field.metadata for key, word in BOUNDS.items() if hasattr(bound, key)}
        bounds = ", ".join(f"{word} {value}" for word, value in limits.items())
        default = field.get_default(call_default_factory=True)
        kind = annotation(field.annotation)
        rows.append((f"`OPSIN_{name.upper()}`", f"`{kind}`" + (f", {bounds}" if bounds else ""), f"`{default}`", docstrings.get(name, "")))
    about = (
        "All environment variables, from `server/settings.py`. In the YAML file, names are in lower case without `OPSIN_`. "
        "[Settings](../settings.md) explains them."
    )
    return page("Settings, from the code", about, table(("variable", "type", "default", ""), rows))


BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def http() -> str:
    """Return the page of the routes of the OpenAPI document."""
    document = asyncio.run(openapi())
    sections = []
    for path, operations in sorted(document["paths"].items()):
        for method, operation in operations.items():
            sections.append(route(method, path, operation))
    about = (
        "All routes, from the OpenAPI document that a running service serves at `/openapi.json`. "
        "`/docs` there has the schemas and lets you try routes. "
        "[REST API](../api.md) explains them."
    )
    return page("HTTP routes, from OpenAPI", about, *sections)


async def openapi() -> dict[str, Any]:
    transport = httpx2.ASGITransport(app=create_app(Settings(redis_url=UNUSED_REDIS)))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return dict((await client.get("/openapi.json")).json())


def route(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parameters = operation.get("parameters", ())
    rows = [(f"`{one['name']}`", one["in"], kind_of(one.get("schema", {})), one.get("description", "")) for one in parameters]
    answers = [(status, answer["description"], media_types(answer)) for status, answer in sorted(operation["responses"].items())]
    bodies = list(operation.get("requestBody", {}).get("content", {}))
    return "\n\n".join(
        filter(
            None,
            (
                f"## `{method.upper()} {path}`",
                " ".join(filter(None, (sentence(operation.get("summary", "")), operation.get("description", "")))),
                table(("parameter", "in", "type", ""), rows) if rows else "",
                "Bodies: " + ", ".join(f"`{body}`" for body in bodies) if bodies else "",
                table(("status", "meaning", "answer"), answers),
            ),
        )
    )


def sentence(text: str) -> str:
    return text if not text or text.endswith(("?", ".")) else f"{text}."


def media_types(answer: Mapping[str, Any]) -> str:
    return ", ".join(f"`{media_type}`" for media_type in answer.get("content", {}))


def kind_of(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kinds = [schema.get("type")] if "type" in schema else [other.get("type") for other in schema.get("anyOf", ())]
    return ", ".join(str(kind) for kind in kinds if kind)


def python() -> str:
    """Return the page of the public names of `opsin`, with signatures and docstrings."""
    about = "All public names of `opsin`, from the docstrings. [The Python client](../client.md) explains them."
    sections = [public(name, getattr(opsin, name)) for name in opsin.__all__]
    sections += [public(name, getattr(importlib.import_module(module), name)) for module, name in OPTIONS.items()]
    return page("Python, from the docstrings", about, *sections)


def public(name: str, value: Any) -> str:
    parts = [f"## `{name}`", inspect.getdoc(value) or ""]
    docstrings, hints = attribute_docstrings(value), vars(value).get("__annotations__", {})
    rows = [
        (f"`{field}`", f"`{str(hint).replace(' | ', ' or ')}`", docstrings.get(field, ""))
        for field, hint in hints.items()
        if not field.startswith("_")
    ]
    if rows:
        parts.append(table(("field", "type", ""), rows))
    parts += [method(name, member) for name, member in vars(value).items() if not name.startswith("_") and is_method(member)]
    return "\n\n".join(filter(None, parts))


QUOTE = "'"
"""Quotation mark of annotations, which are strings until they are evaluated."""


def is_method(member: object) -> bool:
    return inspect.isfunction(member) or isinstance(member, property)


def method(name: str, member: Any) -> str:
    if isinstance(member, property):
        head = f"{name}: {inspect.signature(typing.cast(Callable[..., Any], member.fget)).return_annotation}"
        text = inspect.getdoc(member.fget) or ""
    else:
        head, text = f"{name}{inspect.signature(member)}", inspect.getdoc(member) or ""
    return f"### `{re.sub(r'self, |self', '', head, count=1).replace(QUOTE, '')}`\n\n{text}".rstrip()


def attribute_docstrings(owner: type) -> dict[str, str]:
    """Strings that stand below the fields of a class."""
    try:
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    except (OSError, TypeError):
        return {}
    statements = typing.cast(ast.ClassDef, body).body
    docstrings = {field: text for base in getattr(owner, "__orig_bases__", ()) for field, text in attribute_docstrings(base).items()}
    for field, text in pairwise(statements):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            docstrings[ast.unparse(field.target)] = inspect.cleandoc(str(text.value.value))
    return docstrings


def annotation(hint: Any) -> str:
    plain = isinstance(hint, type) and not typing.get_args(hint)
    return hint.__name__ if plain else str(hint).replace("typing.", "").replace("pathlib.", "").replace(" | ", " or ")


def commands() -> str:
    """Return the page of the commands of `opsin`, with their arguments and options."""
    about = "All commands, as printed by `opsin COMMAND --help`. [The command line](../cli.md) explains them."
    return page("Commands, from the command line", about, *(command(name, one) for name, one in leaves("opsin", get_command(command_line))))


def leaves(name: str, one: Any) -> Iterator[tuple[str, Any]]:
    inner = getattr(one, "commands", None)
    if inner is None:
        yield name, one
        return
    for word, child in inner.items():
        if not child.hidden:
            yield from leaves(f"{name} {word}", child)


def command(name: str, one: Any) -> str:
    rows = [
        (f"`{names_of(parameter)}`", default_of(parameter), getattr(parameter, "help", None) or "")
        for parameter in one.params
        if not getattr(parameter, "hidden", False)
    ]
    return "\n\n".join(filter(None, (f"## `{name}`", inspect.cleandoc(one.help or ""), table(("", "default", ""), rows) if rows else "")))


def names_of(parameter: Any) -> str:
    if parameter.param_type_name == "option":
        return ", ".join((*parameter.opts, *parameter.secondary_opts))
    return str(parameter.metavar or parameter.name.upper())


def default_of(parameter: Any) -> str:
    value = parameter.default
    if value is None or value is False or callable(value) or not getattr(parameter, "show_default", True):
        return ""
    return f"`{value.value if isinstance(value, enum.Enum) else value}`"


PAGES: Mapping[str, Callable[[], str]] = {"settings": settings, "http": http, "python": python, "commands": commands}


def page(title: str, about: str, *sections: str) -> str:
    return "\n\n".join((f"# {title}", about, *sections)) + "\n"


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    def line(cells: Iterable[object]) -> str:
        return "| " + " | ".join(str(cell).replace("\n", " ").replace("|", "\\|") for cell in cells) + " |"

    columns = list(head)
    return "\n".join((line(columns), line("---" for _ in columns), *map(line, rows)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
