"""The part of a bundle's README that says how well it fills holes, and who does it better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.bundle import BundleSpec
from training.evaluation.cards import served as served_card
from training.evaluation.filling.plot import FILE
from training.evaluation.filling.report import verdict

_HOLES = {
    "boxes": "boxes of 10 to 25 % of the area",
    "strokes": "one to three strokes of a brush",
    "centre": "the middle, 25 % of the area",
}


def section(spec: BundleSpec) -> Iterator[str]:
    quality = spec.quality
    rows = quality["inpainting"]
    primary, data = quality["primary"], spec.provenance["data"]
    packages = ", ".join(f"{package['name']} {package['version']}" for package in data["packages"])
    yield from (
        "## Data",
        "",
        f"Trained on {data['drawings']['train']:,} drawings of {packages}, and on no photographs.",
        "",
    )
    if "served" in quality:
        yield from served_card.section(quality["served"], spec.fill)
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
        yield from (f"### Holes: {_HOLES[kind]}", "", "| filled by | perceptual distance | PSNR, dB | SSIM |", "|---|---|---|---|")
        for row in rows:
            if row["holes"] == kind:
                yield f"| {row['name']} | {_figure(row['perceptual'], 4)} | {_figure(row['psnr'], 2)} | {_figure(row['ssim'], 3)} |"
        yield ""
    yield from _winners(quality)
    yield from _budgets(quality)
    yield from ("## Steps", "", f"![perceptual distance over denoising steps]({FILE})", "")


def _winners(quality: Mapping[str, Any]) -> Iterator[str]:
    steps = quality["primary_steps"]
    yield from (
        "### Who wins where",
        "",
        f"This model at {steps} steps, compared on each drawing with the same hole; a difference counts from two standard errors of the",
        "paired difference on.",
        "",
        "| against | holes | perceptual distance | PSNR | SSIM |",
        "|---|---|---|---|---|",
    )
    for row in quality["inpainting"]:
        if row["key"] == f"uniform {steps}":
            continue
        cells = [
            f"{verdict(row['primary_minus_this'][score], lower_is_better=score == 'perceptual')}"
            f" ({_signed(row['primary_minus_this'][score], digits)})"
            for score, digits in (("perceptual", 4), ("psnr", 2), ("ssim", 3))
        ]
        yield f"| {row['name']} | {row['holes']} | {' | '.join(cells)} |"
    yield ""


def _budgets(quality: Mapping[str, Any]) -> Iterator[str]:
    cells = [
        f"{kind}: {verdict(difference, lower_is_better=True)} ({_signed(difference, 4)})"
        for kind, difference in quality["same_budget_minus_one_step"].items()
    ]
    yield from (
        "### With the same budget",
        "",
        "The same network, trained on as many samples under the same masks, by diffusion and as a one-step masked autoencoder. Perceptual",
        f"distance of the first minus that of the second: {'; '.join(cells)}.",
        "",
    )


def _figure(measured: Mapping[str, float], digits: int) -> str:
    return f"{measured['value']:.{digits}f} ± {2 * measured['standard_error']:.{digits}f}"


def _signed(measured: Mapping[str, float], digits: int) -> str:
    return f"{measured['value']:+.{digits}f} ± {2 * measured['standard_error']:.{digits}f}"
