"""`python -m training.evaluation`: judge a trained recipe that fills holes, whole or in pieces, reconstructs, or names what it is given."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from models import bundle
from models.bundle import BundleError
from training import goal, phases, recipe
from training.command import Options
from training.errors import TrainingError
from training.evaluation import quality
from training.evaluation.cards import card as model_card
from training.evaluation.filling import inpainting as judge
from training.evaluation.filling import plot, report
from training.evaluation.quality_by_split import KINDS
from training.evaluation.reconstruction import shape_report, shapes
from training.evaluation.reconstruction.turntable import network_of
from training.evaluation.settings import ClipsQuality, ReconstructionQuality, Split
from training.phases import Workshop
from training.recipe import Recipe


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parse(arguments)
    try:
        _judge(given)
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluation",
        description="Fill holes of held-out drawings, or reconstruct held-out objects, in every way that is compared. What was stopped goes"
        " on; `opsin train` uses the rows.",
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("changes", nargs="*", metavar="FIELD=VALUE", help="overrides, such as release.quality.images=8")
    parser.add_argument("--runs", type=Path, default=Options.runs, help="where the phases were trained (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Options.cache, help="downloaded and decoded data (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="judge this bundle, which reconstructs, and renew its card")
    parser.add_argument("--only", default="", help="part of a name: fill holes in these ways alone, such as `Telea` or `100 steps`")
    parser.add_argument("--phase", help="judge the network of this phase, not that of the release")
    parser.add_argument(
        "--split",
        type=Split,
        choices=list(Split),
        default=Split.VAL,
        help="of pictures to be painted, flags to be restored, objects whose depth is told or that are reconstructed, or drawings, sounds"
        " and camera moves to be named (default: val)",
    )
    parser.add_argument("--batch", type=int, default=32, help="drawings at a time (default: %(default)s)")
    return parser.parse_intermixed_args(arguments)


def _judge(given: argparse.Namespace) -> None:
    plan = recipe.read(given.recipe, tuple(given.changes))
    if plan.release is None:
        raise TrainingError("release: the recipe makes no bundle, so there is nothing to judge")
    shop = Workshop(given.runs / f"{plan.name}-{plan.version}", given.cache, torch.device("cpu"))
    folder = shop.runs / judge.FOLDER
    if given.bundle:
        _judge_again(given.bundle, plan, shop)
        return
    released = goal.released_phase(plan)
    labels = phases.source_of(plan, released, shop.cache).labels if isinstance(plan.release.quality, ClipsQuality) else ()
    network = phases.trained_network(plan, given.phase or released.name, labels, shop)
    if kind := KINDS.get(type(plan.release.quality)):
        kind.judge(plan, plan.release.quality, network, given.split, shop)
        print(f"wrote {quality.judged_file(shop, kind.name, given.split)}")
        return
    if isinstance(plan.release.quality, ReconstructionQuality):
        measured = quality.of_reconstruction(plan, plan.release.quality, network, shop).quality
    else:
        contest = judge.prepare(plan, quality.rounded(network), shop)
        results = judge.run(contest, given.only, given.batch)
        if given.only:
            return
        measured = report.summary(contest, results)
        (folder / plot.FILE).write_text(plot.draw(measured), encoding="utf-8")
    (folder / "quality.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {folder / 'quality.json'}")


def _judge_again(path: Path, plan: Recipe, shop: Workshop) -> None:
    """Write what a bundle's weights score now into the bundle, whose occupancy was calibrated when it was made."""
    try:
        found = bundle.read(path)
        network = network_of(found)
    except BundleError as error:
        raise TrainingError(str(error)) from error
    before, contest = found.spec.quality, shapes.prepare(plan, network, shop)
    depth = before["extrusion_depth"]
    measured = shape_report.summary(contest, shapes.run(contest, depth), before["threshold_before_calibration"], depth)
    spec = found.spec.model_copy(update={"quality": measured})
    (path / bundle.SPEC_FILE).write_bytes(spec.to_bytes())
    (path / "README.md").write_text(model_card.render(spec), encoding="utf-8")
    print(f"wrote {path / bundle.SPEC_FILE} and its README.md")


if __name__ == "__main__":
    sys.exit(main())
