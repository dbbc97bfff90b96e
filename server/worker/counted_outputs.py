"""Metrics of what single tasks answer: points of scenes that were asked, and seconds of videos by stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from models.actions.account import STAGES
from server.telemetry.metrics import WorkerMetrics


def count_outputs(metrics: WorkerMetrics, bundle: str, outputs: Mapping[str, NDArray[Any]]) -> None:
    """Add what one job's outputs tell, if its task counts anything. bundle: `name@version`."""
    labels = bundle.split("@")
    if "queries" in outputs:
        asked, grid = outputs["queries"].tolist()
        metrics.queries.labels(*labels).inc(asked)
        metrics.queries_saved.labels(*labels).inc(max(0, grid - asked))
        metrics.levels.labels(*labels).inc(int(outputs["levels"]))
        metrics.points.labels(*labels).inc(int(outputs["points"]))
    if "counts" in outputs:
        for counter, count in zip(metrics.watched, outputs["counts"].tolist(), strict=True):
            counter.labels(*labels).inc(count)
        for stage, seconds in zip(STAGES, outputs["stages"].tolist(), strict=True):
            metrics.watched_stages.labels(*labels, stage).inc(seconds)
