"""The configurations and alerts that Prometheus is given."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from server.settings import Settings
from tests.support.bundles.vit import write_null
from tests.support.dashboards import ALERTS, RULES
from tests.support.live_service import running

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
CONFIGS = ("prometheus.yml", "prometheus.keys.yml", "prometheus.static.yml")
RUNBOOKS = (ROOT / "docs" / "alerts.md").read_text()
METRICS = (ROOT / "docs" / "metrics.md").read_text()
SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing: sudo apt-get install prometheus")


def config(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return content


@pytest.mark.parametrize("name", CONFIGS)
def test_rules_are_evaluated_as_often_as_targets_are_scraped(name: str) -> None:
    settings = config(name)["global"]
    assert settings["evaluation_interval"] == settings["scrape_interval"], "the default of a minute would delay alerts"


def test_static_targets_are_where_processes_listen_by_default() -> None:
    static, compose = config("prometheus.static.yml"), config("prometheus.yml")
    found = {job["job_name"]: job["static_configs"][0]["targets"] for job in static.pop("scrape_configs")}
    ports = {"gateway": Settings().port, "worker": Settings().metrics_port}
    assert found == {name: [f"127.0.0.1:{port}"] for name, port in ports.items()}
    assert found.keys() == {job["job_name"] for job in compose.pop("scrape_configs")}
    assert static == compose


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_loads_the_rules(name: str) -> None:
    assert config(name)["rule_files"] == ["rules.yml"]


def test_compose_mounts_the_rules_next_to_the_configuration() -> None:
    volumes = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["prometheus"]["volumes"]
    inside = {source: Path(target) for source, target, *_ in (volume.split(":") for volume in volumes)}
    configured, rules = (inside[f"./deploy/prometheus/{name}"] for name in ("prometheus.yml", "rules.yml"))
    assert rules == configured.with_name("rules.yml")


def test_each_alert_has_a_row_and_a_runbook_that_it_names() -> None:
    rows = re.findall(r"^\| \[`(Opsin\w+)`\]\(#(\w+)\) \| (\w+) \|", RUNBOOKS, re.MULTILINE)
    sections = {name: text.strip() for name, text in re.findall(r"^## (Opsin\w+)\n(.*?)(?=^## |\Z)", RUNBOOKS, re.MULTILINE | re.DOTALL)}
    assert rows == [(rule["alert"], rule["alert"].lower(), rule["labels"]["severity"]) for rule in ALERTS]
    assert [rule["annotations"]["runbook"] for rule in ALERTS] == [f"docs/alerts.md#{name.lower()}" for name in sections]
    assert [name for name, text in sections.items() if len(text) < 100] == []


def test_each_alert_is_tested() -> None:
    cases = yaml.safe_load(Path(__file__).with_name("rules_test.yml").read_text())["tests"]
    tested = {(alert["alertname"], bool(alert["exp_alerts"])) for case in cases for alert in case["alert_rule_test"]}
    assert tested == {(rule["alert"], fires) for rule in ALERTS for fires in (True, False)}


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name of each series that a gateway or a worker has → its kind."""
    bundles = tmp_path_factory.mktemp("bundles")
    write_null(bundles)
    with running(bundles) as service:
        [worker] = [one.laddr for one in psutil.net_connections("inet") if (one.pid, one.status) == (service.worker, "LISTEN")]
        pages = [httpx2.get(f"{url}/metrics", timeout=60).text for url in (service.url, f"http://127.0.0.1:{worker.port}")]
    families = [family for page in pages for family in text_string_to_metric_families(page)]
    return {family.name + suffix: family.type for family in families for suffix in SUFFIXES.get(family.type, [])}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_uses_metrics_that_the_service_has(scraped: dict[str, str], rule: dict[str, Any]) -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    named = [name for name in re.findall(r"[a-z_:]*opsin_[\w:]+", rule["expr"]) if name not in recorded]
    assert [name for name in named if name not in scraped] == []
    counted = re.findall(r"\b(?:rate|increase|resets)\((opsin_\w+)", rule["expr"])
    assert [name for name in named if (scraped[name] in ("counter", "histogram")) != (name in counted)] == []
    values = [value for _, values in re.findall(r'(\w+)=~?"([^"]+)"', rule["expr"]) for value in values.split("|")]
    assert [value for value in values if f"`{value}`" not in METRICS] == []


@promtool
@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_promtool_accepts_the_configuration_and_its_rules(name: str) -> None:
    check("config", "--syntax-only", FOLDER / name)  # the operator creates the key's file
    check("rules", "--lint-fatal", FOLDER / "rules.yml")


@promtool
@pytest.mark.slow
def test_alerts_fire_where_something_is_wrong_and_else_not() -> None:
    tested = subprocess.run(
        ["promtool", "test", "rules", Path(__file__).with_name("rules_test.yml")], capture_output=True, text=True, check=False
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr


def check(kind: str, option: str, file: Path) -> None:
    checked = subprocess.run(["promtool", "check", kind, option, file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
