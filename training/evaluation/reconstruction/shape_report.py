"""Report of the scores of reconstructions: the `quality` of a bundle, with standard errors over objects and paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.evaluation import metrics
from training.evaluation.reconstruction.shapes import CARVED, EXTRUDED, JOINED, SEEN, Contest, Found, name_of, of_objects, views_of

SCORES = ("f1", "precision", "recall")


def summary(contest: Contest, found: Mapping[int, Found], threshold: float, depth: float) -> dict[str, Any]:
    """threshold: what was the best one on validation objects, before it was moved to the primary one."""
    settings = contest.settings
    primary = name_of(settings.thresholds[0])
    ways = [SEEN, EXTRUDED, CARVED, JOINED, *(name_of(value) for value in settings.thresholds)]
    scores = {(way, score): of_objects(contest, found, way, score) for way in ways for score in SCORES}
    names = list(views_of(contest.objects, settings.views))
    return {
        "reconstruction": [
            {
                "name": way,
                **{score: metrics.mean(scores[way, score]).to_json() for score in SCORES},
                "joined_minus_this": {score: metrics.mean(scores[JOINED, score] - scores[way, score]).to_json() for score in SCORES},
                "primary_minus_this": {score: metrics.mean(scores[primary, score] - scores[way, score]).to_json() for score in SCORES},
            }
            for way in ways
        ],
        "primary": {
            "what": f"F1 at a distance of {settings.distance:g}, occupancy above {settings.thresholds[0]:g}",
            "way": primary,
            **metrics.mean(scores[primary, "f1"]).to_json(),
        },
        "by_object": [
            {
                "name": name,
                "category": contest.objects.categories[name],
                "f1": {way: round(float(scores[way, "f1"][number]), 4) for way in (JOINED, primary, SEEN, CARVED)},
            }
            for number, name in enumerate(names)
        ],
        "objects": len(names),
        "views": len(found),
        "distance": settings.distance,
        "spacing": settings.spacing,
        "mode": settings.mode,
        "extent": contest.space.extent,
        "extrusion_depth": depth,
        "threshold_before_calibration": round(threshold, 4),
    }
