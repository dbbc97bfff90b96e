"""`opsin calibrate`: measure what 8-bit integers cost a classifier in accuracy, and write it into its bundle."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opsin.cli.engine import lacks, require_engine
from opsin.cli.exits import Failure, Misuse
from opsin.cli.pixels import at_model_size

if TYPE_CHECKING:
    from models.bundle import BundleSpec
    from models.spec import Int8

BOUND = 0.005
FEWEST = 300
"""Images: with fewer, not even one label that changes would be sure to be less than one in a hundred."""


def calibrate(
    bundle: Annotated[Path, typer.Argument(metavar="DIR/NAME/VERSION", help="The bundle's folder.", show_default=False)],
    images: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Images that it was not trained on, in a folder for each label.", show_default=False)
    ],
    bound: Annotated[float, typer.Option(min=0, max=1, help="Accuracy that a rung may lose to be served in int8.")] = BOUND,
    force: Annotated[bool, typer.Option("--force", help=f"Measure on fewer than {FEWEST} images, too.")] = False,
) -> None:
    """Measure a classifier's accuracy in 8-bit integers, rung by rung, and write it into its bundle.json.

    Workers that start afterwards serve in int8, where that is at least 1.3 times as fast as PyTorch, those rungs that lose no more than the
    bound and whose labels are sure to agree with float32's in 99 % of the images (one-sided 95 % bound of Clopper and Pearson). The
    bundle's digest changes with its bundle.json.
    """
    require_engine("calibrate")
    try:
        import numpy as np

        from models.bundle import BundleError, read, rewrite
        from models.onnx.backend import GraphError, has_graph
        from models.onnx.backend import calibrate as measure
        from models.spec import LEAST_AGREEMENT
    except ModuleNotFoundError as error:
        raise lacks(error) from error
    try:
        found = read(bundle)
        spec = found.spec
        if not has_graph(spec):
            raise Misuse(f"{spec.id}: architecture {spec.architecture} cannot be served in int8 for task {spec.task}")
        labelled = list(_labelled(images, spec))
        if len(labelled) < FEWEST and not force:
            raise Misuse(
                f"--images: {images} holds {len(labelled)} images in folders of labels; at least {FEWEST} are needed to know whether "
                f"{LEAST_AGREEMENT:.0%} of the labels stay the same (--force measures all the same)"
            )
        if not labelled:
            raise Misuse(f"--images: {images} holds no images in folders of labels")
        pixels = np.stack(at_model_size((path for path, _ in labelled), spec, "--images"))
        int8 = measure(found, pixels, np.array([label for _, label in labelled]), bound)
        rewrite(found, spec.model_copy(update={"int8": int8}))
    except (BundleError, GraphError, OSError) as error:
        raise Failure(f"calibrate: {error}") from error
    for line in _lines(int8):
        typer.echo(line)
    typer.echo(f"written      {bundle / 'bundle.json'}: {int8.images} images, bound {bound}; workers read it when they start")


def _lines(int8: Int8) -> Iterator[str]:
    """A line for each rung; figures with their standard errors."""
    for name, found in int8.rungs.items():
        one, other = (f"{share:.4f} ± {math.sqrt(share * (1 - share) / int8.images):.4f}" for share in (found.float32, found.int8))
        loss = f"{found.float32 - found.int8:.4f} ± {found.loss_error or 0:.4f}"
        same = f"{found.agreement or 0:.2%}, at least {found.agreement_bound or 0:.2%}"
        refusal = int8.refusal(name)
        verdict = "served" if refusal is None else f"not served: {refusal}"
        yield f"{name:<12} float32 {one}  int8 {other}  loss {loss}  same labels {same}  {verdict}"


def _labelled(folder: Path, spec: BundleSpec) -> Iterator[tuple[Path, int]]:
    """Images below FOLDER/LABEL/ and the index of their label. Raises Misuse."""
    if not folder.is_dir():
        raise Misuse(f"--images: {folder} is no folder")
    places = {label: index for index, label in enumerate(spec.labels)}
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        if part.name not in places:
            raise Misuse(f"--images: {part} is named after no label of {spec.id}; `opsin bundles show` lists them")
        yield from ((path, places[part.name]) for path in sorted(part.iterdir()) if path.is_file())
