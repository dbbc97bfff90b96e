"""`python -m tools.chart_values`: writes the table of values in the chart's README from its schema and its defaults."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[1] / "deploy" / "helm" / "opsin"
TABLE = re.compile(r"(?<=<!-- values -->\n).*?(?=<!-- end of values -->)", re.DOTALL)
"""The table in README.md."""


def rows(schema: dict[str, Any], default: Any, name: str = "") -> Iterator[str]:
    """Yield one row of the table for each value that has no values of its own."""
    if schema["type"] == "object" and "properties" in schema:
        for key, value in schema["properties"].items():
            inner = default.get(key) if isinstance(default, dict) else None
            yield from rows(value, inner, f"{name}.{key}" if name else key)
        return
    example = "" if default is None or (schema["type"] == "array" and "properties" in schema["items"]) else f"`{json.dumps(default)}`"
    yield f"| `{name}` | {example} | {schema['description']} |"
    if schema["type"] == "array" and "properties" in schema["items"]:
        yield from rows(schema["items"], None, f"{name}[]")


def table() -> str:
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    schema["properties"].pop("global")
    return "\n".join(["| value | default | meaning |", "|---|---|---|", *rows(schema, defaults)]) + "\n"


def main() -> None:
    readme = CHART / "README.md"
    readme.write_text(TABLE.sub(lambda _: table(), readme.read_text()))


if __name__ == "__main__":
    main()
