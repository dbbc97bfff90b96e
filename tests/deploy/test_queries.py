"""Every query of dashboards and rules answers on a real Prometheus that scrapes a service under load."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import psutil
import pytest
import yaml

from tests.support.dashboards import DEPLOY, NEEDS_FAULT, NEEDS_GPU, QUERIES, Prometheus, put_under_load
from tests.support.live_service import Service, running
from tests.support.waiting import START_S, eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is missing: sudo apt-get install prometheus"),
]

ROOT = Path(__file__).parents[2]
SCRAPE_S = 1
RATE_INTERVAL = "5m"
"""Longer than the load lasts."""


@contextmanager
def prometheus(service: Service, folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus with the rules on all processes of a service."""
    workers = [one.laddr.port for one in psutil.net_connections("inet") if (one.pid, one.status) == (service.worker, "LISTEN")]
    targets = {"gateway": [gateway.url.removeprefix("http://") for gateway in service.gateways], "worker": [f"127.0.0.1:{workers[0]}"]}
    config = {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
        "rule_files": [str(DEPLOY / "prometheus" / "rules.yml")],
        "scrape_configs": [{"job_name": job, "static_configs": [{"targets": found}]} for job, found in targets.items()],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    files = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    process = subprocess.Popen(["prometheus", *files, f"--web.listen-address={address}", "--log.level=warn"])
    try:
        eventually(lambda: _is_ready(f"http://{address}"), "Prometheus is ready", START_S)
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(60)


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/-/ready").status_code == 200
    except httpx2.HTTPError:
        return False


@pytest.fixture(scope="module")
def scraper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus after load of all kinds on two gateways and a worker."""
    with (
        running(ROOT / "bundles", gateways=2) as service,
        prometheus(service, tmp_path_factory.mktemp("prometheus")) as scraper,
    ):
        put_under_load(service.url, SCRAPE_S)
        yield scraper


def test_every_query_answers(scraper: Prometheus) -> None:
    with suppress(AssertionError):
        eventually(lambda: scraper.find_unanswered(RATE_INTERVAL) == [], seconds=30)
    assert scraper.find_unanswered(RATE_INTERVAL) == []


def test_other_queries_need_a_gpu_or_a_fault(scraper: Prometheus) -> None:
    named = [query for query in QUERIES if (query.dashboard, query.panel) in NEEDS_GPU | NEEDS_FAULT]
    assert {(query.dashboard, query.panel) for query in named} == NEEDS_GPU | NEEDS_FAULT
    assert [query.panel for query in named if scraper.query(query.fill_in(RATE_INTERVAL))] == []


def test_rules_are_evaluated_and_no_alert_fires(scraper: Prometheus) -> None:
    eventually(lambda: scraper.find_unanswered_rules() == [], "all rules have been evaluated")
    assert scraper.list_firing() == []


def test_variables_offer_what_the_service_has(scraper: Prometheus) -> None:
    offered = scraper.values_of_variables()
    assert {"flags", "words", "clips"} <= set(offered["model"])
    assert len(offered["instance"]) == 1
    assert offered["cell"] == []


@pytest.mark.parametrize(
    ("dashboard", "panel", "labels", "value"),
    [
        ("Queue and workers", "Ready workers", {}, 1),
        ("Queue and workers", "Items in the queue", {}, 0),
        ("Queue and workers", "Ready workers by bundle", {"model": "flags", "version": "1.0.0"}, 1),
        ("Long work", "Jobs", {"state": "done"}, 2),
    ],
)
def test_two_gateways_that_report_the_same_are_not_added_up(
    scraper: Prometheus, dashboard: str, panel: str, labels: dict[str, str], value: float
) -> None:
    [query] = [query for query in QUERIES if (query.dashboard, query.panel) == (dashboard, panel)]
    assert [float(one["value"][1]) for one in scraper.query(query.fill_in(RATE_INTERVAL)) if one["metric"] == labels] == [value]


def test_versions_are_those_of_all_processes(scraper: Prometheus) -> None:
    found = {
        (one["metric"]["job"], "torch" in one["metric"]): float(one["value"][1])
        for one in scraper.query("count by (job, version, python, torch) (opsin_build_info)")
    }
    assert found == {("gateway", False): 2, ("worker", True): 1}
