"""Section of a README on the quality of inpainting."""

from __future__ import annotations

from collections.abc import Iterator

from models.bundle import BundleSpec
from starters.evaluation.inpainting.plot import FILE
from training.evaluation.cards.figures import figure, packages, table, verdict

_HOLES = {
    "boxes": "boxes of 10 to 25 % of the area",
    "strokes": "one to three strokes of a brush",
    "centre": "the middle, 25 % of the area",
}
_SCORES = {"perceptual": 4, "psnr": 2, "ssim": 3}
"""Number of digits of each score. The first is better the lower it is."""


def section(spec: BundleSpec) -> Iterator[str]:
    quality, data = spec.quality, spec.provenance["data"]
    rows, primary, steps = quality["inpainting"], quality["primary"], quality["primary_steps"]
    drawings = f"{data['drawings']['train']:,} drawings of {packages(data)}"
    yield from ("## Data", "", f"Trained on {drawings}, and on no photographs.", "")
    yield from (
        "## Quality",
        "",
        f"Judged on {quality['images']} drawings, one of each held-out series, none of which was trained on, with the same holes for all.",
        f"The primary figure, fixed before training: {primary['what']}: **{primary['value']:.4f}** ± {2 * primary['standard_error']:.4f}.",
        "",
        "± is two standard errors of the mean over drawings. Perceptual distance is the mean squared difference of unit-length features of",
        "EfficientNet-Lite0 at five depths, over the whole image (lower is better); PSNR and SSIM are of the pixels in the hole (higher is",
        "better). They reward blurred fillings, which are near to everything that could be there.",
        "",
    )
    for kind in dict.fromkeys(row["holes"] for row in rows):
        yield from (f"### Holes: {_HOLES[kind]}", "")
        filled = ((row["name"], *(figure(row[score], digits) for score, digits in _SCORES.items())) for row in rows if row["holes"] == kind)
        yield from table(("filled by", "perceptual distance", "PSNR, dB", "SSIM"), filled)
    yield from (
        "### Who wins where",
        "",
        f"This model at {steps} steps, compared on each drawing with the same hole; a difference counts from two standard errors of the",
        "paired difference on.",
        "",
    )
    others = [row for row in rows if row["key"] != f"uniform {steps}"]
    compared = (
        (row["name"], row["holes"], *(_verdict(row["primary_minus_this"][score], score, digits) for score, digits in _SCORES.items()))
        for row in others
    )
    yield from table(("against", "holes", "perceptual distance", "PSNR", "SSIM"), compared)
    budgets = "; ".join(f"{kind}: {_verdict(gain, 'perceptual', 4)}" for kind, gain in quality["same_budget_minus_one_step"].items())
    yield from (
        "### With the same budget",
        "",
        "The same network, trained on as many samples under the same masks, by diffusion and as a one-step masked autoencoder. Perceptual",
        f"distance of the first minus that of the second: {budgets}.",
        "",
        "## Steps",
        "",
        f"![perceptual distance over denoising steps]({FILE})",
        "",
    )


def _verdict(difference: dict[str, float], score: str, digits: int) -> str:
    return verdict(difference, digits, lower_is_better=score == "perceptual")
