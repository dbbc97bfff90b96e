"""Measure the accuracy of a flags bundle in 8-bit integers and write it into the bundle: `python -m starters.make.flags_int8 DIR`.

Measured as `opsin calibrate` does, on the validation images and the clean and distorted test images of the recipe together. Weights stay
unchanged.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from models.bundle import Bundle, BundleError, read, replace_spec
from models.bundle_schema import MIN_AGREEMENT, Int8
from models.systems.onnx.classifier_backend import GraphError, calibrate
from starters.data.images import flags
from starters.evaluation import flags as evaluation
from starters.evaluation.flags import FlagsQuality, FlagTask
from training import recipe
from training.errors import TrainingError

BOUND = 0.005
"""Maximum loss of accuracy, the default of `opsin calibrate`."""
HEADING = "## 8-bit integers"


def measure(bundle: Bundle, path: Path, cache: Path) -> Int8:
    """Measure each rung, and merging off, in float32 and int8. Raises TrainingError, BundleError and GraphError."""
    plan = recipe.read(path)
    settings, data, preprocess = plan.release.quality if plan.release else None, plan.data, plan.preprocess
    if not isinstance(settings, FlagsQuality) or not isinstance(data, flags.Flags) or preprocess is None:
        raise TrainingError(f"{path}: is not a recipe of flags")
    parts = evaluation.evaluated_on(FlagTask(data, preprocess, settings.ladder, plan.seed), flags.build(data, cache))
    pixels, labels = np.concatenate([part.pixels for part in parts]), np.concatenate([part.labels for part in parts])
    return calibrate(bundle, pixels, labels, BOUND)


def with_section(readme: str, int8: Int8) -> str:
    """Return a bundle's README with its section about 8-bit integers at the end."""
    rows = [
        f"| {name} | {each.float32:.4f} | {each.int8:.4f} | {each.agreement or 0:.2%} | {'yes' if int8.allows(name) else 'no'} |"
        for name, each in int8.rungs.items()
    ]
    before = readme.partition(HEADING)[0].rstrip()
    intro = (
        f"Accuracy on {int8.images} pictures, those of validation and the clean and distorted test pictures together\n"
        f"(`python -m starters.make.flags_int8`). Workers may serve in 8-bit integers the rungs that lose no more than {int8.bound}\n"
        f"and whose labels are float32's in {MIN_AGREEMENT:.0%} of all pictures,\n"
        "by the lower end of the one-sided 95 % interval of Clopper and Pearson."
    )
    return "\n".join(
        [before, "", HEADING, "", intro, "", "| rung | float32 | int8 | same label | may be served |", "|---|---|---|---|---|", *rows, ""]
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m starters.make.flags_int8", description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--recipe", type=Path, default=Path("starters/recipes/flags.yaml"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/data"), help="downloaded and decoded data (default: %(default)s)")
    options = parser.parse_args()
    try:
        bundle = read(options.bundle)
        int8 = measure(bundle, options.recipe, options.cache)
        replace_spec(bundle, bundle.spec.model_copy(update={"int8": int8}))
        readme = bundle.path / "README.md"
        readme.write_text(with_section(readme.read_text() if readme.exists() else "", int8))
    except (TrainingError, BundleError, GraphError, OSError) as error:
        raise SystemExit(f"flags_int8: {error}") from error
    for name, accuracies in int8.rungs.items():
        verdict = "served" if int8.allows(name) else "not served"
        print(f"{name:<12} float32 {accuracies.float32:.4f}  int8 {accuracies.int8:.4f}  {verdict}")
    print(f"{int8.images} pictures, bound {int8.bound}")


if __name__ == "__main__":
    main()
