"""The part of a bundle's README that says how well it reconstructs, and what does it better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.bundle import BundleSpec
from training.evaluation.cards.figures import figure, table, verdict
from training.evaluation.reconstruction.shapes import JOINED

SCORES = {"f1": "F1", "precision": "precision", "recall": "recall"}


def section(spec: BundleSpec) -> Iterator[str]:
    quality = spec.quality
    primary, extent = quality["primary"], f"{quality['extent']:g}"
    before, after = f"{quality['threshold_before_calibration']:.2f}", primary["way"].rsplit(" ", 1)[-1]
    yield from trained_on(spec.provenance["data"])
    yield from (
        "## Quality",
        "",
        f"Judged on {quality['objects']} objects of categories that were not trained on, {quality['views']} views in all, with the noise",
        "and the holes of a depth sensor. Lengths are in units of the spread of the seen points. A grid of spacing",
        f"{quality['spacing']:g} is asked from -{extent} to {extent} on each axis ({quality['mode']}). Precision is the share of",
        f"reconstructed points that are nearer than {quality['distance']:g} to the true surface, recall the share of the true surface",
        "with a reconstructed point as near, F1 their harmonic mean.",
        f"The primary figure, fixed before training: {primary['what']}: **{primary['value']:.3f}** ± {2 * primary['standard_error']:.3f}.",
        "",
    )
    rows = ((row["name"], *(figure(row[score], 3) for score in SCORES)) for row in quality["reconstruction"])
    yield from table(("reconstructed by", *SCORES.values()), rows)
    yield from (
        "± is two standard errors of the mean over objects. Extruded are the seen points, the same moved away from the camera by",
        f"{quality['extrusion_depth']:g}, the best depth on validation objects, and walls between both; carved is what of it is neither",
        "before the seen points nor outside their outline. Joined is what the service answers: the surface that was seen, and behind it",
        "one wall of the network's cells, both as points that are spread evenly. MCC are the cells that the network calls occupied; its",
        f"occupancy was shifted so that the best threshold on validation objects, {before}, became {after}.",
        "",
        "### Who wins where",
        "",
        "Compared on each object; a difference counts from two standard errors of the paired difference on.",
        "",
    )
    yield from table(("", "against", *SCORES.values()), _winners(quality))
    ways = list(quality["by_object"][0]["f1"])
    yield from ("### F1 of each object", "")
    objects = ((row["name"], row["category"], *(f"{row['f1'][way]:.3f}" for way in ways)) for row in quality["by_object"])
    yield from table(("object", "category", *ways), objects)


def trained_on(data: Mapping[str, Any]) -> Iterator[str]:
    """The section of a card about renders. data: of the provenance."""
    counted = ", ".join(f"{count} of {category}" for category, count in data["objects"].items())
    yield from (
        "## Data",
        "",
        f"Trained on {data['views']:,} renders of meshes ({counted}), and on no photographs. Meshes and textures come from packages:",
        "",
    )
    rows = ((package["name"], package["version"], package["license"]) for package in data["packages"])
    yield from table(("package", "version", "licence"), rows)


def _winners(quality: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for subject, key in ((JOINED, "joined_minus_this"), (quality["primary"]["way"], "primary_minus_this")):
        for row in quality["reconstruction"]:
            if row["name"] != subject:
                yield subject, row["name"], *(verdict(row[key][score], 3, lower_is_better=False) for score in SCORES)
