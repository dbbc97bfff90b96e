"""Report of the scores of reconstructions: means over objects with standard errors, paired differences, and the target."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from models.arrays import Float64Array
from starters.data.renders.scenes import RenderedScenes
from starters.evaluation.reconstruction.scores import COLOURED, NEAREST, NETWORK, WAYS, Calibration, ReconstructionScores
from starters.evaluation.reconstruction.settings import ReconstructionSettings
from starters.evaluation.reconstruction.shapes import EXTRUDED, views_of
from training.evaluation import metrics
from training.evaluation.settings import DataSplit

SCORES = ("f1", "precision", "recall")


def report(
    settings: ReconstructionSettings,
    chosen: Calibration,
    source: RenderedScenes,
    rows: Mapping[int, ReconstructionScores],
    split: DataSplit,
) -> dict[str, Any]:
    """Report a split: of the test the primary and the other categories separately, of validation all categories together."""
    views = views_of(source, settings.views)
    categories: dict[str, list[str]] = defaultdict(list)
    for name in views:
        categories[source.categories[name]].append(name)
    others = [category for category in sorted(categories) if split is DataSplit.TEST and category not in settings.primary]
    primary = [category for category in sorted(categories) if category not in others]

    def part(names: Sequence[str]) -> dict[str, Any]:
        return _part([[rows[index] for index in views[name]] for name in names])

    found = {
        "split": split.value,
        "views": settings.views,
        "distance": settings.distance,
        "spacing": settings.spacing,
        "extrusion_depth": chosen.depth,
        "thresholds_before_calibration": {name: round(value, 4) for name, value in chosen.thresholds.items()},
        "categories": primary,
        **part([name for category in primary for name in categories[category]]),
        "by_category": [
            {"name": category, "objects": len(categories[category]), **_f1([[rows[index] for index in views[name]] for name in names])}
            for category, names in sorted(categories.items())
        ],
        "continuity": {"categories": others, **part([name for category in others for name in categories[category]])} if others else None,
    }
    return found | {"target": _target(settings, found)}


def _part(objects: Sequence[Sequence[ReconstructionScores]]) -> dict[str, Any]:
    scores = {(way, score): _object_scores(objects, way, score) for way in WAYS for score in SCORES}
    colours = {way: _errors(objects, way) for way in COLOURED}
    return {
        "objects": len(objects),
        "reconstruction": [
            {
                "name": way,
                **{score: metrics.mean(scores[way, score]).to_json() for score in SCORES},
                "network_minus_this": metrics.mean(scores[NETWORK, "f1"] - scores[way, "f1"]).to_json(),
            }
            for way in WAYS
        ],
        "colours": [
            {
                "name": way,
                "error": metrics.mean(colours[way]).to_json(),
                "network_minus_this": metrics.mean(colours[NETWORK] - colours[way]).to_json(),
            }
            for way in COLOURED
            if len(colours[way])
        ],
    }


def _object_scores(objects: Sequence[Sequence[ReconstructionScores]], way: str, score: str) -> Float64Array:
    """Average a score over the views of each object: (objects,)."""
    return np.array([np.mean([getattr(row.found[way], score) for row in rows]) for rows in objects])


def _errors(objects: Sequence[Sequence[ReconstructionScores]], way: str) -> Float64Array:
    """Average colour errors over the views of each object, fully visible objects left out: (objects,)."""
    return np.array([mean for rows in objects for mean in _mean_of(row.colours[way] for row in rows if row.colours)])


def _mean_of(values: Iterator[float]) -> Iterator[float]:
    present = list(values)
    if present:
        yield float(np.mean(present))


def _f1(objects: Sequence[Sequence[ReconstructionScores]]) -> dict[str, dict[str, float]]:
    return {"f1": {way: round(float(_object_scores(objects, way, "f1").mean()), 4) for way in WAYS}}


def _target(settings: ReconstructionSettings, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe's targets, and whether they are met."""
    ways = {row["name"]: row for row in found["reconstruction"]}
    colours = {row["name"]: row["error"]["value"] for row in found["colours"]}
    f1, above = ways[NETWORK]["f1"]["value"], ways[EXTRUDED]["network_minus_this"]["value"]
    return {
        "f1": settings.f1,
        "above_extruded": settings.above,
        "met": {
            "f1": f1 >= settings.f1,
            "above_extruded": above >= settings.above,
            "colour_below_nearest_seen": bool(colours) and colours[NETWORK] < colours[NEAREST],
        },
    }
