"""`opsin compare`: compare a classifier's logits with those of its original code, and write the result into its bundle."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from opsin.cli.bundles.labelled_images import load_at_model_size
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.requirements import requires_extra

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.bundle import Bundle
    from models.loading import LoadedModel
    from models.merge_schedule import MergeSchedule
    from models.systems.onnx.classifier_backend import OnnxClassifier

    Format = Literal["float32", "bfloat16", "int8"]
    ComputeLogits = Callable[[NDArray[Any], MergeSchedule], NDArray[Any]]

MAX_RELATIVE_DIFFERENCE = 1e-2
"""Maximum difference of float32's logits without merging, as a share of the largest logit, for equal networks."""
BATCH_SIZE = 8
"""Number of images in a batch, as in the service: int8 quantises activations by the range of a batch."""


def compare(
    bundle: Annotated[Path, typer.Argument(metavar="DIR/NAME/VERSION", help="The folder of a classifier's bundle.")],
    pictures: Annotated[Path, typer.Option(metavar="DIR", help="Folder of images.")],
    scores: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Logits of the original code: .npy or CSV, a row for each image in the order of their names. Rows of a CSV may start "
            "with the names.",
        ),
    ],
) -> None:
    """Compare a bundle's logits with those of the original code, by number format and merging.

    float32 without merging shows whether the preprocessing is equal, the others the cost of speed. The result is written into bundle.json
    as quality.comparison, which changes the bundle's digest; GET /v1/models shows it. If float32 without merging differs by more than 1 %
    of the largest logit or in a label, nothing is written and the exit code is 1.
    """
    with requires_extra("server"):
        import numpy as np

        from models.bundle import BundleError, read, replace_spec
        from models.bundle_schema import Comparison, FormatComparison
        from models.merge_schedule import MergeSchedule
    try:
        original = read(bundle)
        spec = original.spec
        if spec.task != "classify":
            raise UsageError(f"{spec.id}: its task is {spec.task}; only classifiers of images can be compared")
        files = _list_images(pictures)
        reference = _read_scores(scores, [file.name for file in files], len(spec.labels))
        pixels = np.stack(load_at_model_size(files, spec, "--pictures"))
        schedules = {"off": MergeSchedule.off()} | {rung.name: rung.merge for rung in spec.ladder}
        typer.echo(f"{'format':<9} {'merging':<10} {'largest difference':>18}  labels that agree")
        results = []
        for format_, compute in _formats(original, pixels[:2]):
            for name, schedule in schedules.items():
                computed = np.concatenate(
                    [compute(pixels[start : start + BATCH_SIZE], schedule) for start in range(0, len(pixels), BATCH_SIZE)]
                )
                difference = float(np.abs(computed - reference).max())
                same_labels = int((computed.argmax(axis=1) == reference.argmax(axis=1)).sum())
                typer.echo(f"{format_:<9} {name:<10} {difference:>18.2e}  {same_labels} of {len(computed)}")
                max_difference = float(f"{difference:.2e}") if math.isfinite(difference) else None
                if (format_, name) == ("float32", "off"):
                    _check_same(spec.id, difference, reference, same_labels)
                results.append(FormatComparison(format=format_, merging=name, max_difference=max_difference, same_labels=same_labels))
    except (BundleError, OSError) as error:
        raise CommandError(f"compare: {error}") from error
    comparison = Comparison(images=len(pixels), results=results).model_dump()
    try:
        spec = replace_spec(original, spec.model_copy(update={"quality": {**spec.quality, "comparison": comparison}})).spec
    except BundleError as error:
        raise CommandError(f"compare: {error}") from error
    except OSError as error:
        raise CommandError(f"compare: {bundle}: the result could not be written into bundle.json ({error.strerror or error})") from error
    typer.echo(f"written   {bundle / 'bundle.json'}, digest {spec.digest()[:12]}; workers read it when they start")


def _check_same(bundle_id: str, difference: float, reference: NDArray[Any], same_labels: int) -> None:
    """Raise CommandError if logits in float32 without merging are not those of the original code."""
    import numpy as np

    bound = MAX_RELATIVE_DIFFERENCE * float(np.abs(reference).max())
    if difference <= bound and same_labels == len(reference):
        return
    raise CommandError(
        f"compare: {bundle_id}: in float32 without merging {len(reference) - same_labels} of {len(reference)} labels differ, and logits by "
        f"up to {difference:.2e}, more than {bound:.2e}: the images, their order or the preprocessing differ (see `transform` in the "
        "output of `opsin bundles show`); nothing is written"
    )


def _formats(bundle: Bundle, sample: NDArray[Any]) -> Iterator[tuple[Format, ComputeLogits]]:
    """Yield the number formats that the service may run a bundle in, with functions that compute logits in them."""
    import torch

    from models.loading import load
    from models.registry import architectures
    from models.systems.onnx.classifier_backend import open_classifier

    formats: dict[Format, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    exact = load(bundle)
    if bundle.spec.task in architectures()[bundle.spec.architecture].precise_tasks or next(exact.model.parameters(), None) is None:
        del formats["bfloat16"]
    for name, dtype in formats.items():
        yield name, partial(compute_logits, exact if name == "float32" else load(bundle, dtype=dtype, packed=True), exact.depth)
    if bundle.spec.int8 is not None:
        yield "int8", partial(compute_logits, open_classifier(bundle, None, "int8", 1, {"pixels": sample}, exact), exact.depth)


def compute_logits(model: LoadedModel | OnnxClassifier, depth: int, batch: NDArray[Any], merge: MergeSchedule) -> NDArray[Any]:
    return model.forward({"pixels": batch}, {"merge": merge.expand(depth)})["logits"]


def _list_images(folder: Path) -> list[Path]:
    """Return the images of a folder. Raises UsageError."""
    if not folder.is_dir():
        raise UsageError(f"--pictures: {folder} is not a folder")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not files:
        raise UsageError(f"--pictures: {folder} has no images")
    return files


def _read_scores(file: Path, names: Sequence[str], classes: int) -> NDArray[Any]:
    """Read logits float64 (images, classes) in the order of `names`. Raises UsageError."""
    import numpy as np

    if not file.exists():
        raise UsageError(f"--scores: {file}: no such file")
    try:
        scores = np.load(file, allow_pickle=False) if file.suffix == ".npy" else _read_csv(file, names)
        scores = np.asarray(scores, np.float64)
    except (OSError, ValueError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--scores: {file}: cannot be read as numbers ({error})") from error
    if scores.shape != (len(names), classes):
        shape = " × ".join(map(str, scores.shape))
        raise UsageError(f"--scores: {file}: has {shape} numbers, but {len(names)} images × {classes} classes are needed")
    if not np.isfinite(scores).all():
        raise UsageError(f"--scores: {file}: has values that are not numbers")
    return scores


def _read_csv(file: Path, names: Sequence[str]) -> list[list[float]]:
    """Read rows of numbers, matched by the image's name if rows start with one. A line of headings is skipped. Raises ValueError."""
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = [row for row in csv.reader(lines) if row]
    if rows and not _is_number(rows[0][-1]):
        del rows[0]
    if not rows or _is_number(rows[0][0]):
        return [[float(cell) for cell in row] for row in rows]
    by_name = {row[0]: [float(cell) for cell in row[1:]] for row in rows}
    if missing := [name for name in names if name not in by_name]:
        raise ValueError(f"there is no row for {missing[0]}")
    return [by_name[name] for name in names]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
