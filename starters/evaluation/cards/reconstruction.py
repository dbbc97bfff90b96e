"""Section of a README on the quality of reconstruction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.bundle import BundleSpec
from starters.evaluation.reconstruction.scores import BACK, NETWORK, ORACLE, PLAIN
from starters.evaluation.reconstruction.shapes import EXTRUDED
from training.evaluation.cards.figures import creators, figure, table, verdict

SCORES = {"f1": "F1", "precision": "precision", "recall": "recall"}


def section(spec: BundleSpec) -> Iterator[str]:
    found, data = spec.quality["reconstruction"], spec.provenance["data"]
    target, before = found["target"], found["thresholds_before_calibration"]
    yield from trained_on(data)
    yield from (
        *creators(data, "- {license}: objects"),
        "",
        "## Quality",
        "",
        f"Judged once, on {found['objects']} objects of categories that were not trained on ({', '.join(found['categories'])}), at most",
        f"{found['views']} views each, with the noise and the holes of a depth sensor. Lengths are in units of the spread of the seen",
        f"points. Precision is the share of reconstructed points that are nearer than {found['distance']:g} to the true surface, recall",
        "the share of the true surface with a reconstructed point as near, F1 their harmonic mean. ± is two standard errors of the mean",
        "over objects.",
        "",
        f"The primary figure, fixed before training, is the F1 of `{NETWORK}`. Target: {target['f1']:g}, and {target['above_extruded']:g}",
        f"above `{EXTRUDED}`; and colours that nobody saw nearer to the true ones than the nearest seen colour is.",
        f"Met: {_met(target['met'])}.",
        "",
    )
    yield from _tables(found)
    yield from (
        f"`{NETWORK}` are the cells that the network calls occupied, asked in steps of {found['spacing']:g} (adaptive); joined is what the",
        f"service answers; `{PLAIN}` is the same network without a U-Net, trained for as long. `{BACK}`",
        f"joins the seen points with what the U-Net tells to lie behind them, `{ORACLE}` with what is there.",
        f"Extruded are the seen points and the same {found['extrusion_depth']:g} farther away, the best depth on objects for choices, with",
        f"walls between. Occupancy was shifted so that the best thresholds on objects for choices, {before[NETWORK]:.2f} and",
        f"{before[PLAIN]:.2f}, became the service's. Colours are asked of the true surface where nobody saw it; their error is the mean",
        "absolute one of red, green and blue in 0 to 1.",
        "",
    )
    ways = {NETWORK: "network", PLAIN: "without knowing", EXTRUDED: "extruded"}
    rows = ((row["name"], row["objects"], *(f"{row['f1'][way]:.3f}" for way in ways)) for row in found["by_category"])
    yield from table(("category", "objects", *ways.values()), rows)
    if found["continuity"]:
        yield from (
            "### Objects of earlier tests",
            "",
            f"{found['continuity']['objects']} objects on which earlier versions were tested, for continuity alone.",
            "",
        )
        yield from _tables(found["continuity"])


def trained_on(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield the section about rendered training data. data: the provenance's."""
    counted = ", ".join(f"{count} of {category}" for category, count in data["objects"].items())
    yield from (
        "## Data",
        "",
        f"Trained on {data['views']:,} renders of meshes ({counted}), and on no photographs. Meshes and textures come from packages:",
        "",
    )
    rows = ((package["name"], package["version"], package["license"]) for package in data["packages"])
    yield from table(("package", "version", "licence"), rows)


def _tables(part: Mapping[str, Any]) -> Iterator[str]:
    shapes = ((row["name"], *(figure(row[score], 3) for score in SCORES), _compare(row, False)) for row in part["reconstruction"])
    yield from table(("reconstructed by", *SCORES.values(), "the network is"), shapes)
    colours = ((row["name"], figure(row["error"], 3), _compare(row, True)) for row in part["colours"])
    yield from table(("colours by", "error", "the network is"), colours)


def _compare(row: Mapping[str, Any], lower_is_better: bool) -> str:
    return "" if row["name"] == NETWORK else verdict(row["network_minus_this"], 3, lower_is_better=lower_is_better)


def _met(met: Mapping[str, bool]) -> str:
    names = {"f1": "F1", "above_extruded": "above extruded", "colour_below_nearest_seen": "colours"}
    return ", ".join(f"{names[name]} {'yes' if value else 'no'}" for name, value in met.items())
