"""Section of a README on the quality of reconstruction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.bundle import BundleSpec
from starters.evaluation.reconstruction.quality import METHODS, NETWORK
from training.evaluation.cards.figures import creators, figure, table, verdict


def section(spec: BundleSpec) -> Iterator[str]:
    found, data = spec.quality["reconstruction"], spec.provenance["data"]
    yield from trained_on(data)
    yield from (
        *creators(data, "- {license}: objects"),
        "",
        "## Quality",
        "",
        f"Judged once, on {found['objects']} objects of categories that were not trained on ({', '.join(found['categories'])}), at most",
        f"{found['views']} views each, with the noise and the holes of a depth sensor. Lengths are in units of the spread of the seen",
        "points. F1 is the harmonic mean of two shares: that of the reconstructed points that are nearer than",
        f"{found['distance']:g} to the true surface, and that of the true surface with a reconstructed point as near. ± is two standard",
        "errors of the mean over objects.",
        "",
        f"The primary figure, fixed before training, is the F1 of `{NETWORK}`: the cells that the network calls occupied, asked in steps",
        f"of {found['spacing']:g} (adaptive). Joined is what the service answers. Extruded are the seen points and the same",
        f"{found['extrusion_depth']:g} farther away, the best depth on objects for choices, with walls between. Occupancy was shifted so",
        "that the best threshold on objects for choices became the service's.",
        "",
    )
    rows = (
        (
            row["name"],
            figure(row["f1"], 3),
            "" if row["name"] == NETWORK else verdict(row["network_minus_this"], 3, lower_is_better=False),
        )
        for row in found["reconstruction"]
        if row["name"] in METHODS
    )
    yield from table(("reconstructed by", "F1", "the network is"), rows)


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
