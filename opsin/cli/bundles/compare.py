"""`opsin compare`: a classifier's logits beside those that its original code gave for the same images, and the result in its bundle."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from opsin.cli.bundles.model_inputs import at_model_size
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.requirements import requires_extra

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.bundle import Bundle
    from models.loading import LoadedModel
    from models.merge_schedule import MergeSchedule
    from models.systems.onnx.classifier_backend import OnnxClassifier

    Format = Literal["float32", "bfloat16", "int8"]
    Answer = Callable[[NDArray[Any], MergeSchedule], NDArray[Any]]

MOST_DIFFERENT = 1e-2
"""Largest difference of float32's logits without merging, as a share of the largest logit, that is still the same network's."""
BATCH = 8
"""Images; int8 quantises activations by the range of a batch, so they run together as they do when they are served."""


def compare(
    bundle: Annotated[Path, typer.Argument(metavar="DIR/NAME/VERSION", help="The folder of a classifier's bundle.", show_default=False)],
    pictures: Annotated[Path, typer.Option(metavar="DIR", help="A folder of images.", show_default=False)],
    scores: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Logits of the original code: .npy or CSV, a row for each image in the order of their names; a CSV may begin its rows "
            "with the names.",
            show_default=False,
        ),
    ],
) -> None:
    """Compare a bundle's logits with those of the original code, by number format and merging.

    float32 without merging shows whether images are prepared as they were there: the others, what speed costs. The result is written into
    bundle.json as quality.comparison, and the bundle's digest changes with it; GET /v1/models shows it. Where float32 without merging
    differs by more than 1 % of the largest logit or in a label, nothing is written and the exit code is 1.
    """
    with requires_extra("server"):
        import numpy as np

        from models.bundle import BundleError, read, replace_spec
        from models.bundle_schema import FormatComparison, Comparison
        from models.merge_schedule import MergeSchedule
    try:
        found = read(bundle)
        spec = found.spec
        if spec.task != "classify":
            raise UsageError(f"{spec.id}: its task is {spec.task}; only classifiers of images can be compared")
        files = _files(pictures)
        wanted = _scores(scores, [file.name for file in files], len(spec.labels))
        pixels = np.stack(at_model_size(files, spec, "--pictures"))
        schedules = {"off": MergeSchedule.off()} | {rung.name: rung.merge for rung in spec.ladder}
        typer.echo(f"{'format':<9} {'merging':<10} {'largest difference':>18}  labels that agree")
        results = []
        for format_, answer in _formats(found, pixels[:2]):
            for name, schedule in schedules.items():
                own = np.concatenate([answer(pixels[start : start + BATCH], schedule) for start in range(0, len(pixels), BATCH)])
                difference = float(np.abs(own - wanted).max())
                same = int((own.argmax(axis=1) == wanted.argmax(axis=1)).sum())
                typer.echo(f"{format_:<9} {name:<10} {difference:>18.2e}  {same} of {len(own)}")
                largest = float(f"{difference:.2e}") if math.isfinite(difference) else None
                if (format_, name) == ("float32", "off"):
                    _check_same(spec.id, difference, wanted, same)
                results.append(FormatComparison(format=format_, merging=name, max_difference=largest, same_labels=same))
    except (BundleError, OSError) as error:
        raise CommandError(f"compare: {error}") from error
    comparison = Comparison(images=len(pixels), results=results).model_dump()
    try:
        spec = replace_spec(found, spec.model_copy(update={"quality": {**spec.quality, "comparison": comparison}})).spec
    except BundleError as error:
        raise CommandError(f"compare: {error}") from error
    except OSError as error:
        raise CommandError(f"compare: {bundle}: the result could not be written into bundle.json ({error.strerror or error})") from error
    typer.echo(f"written   {bundle / 'bundle.json'}, digest {spec.digest()[:12]}; workers read it when they start")


def _check_same(bundle_id: str, difference: float, wanted: NDArray[Any], same: int) -> None:
    """Raises Failure where logits in float32 without merging are not those of the original code."""
    import numpy as np

    bound = MOST_DIFFERENT * float(np.abs(wanted).max())
    if difference <= bound and same == len(wanted):
        return
    raise CommandError(
        f"compare: {bundle_id}: in float32 without merging {len(wanted) - same} of {len(wanted)} labels differ, and logits by up to "
        f"{difference:.2e} where {bound:.2e} is accepted: these are other images, another order or another preparation (see `transform` "
        "in what `opsin bundles show` prints); nothing is written"
    )


def _formats(bundle: Bundle, sample: NDArray[Any]) -> Iterator[tuple[Format, Answer]]:
    """The formats that the service may run a bundle in, with what answers in them."""
    import torch

    from models.loading import load
    from models.registry import architectures
    from models.systems.onnx.classifier_backend import open_classifier

    formats: dict[Format, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    exact = load(bundle)
    if bundle.spec.task in architectures()[bundle.spec.architecture].precise_tasks or next(exact.model.parameters(), None) is None:
        del formats["bfloat16"]
    for name, dtype in formats.items():
        yield name, partial(logits, exact if name == "float32" else load(bundle, dtype=dtype, packed=True), exact.depth)
    if bundle.spec.int8 is not None:
        yield "int8", partial(logits, open_classifier(bundle, None, "int8", 1, {"pixels": sample}, exact), exact.depth)


def logits(model: LoadedModel | OnnxClassifier, depth: int, batch: NDArray[Any], merge: MergeSchedule) -> NDArray[Any]:
    return model.forward({"pixels": batch}, {"merge": merge.expand(depth)})["logits"]


def _files(folder: Path) -> list[Path]:
    """Raises UsageError."""
    if not folder.is_dir():
        raise UsageError(f"--pictures: {folder} is no folder")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not files:
        raise UsageError(f"--pictures: {folder} has no images")
    return files


def _scores(file: Path, names: Sequence[str], classes: int) -> NDArray[Any]:
    """float64 (images, classes) in the order of `names`. Raises UsageError."""
    import numpy as np

    try:
        found = np.load(file, allow_pickle=False) if file.suffix == ".npy" else _from_csv(file, names)
        found = np.asarray(found, np.float64)
    except (OSError, ValueError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--scores: {file}: cannot be read as numbers ({error})") from error
    if found.shape != (len(names), classes):
        shape = " × ".join(map(str, found.shape))
        raise UsageError(f"--scores: {file}: holds {shape} numbers where {len(names)} images × {classes} classes are needed")
    if not np.isfinite(found).all():
        raise UsageError(f"--scores: {file}: holds values that are no numbers")
    return found


def _from_csv(file: Path, names: Sequence[str]) -> list[list[float]]:
    """Rows of numbers, by the image's name where they begin with one. A first line of headings is skipped. Raises ValueError."""
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = [row for row in csv.reader(lines) if row]
    if rows and not _is_number(rows[0][-1]):
        del rows[0]
    if not rows or _is_number(rows[0][0]):
        return [[float(cell) for cell in row] for row in rows]
    by_name = {row[0]: [float(cell) for cell in row[1:]] for row in rows}
    if absent := [name for name in names if name not in by_name]:
        raise ValueError(f"there is no row for {absent[0]}")
    return [by_name[name] for name in names]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
