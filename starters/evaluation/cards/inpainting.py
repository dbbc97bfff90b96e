"""Section of a README on the quality of inpainting."""

from __future__ import annotations

from collections.abc import Iterator

from models.bundle import BundleSpec
from training.evaluation.cards.figures import figure, packages, table


def section(spec: BundleSpec) -> Iterator[str]:
    quality, data = spec.quality, spec.provenance["data"]
    drawings = f"{data['drawings']['train']:,} drawings of {packages(data)}"
    yield from (
        "## Data",
        "",
        f"Trained on {drawings}, and on no photographs.",
        "",
        "## Quality",
        "",
        f"Evaluated on {quality['images']} drawings, one of each held-out series, none of which was trained on. Each has one hole, a box",
        "of 10 to 25 % of the area. The first row is the primary figure, fixed before training.",
        "",
        "± is two standard errors of the mean over drawings. Perceptual distance is the mean squared difference of unit-length features of",
        "EfficientNet-Lite0 at five depths, over the whole image (lower is better); PSNR is of the pixels in the hole (higher is better).",
        "It rewards blurred fillings, which are near to everything that could be there.",
        "",
    )
    rows = ((row["name"], figure(row["perceptual"], 4), figure(row["psnr"], 2)) for row in quality["inpainting"])
    yield from table(("filled by", "perceptual distance", "PSNR, dB"), rows)
