"""The files that Grafana is provisioned with. `test_queries.py` and `make compose-test` show that their queries answer."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.support.dashboards import DASHBOARDS, QUERIES, Query, panels

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy" / "grafana"
every_dashboard = pytest.mark.parametrize("name", DASHBOARDS)


def documented_metrics() -> dict[str, str]:
    """Metric name → type, from the tables of docs/metrics.md."""
    rows = re.findall(r"^\| (`opsin_[^|]+) \| (counter|gauge|histogram) \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    return {name: kind for names, kind in rows for name in re.findall(r"`(opsin_\w+)`", names)}


@every_dashboard
def test_a_dashboard_is_one_that_grafana_reads(name: str) -> None:
    schema = json.loads((Path(__file__).parent / "dashboard.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(DASHBOARDS[name])


def test_dashboards_have_ids_of_their_own_and_are_documented() -> None:
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)
    page = (ROOT / "docs" / "deployment.md").read_text().partition("\n## The dashboards\n")[2].partition("\n## ")[0]
    assert [dashboard["title"] for dashboard in DASHBOARDS.values() if f"*{dashboard['title']}*" not in page] == []


@every_dashboard
def test_panels_have_their_own_ids_titles_and_places(name: str) -> None:
    all_panels, drawn = DASHBOARDS[name]["panels"], panels(DASHBOARDS[name])
    for key in ("id", "title"):
        assert len({panel[key] for panel in drawn}) == len(drawn)
    assert len({panel["id"] for panel in all_panels}) == len(all_panels)
    for first, second in combinations((panel["gridPos"] for panel in all_panels), 2):
        side_by_side = first["x"] + first["w"] <= second["x"] or second["x"] + second["w"] <= first["x"]
        below = first["y"] + first["h"] <= second["y"] or second["y"] + second["h"] <= first["y"]
        assert side_by_side or below, (first, second)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in drawn)


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.dashboard}: {query.panel}, {query.legend}")
def test_a_query_uses_metrics_that_exist_for_what_they_are(query: Query) -> None:
    metrics = documented_metrics()
    for name in re.findall(r"opsin_\w+", query.expression):
        kind = metrics.get(re.sub(r"_(bucket|sum|count)$", "", name)) if name not in metrics else metrics[name]
        assert kind is not None, f"{name} is not in docs/metrics.md"
        assert (kind == "histogram") == (name not in metrics), f"{name} is a {kind}"
        in_rate = re.search(rf"(rate|increase)\({name}\b", query.expression) is not None
        assert not (in_rate and kind == "gauge"), "the rate of a gauge means nothing"


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.dashboard}: {query.panel}, {query.legend}")
def test_a_query_selects_cells_and_has_a_legend_of_its_labels(query: Query) -> None:
    selectors = re.findall(r"opsin_\w+(\{[^}]*\})?(?!\w)", query.expression.partition(" and on (model) ")[0])
    assert selectors and all('cell=~"$cell"' in selector for selector in selectors)
    outer = re.match(r"(?:1 - )?(?:histogram_quantile\([\d.]+, )?(?:sum|max|min|count)(?: by \(([^)]*)\))?", query.expression)
    assert outer is not None
    assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) - {"le"} == set(re.findall(r"\w+", outer[1] or "")) - {"le"}


@every_dashboard
def test_variables_that_queries_use_are_defined(name: str) -> None:
    defined = {variable["name"] for variable in DASHBOARDS[name]["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z_]+)", json.dumps(panels(DASHBOARDS[name]))))
    assert used == defined | {"__rate_interval"}


def provisioning(name: str) -> Any:
    return yaml.safe_load((GRAFANA / "provisioning" / name).read_text())


@every_dashboard
def test_a_dashboard_finds_its_data_source(name: str) -> None:
    sources = provisioning("datasources/prometheus.yml")["datasources"]
    variables = DASHBOARDS[name]["templating"]["list"]
    chosen = next(variable for variable in variables if variable["type"] == "datasource")["current"]["value"]
    assert [(source["uid"], source["type"], source["url"]) for source in sources] == [(chosen, "prometheus", "http://prometheus:9090")]


def test_grafana_looks_for_dashboards_where_compose_mounts_them() -> None:
    mounts = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]["volumes"]
    inside = {source: target for source, target, _ in (mount.split(":") for mount in mounts)}
    provider = provisioning("dashboards/opsin.yml")["providers"][0]
    assert provider["options"]["path"] == inside["./deploy/grafana/dashboards"]
    assert inside["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
