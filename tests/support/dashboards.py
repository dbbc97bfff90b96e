"""Dashboards and rules as files, and load under which all of their queries answer: each task of the shipped starters, a job with its
events, and a request that is rejected."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import yaml

from opsin.client import Client
from server.playground import SAMPLES

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARDS: dict[str, Any] = {
    file.stem: json.loads(file.read_text()) for file in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
}
"""Name of the file → dashboard."""
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())["groups"] for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]


@dataclass(frozen=True)
class Query:
    dashboard: str
    """Title."""
    panel: str
    legend: str
    expression: str

    def fill_in(self, interval: str) -> str:
        """Return the expression as Grafana sends it for all values of all variables."""
        return re.sub(r"\$(?!__)\w+", ".*", self.expression.replace("$__rate_interval", interval))


def panels(dashboard: Any) -> list[Any]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


QUERIES = [
    Query(dashboard["title"], panel["title"], target["legendFormat"], target["expr"])
    for dashboard in DASHBOARDS.values()
    for panel in panels(dashboard)
    for target in panel["targets"]
]

NEEDS_GPU = frozenset({("Devices", panel) for panel in ("Utilization", "Power", "Temperature", "Memory in use", "Memory by kind")})
"""(dashboard, panel) of queries without series on a machine without a GPU."""
NEEDS_FAULT = frozenset({("Devices", "Out of memory"), ("Queue and workers", "Failures per second")})
"""(dashboard, panel) of queries whose series begin with the first fault."""

NEEDS_CHOICE = frozenset({("Queue and workers", "Backends")})
"""(dashboard, panel) of queries whose series begin when a worker has verified a second backend, which takes minutes."""


@dataclass(frozen=True)
class Prometheus:
    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of its API. Raises AssertionError with the reason if it rejects the request."""
        answer = httpx2.get(f"{self.url}/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", f"{parameters}: {answer.get('error')}"
        return answer["data"]

    def query(self, expression: str, moment: float | None = None) -> list[Any]:
        """Return series with `metric` labels and `value`, of now or of `moment` (Unix seconds)."""
        result: list[Any] = self.get("query", query=expression, **({} if moment is None else {"time": str(moment)}))["result"]
        return result

    def find_unanswered(self, interval: str) -> list[tuple[str, str, str]]:
        """Return dashboard, panel and legend of queries that should have series and have none. Means of idle models are NaN."""
        expected = [query for query in QUERIES if (query.dashboard, query.panel) not in NEEDS_GPU | NEEDS_FAULT | NEEDS_CHOICE]
        return [(one.dashboard, one.panel, one.legend) for one in expected if not _has_number(self.query(one.fill_in(interval)))]

    def find_unanswered_rules(self) -> list[str]:
        """Return the names of rules that Prometheus could not evaluate, and of recording rules without series."""
        rules = [rule for group in self.get("rules")["groups"] for rule in group["rules"]]
        assert len(rules) == len(RULES)
        failed = [rule["name"] for rule in rules if rule["health"] != "ok"]
        return failed + [rule["record"] for rule in RULES if "record" in rule and not self.query(rule["record"])]

    def list_firing(self) -> list[str]:
        """Return the names of alerts that fire."""
        return [alert["labels"]["alertname"] for alert in self.get("alerts")["alerts"] if alert["state"] == "firing"]

    def values_of_variables(self) -> dict[str, list[str]]:
        """Return the values that Grafana would offer for each variable of the dashboards."""
        variables = {
            variable["name"]: variable["query"]["query"]
            for dashboard in DASHBOARDS.values()
            for variable in dashboard["templating"]["list"]
            if variable["type"] == "query"
        }
        parsed = {name: re.fullmatch(r"label_values\((.+), (\w+)\)", query.replace("$cell", ".*")) for name, query in variables.items()}
        return {name: self.get(f"label/{found[2]}/values", **{"match[]": found[1]}) for name, found in parsed.items() if found}


def _has_number(series: list[Any]) -> bool:
    return any(math.isfinite(float(one["value"][1])) for one in series)


TASKS: Mapping[str, Callable[[Client], object]] = {
    "classify": lambda client: client.classify(SAMPLES / "brazil.png", model="flags"),
    "zero-shot": lambda client: client.zero_shot(SAMPLES / "umbrella.png", ["flower", "umbrella"]),
    "embed": lambda client: client.embed(texts="a daisy", model="words"),
    "clip": lambda client: client.classify(video=SAMPLES / "lake.mp4", model="clips"),
    "sound": lambda client: client.classify(audio=SAMPLES / "trumpet.flac", model="sounds"),
    "inpaint": lambda client: client.inpaint(SAMPLES / "padlock.png", SAMPLES / "padlock-mask.png", method="network", steps=3, seed=0),
    "reconstruct": lambda client: client.reconstruct(SAMPLES / "mug.png", SAMPLES / "mug-depth.png", model="reconstruct", fov=30),
    "actions": lambda client: client.actions(SAMPLES / "figures.mp4", detail="fast"),
}


def put_under_load(url: str, scrape_s: float) -> None:
    """Send requests of all kinds twice, several at once, with a scrape in between: many series begin with their first event, and a rate
    needs a sample before it. Raises an error if a task is not answered."""
    _send_every_task(url)
    time.sleep(2 * scrape_s)
    _send_every_task(url)


def _send_every_task(url: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        sent = [pool.submit(_run, url, task) for task in TASKS.values()]
        sent += [pool.submit(_classify_many, url), pool.submit(_follow_job, url), pool.submit(_send_text, url)]
        for one in sent:
            one.result()


def _run(url: str, task: Callable[[Client], object]) -> None:
    with Client(url, timeout=240) as client:
        task(client)


def _classify_many(url: str) -> None:
    body = (SAMPLES / "nepal.png").read_bytes()
    with httpx2.Client(base_url=url, timeout=240) as client:
        for _ in range(100):
            client.post("/v1/classify?model=flags", content=body).raise_for_status()


def _follow_job(url: str) -> None:
    body = (SAMPLES / "kenya.png").read_bytes()
    with httpx2.Client(base_url=url, timeout=240) as client:
        accepted = client.post("/v1/classify?model=flags", content=body, headers={"Prefer": "respond-async"})
        assert accepted.status_code == 202, accepted.text
        events = client.get(f"{accepted.headers['Location']}/events")
        assert "event: done" in events.text


def _send_text(url: str) -> None:
    assert httpx2.post(f"{url}/v1/classify", content=b"no picture", timeout=240).status_code == 415
