"""Report of the scores: the `quality` of a bundle, with standard errors and paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starters.evaluation.inpainting.settings import Hole
from starters.evaluation.inpainting.step_counts import SCORES, FillingEvaluation, Rows
from training.evaluation import metrics


def summary(contest: FillingEvaluation, results: Mapping[tuple[str, Hole], Rows]) -> dict[str, Any]:
    """Summarise the results of all entrants."""
    settings = contest.settings
    primary = f"uniform {settings.primary_steps}"
    rows = []
    for (key, kind), scored in results.items():
        entrant = next(entrant for entrant in contest.entrants if entrant.key == key)
        rows.append(
            {
                "key": key,
                "name": entrant.filler.name,
                "holes": kind.value,
                **{score: metrics.mean(scored[:, column]).to_json() for column, score in enumerate(SCORES)},
                "primary_minus_this": {
                    score: metrics.mean(results[primary, kind][:, column] - scored[:, column]).to_json()
                    for column, score in enumerate(SCORES)
                },
            }
        )
    first = settings.holes[0]
    return {
        "inpainting": rows,
        "primary": {
            "what": f"perceptual distance, {first.value}, {settings.primary_steps} steps of ddim",
            **metrics.mean(results[primary, first][:, 0]).to_json(),
        },
        "same_budget_minus_one_step": {
            kind.value: metrics.mean(results["same budget", kind][:, 0] - results["one-step MAE", kind][:, 0]).to_json()
            for kind in settings.holes
        },
        "primary_steps": settings.primary_steps,
        "images": len(contest.drawings),
    }
