"""Plots say what the benchmarks wrote, and those in the documentation are the ones that their figures make."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import machine, plots

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / plots.FOLDER
RUN = {
    "machine": {"cpu": "A <fast> CPU", "cpus": 4, "flags": ["avx2", "avx512_bf16"]},
    "command": "python -m benchmarks.x --quick",
    "day": "2026-01-02",
}


def words(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def bars(svg: str, colour: int) -> list[dict[str, str]]:
    return [
        element.attrib for element in ElementTree.fromstring(svg).iter() if element.get("class") == f"c{colour}" and element.get("height")
    ]


def burst(clients: int, per_second: float, **timing: float) -> dict[str, Any]:
    parts = {"prepare_ms": 1.0, "queue_ms": 1.0, "batch_wait_ms": 1.0, "inference_ms": 5.0, "total_ms": 10.0} | timing
    return {"clients": clients, "per_second": per_second, "batch_size": 2.5, "latency_ms": {"p50": 11.0, "p99": 30.0}, "timing": parts}


def serving() -> Mapping[str, Any]:
    closed = [burst(1, 10.0), burst(8, 40.0)]
    return {**RUN, "open": {"closed": closed, "open": {"0.5": burst(0, 20.0, queue_ms=4.0, total_ms=13.0)}}}


def test_a_plot_names_machine_command_and_day() -> None:
    drawn = words(plots.batching(serving()))
    assert "A <fast> CPU, 4 CPUs, avx2; 2026-01-02" in drawn
    assert "python -m benchmarks.x --quick" in drawn


def test_bars_are_as_long_as_what_they_stand_for() -> None:
    one, eight = bars(plots.batching(serving()), 0)
    assert float(eight["height"]) / float(one["height"]) == pytest.approx(4, abs=0.05)


def test_phases_and_what_is_left_fill_a_request() -> None:
    drawn = plots.request(serving())
    _, alone, _ = bars(drawn, 4)
    _, model, _ = bars(drawn, 3)
    assert float(alone["width"]) / float(model["width"]) == pytest.approx(2 / 5, abs=0.01)
    assert "50% of capacity" in words(drawn)


def test_refused_and_answered_requests_are_counted_separately() -> None:
    answers = [[0.5, 0.1, 200], [1.0, 3.0, 200], [1.5, 2.0, 503]]
    drawn = plots.plot_killed({**RUN, "killed": {"at_s": 0.9, "rate": 10.0, "answers": answers}})
    assert "× 503" in words(drawn)
    assert any("2 were answered, 1 were not" in text for text in words(drawn))
    assert not any("not answers" in text for text in words(drawn))


def test_the_recorded_command_omits_its_output_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["x", "bundle", "--json", "/elsewhere/x.json", "--most", "4", "--json=y"])
    assert machine.result_head("python -m benchmarks.x")["command"] == "python -m benchmarks.x bundle --most 4"


@pytest.mark.parametrize("name", plots.PLOTS)
def test_the_documentation_shows_what_was_measured(name: str) -> None:
    source, draw = plots.PLOTS[name]
    measured = json.loads((FOLDER / source).read_text(encoding="utf-8"))
    assert draw(measured) == (FOLDER / f"{name}.svg").read_text(encoding="utf-8"), "python -m benchmarks.plots draws them again"
    assert f"pictures/plots/{name}.svg" in (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    assert re.fullmatch(r"python -m benchmarks\.\w+( .*)?", measured["command"])
