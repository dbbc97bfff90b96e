"""Pages that are made while the site is built contain all of their sources."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from typer.main import get_command

import opsin
from opsin.cli.app import app
from server.settings import Settings
from server.tasks.registry import ROUTES
from tests.docs.code_blocks import ROOT


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    loaded = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert loaded is not None
    assert loaded.loader is not None
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    return module


def test_every_setting_with_its_default(reference: ModuleType) -> None:
    rows = [line for line in reference.settings().splitlines() if line.startswith("| `OPSIN_")]
    assert len(rows) == len(Settings.model_fields)
    assert "| `OPSIN_MAX_IMAGES` | `int`, above 0 | `32` |  |" in rows
    assert any(row.startswith("| `OPSIN_JOB_TIMEOUT`") and "Default deadline of asynchronous jobs" in row for row in rows)


def test_every_route_with_its_errors(reference: ModuleType) -> None:
    page = reference.http()
    for name in ROUTES:
        _, _, section = page.partition(f"## `POST /v1/{name}`")
        assert "| 422 |" in section.partition("\n## ")[0]
    assert "| 403 | Models may not be loaded or unloaded; The API key does not allow this |" in page


def test_every_public_name_with_its_docstring(reference: ModuleType) -> None:
    page = reference.python()
    assert [name for name in opsin.__all__ if f"## `{name}`" not in page] == []
    _, _, client = page.partition("\n## `Client`")
    assert "### `inpaint(image: ImageLike, mask: ImageLike | None = None, *, wait: bool = True" in client
    assert "Fill the hole of an image." in client


def test_every_command_with_its_options(reference: ModuleType) -> None:
    page = reference.commands()
    assert [name for name, one in get_command(app).commands.items() if not one.hidden and f"## `opsin {name}" not in page] == []  # type: ignore[attr-defined]
    _, _, section = page.partition("## `opsin bundles join`")
    assert "`--detector`" in section.partition("\n## ")[0]


def test_references_lie_next_to_copies_of_the_pages(reference: ModuleType, tmp_path: Path) -> None:
    reference.main(tmp_path)
    written = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert {"mkdocs.yml", "docs/index.md", *(f"docs/reference/{name}.md" for name in ("settings", "http", "python", "commands"))} <= written
    assert not [name for name in written if name.endswith((".py", ".yaml", ".json"))]
    assert "| figure | command |" in (tmp_path / "docs" / "claims.md").read_text()
