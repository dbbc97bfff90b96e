"""The files that Grafana is provisioned with. That their queries answer is shown by `make compose-test`."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards" / "throughput.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]


def documented_metrics() -> dict[str, str]:
    """Metric name → type, from the tables of docs/metrics.md."""
    rows = re.findall(r"^\| (`opsin_[^|]+) \| (counter|gauge|histogram) \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    return {name: kind for names, kind in rows for name in re.findall(r"`(opsin_\w+)`", names)}


def test_the_dashboard_is_one_that_grafana_reads() -> None:
    schema = json.loads((Path(__file__).parent / "dashboard.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(DASHBOARD)


def test_panels_have_their_own_ids_and_places() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for first, second in combinations((panel["gridPos"] for panel in DASHBOARD["panels"]), 2):
        side_by_side = first["x"] + first["w"] <= second["x"] or second["x"] + second["w"] <= first["x"]
        below = first["y"] + first["h"] <= second["y"] or second["y"] + second["h"] <= first["y"]
        assert side_by_side or below, (first, second)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in PANELS)


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_a_query_uses_metrics_that_exist_for_what_they_are(title: str, query: str) -> None:
    metrics = documented_metrics()
    for name in re.findall(r"opsin_\w+", query):
        kind = metrics.get(re.sub(r"_(bucket|sum|count)$", "", name)) if name not in metrics else metrics[name]
        assert kind is not None, f"{title}: {name} is not in docs/metrics.md"
        assert (kind == "histogram") == (name not in metrics), f"{title}: {name} is a {kind}"
        in_rate = re.search(rf"(rate|increase)\({name}\b", query) is not None
        assert not (in_rate and kind == "gauge"), f"{title}: the rate of a gauge means nothing"


def test_variables_that_queries_use_are_defined() -> None:
    defined = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z_]+)", json.dumps(PANELS)))
    assert used == defined | {"__rate_interval"}


def provisioning(name: str) -> Any:
    return yaml.safe_load((GRAFANA / "provisioning" / name).read_text())


def test_the_dashboard_finds_its_data_source() -> None:
    sources = provisioning("datasources/prometheus.yml")["datasources"]
    chosen = next(variable for variable in DASHBOARD["templating"]["list"] if variable["type"] == "datasource")["current"]["value"]
    assert [(source["uid"], source["type"], source["url"]) for source in sources] == [(chosen, "prometheus", "http://prometheus:9090")]


def test_grafana_looks_for_dashboards_where_compose_mounts_them() -> None:
    mounts = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]["volumes"]
    inside = {source: target for source, target, _ in (mount.split(":") for mount in mounts)}
    provider = provisioning("dashboards/opsin.yml")["providers"][0]
    assert provider["options"]["path"] == inside["./deploy/grafana/dashboards"]
    assert inside["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
