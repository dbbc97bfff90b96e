"""`opsin calibrate`: measure what 8-bit integers cost a classifier in accuracy, and write it into its bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opsin.cli.engine import lacks, require_engine
from opsin.cli.exits import Failure, Misuse

if TYPE_CHECKING:
    from models.bundle import BundleSpec

BOUND = 0.005
FEWEST = 20
"""Images: fewer tell nothing about a loss of a percent."""


def calibrate(
    bundle: Annotated[Path, typer.Argument(metavar="DIR/NAME/VERSION", help="The bundle's folder.", show_default=False)],
    images: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Images that it was not trained on, in a folder for each label.", show_default=False)
    ],
    bound: Annotated[float, typer.Option(min=0, max=1, help="Accuracy that a rung may lose to be served in int8.")] = BOUND,
) -> None:
    """Measure a classifier's accuracy in 8-bit integers, rung by rung, and write it into its bundle.json.

    Workers that start afterwards serve in int8 those rungs that lose no more than the bound, where that is at least 1.3 times as fast as
    PyTorch. The bundle's digest changes with its bundle.json.
    """
    require_engine("calibrate")
    try:
        import numpy as np

        from models.bundle import BundleError, read, rewrite
        from models.onnx_backend import GraphError, has_graph
        from models.onnx_backend import calibrate as measure
        from server.media.images import Decoder, ImageError, to_model_size
        from server.settings import Settings
    except ModuleNotFoundError as error:
        raise lacks(error) from error
    try:
        found = read(bundle)
        spec, limit = found.spec, Settings().max_pixels
        if not has_graph(spec):
            raise Misuse(f"{spec.id}: architecture {spec.architecture} cannot be served in int8 for task {spec.task}")
        pixels, labels = [], []
        for path, label in _labelled(images, spec):
            try:
                with Decoder(limit).decoded(path.read_bytes()) as picture:
                    pixels.append(to_model_size(picture, spec.pictures, limit))
            except ImageError as error:
                raise Misuse(f"--images: {path}: {error}") from error
            labels.append(label)
        if len(pixels) < FEWEST:
            raise Misuse(f"--images: {images} holds {len(pixels)} images in folders of labels; at least {FEWEST} are needed")
        int8 = measure(found, np.stack(pixels), np.array(labels), bound)
        rewrite(found, spec.model_copy(update={"int8": int8}))
    except (BundleError, GraphError, OSError) as error:
        raise Failure(f"calibrate: {error}") from error
    for name, accuracies in int8.rungs.items():
        verdict = "served" if int8.allows(name) else "not served"
        typer.echo(f"{name:<12} float32 {accuracies.float32:.4f}  int8 {accuracies.int8:.4f}  {verdict}")
    typer.echo(f"written      {bundle / 'bundle.json'}: {int8.images} images, bound {bound}; workers read it when they start")


def _labelled(folder: Path, spec: BundleSpec) -> Iterator[tuple[Path, int]]:
    """Images below FOLDER/LABEL/ and the index of their label. Raises Misuse."""
    if not folder.is_dir():
        raise Misuse(f"--images: {folder} is no folder")
    places = {label: index for index, label in enumerate(spec.labels)}
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        if part.name not in places:
            raise Misuse(f"--images: {part} is named after no label of {spec.id}; `opsin bundles show` lists them")
        yield from ((path, places[part.name]) for path in sorted(part.iterdir()) if path.is_file())
