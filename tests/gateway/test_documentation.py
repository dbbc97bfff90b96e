"""The pages in `docs/` name everything that there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from server.gateway.inference.stages import TaskInterface
from server.http.problems import ProblemKind
from server.settings import Settings
from server.tasks.base import Task
from server.tasks.registry import ROUTES
from server.telemetry.metrics import GatewayMetrics, WorkerMetrics

DOCS = Path(__file__).parents[2] / "docs"
ELSEWHERE = {"OPSIN_CONFIG", "OPSIN_URL", "OPSIN_API_KEY", "OPSIN_API"}


def test_every_setting_is_documented_and_no_other() -> None:
    documented = set(re.findall(r"\bOPSIN_[A-Z_]*[A-Z]", (DOCS / "settings.md").read_text()))
    documented = {name.partition("__")[0] for name in documented} - ELSEWHERE
    assert documented == {f"OPSIN_{name.upper()}" for name in Settings.model_fields}


def test_every_kind_of_problem_is_documented() -> None:
    page = (DOCS / "api.md").read_text()
    assert [kind.slug for kind in ProblemKind if kind is not ProblemKind.NOT_SUPPORTED and f"`{kind.slug}`" not in page] == []


def option_table(tasks: tuple[Task[Any, Any], ...]) -> str:
    options = TaskInterface.from_tasks(*tasks).options.values()
    return "\n".join(["|---|---|---|", *(f"| `{row.name}` | {row.values} | {row.default} |" for row in options)]) + "\n\n"


@pytest.mark.parametrize("name", ROUTES)
def test_documented_options_of_routes_are_those_read(name: str) -> None:
    section = (DOCS / "api.md").read_text().partition(f"`POST /v1/{name}`")[2].partition("\n## ")[0]
    assert option_table(ROUTES[name]) in section


def metric_names(registry: CollectorRegistry) -> set[str]:
    return {f"{family.name}_total" if family.type == "counter" else family.name for family in registry.collect()}


def test_every_metric_is_documented() -> None:
    page = (DOCS / "metrics.md").read_text()
    names = metric_names(GatewayMetrics().registry) | metric_names(WorkerMetrics().registry)
    assert sorted(name for name in names if f"`{name}`" not in page) == []
