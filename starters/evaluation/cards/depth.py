"""Section of a README on the quality of depth estimation."""

from __future__ import annotations

from collections.abc import Iterator

from models.bundle import BundleSpec
from starters.evaluation.cards.reconstruction import trained_on
from training.evaluation.cards.figures import creators, table


def section(spec: BundleSpec) -> Iterator[str]:
    found, data = spec.quality["depth"], spec.provenance["data"]
    ratio = found["ratio"]
    yield from trained_on(data)
    yield from (
        *creators(data, "- {license}: objects"),
        "",
        "## Quality",
        "",
        f"Judged once, on {found['objects']} objects of categories that were not trained on, at most {found['views']} views each.",
        "Errors are mean absolute ones of depth over the object, after the scale and shift that fit best, in standard deviations of its",
        "depth: what tells nothing has about 0.8. The inflated outline is the silhouette, blown up as a balloon.",
        "",
        f"The primary figure, fixed before training, is the network's error over that of the inflated outline: **{ratio['value']:.3f}** ±",
        f"{2 * ratio['standard_error']:.3f} (two standard errors). The network is nearer on {found['better']} of the objects.",
        "",
    )
    ways = ("network", "inflated outline")
    yield from table(
        ("category", "objects", *ways),
        ((row["name"], row["objects"], f"{row['network']:.3f}", f"{row['inflated']:.3f}") for row in found["by_category"]),
    )
    yield from ("Two photographs with measured depth, one by one:", "")
    photographs = ((row["name"], f"{row['network']:.3f}", f"{row['inflated']:.3f}") for row in found["photographs"])
    yield from table(("photograph", *ways), photographs)
