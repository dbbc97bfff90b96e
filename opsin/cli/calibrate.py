"""`opsin calibrate`: measure what 8-bit integers, or merging, cost a bundle's answers, and write it into its bundle.json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsin.cli.engine import lacks, require_engine
from opsin.cli.exits import Failure, Misuse
from opsin.cli.image_files import of_folders
from opsin.cli.pixels import at_model_size
from opsin.cli.services import settings_of

if TYPE_CHECKING:
    from models.bundle import Bundle, BundleSpec
    from models.spec import Int8, Rung
    from server.worker.ladder import Examples, Quality, Throughput

BOUND = 0.005
FEWEST = 300
"""Images: with fewer, not even one label that changes would be sure to be less than one in a hundred."""
CAPTIONS = "captions.jsonl"
"""Lines {"image": FILE, "caption": TEXT}, files from its folder, as training reads them."""


def calibrate(
    bundle: Annotated[Path, typer.Argument(metavar="DIR/NAME/VERSION", help="The bundle's folder.", show_default=False)],
    images: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Images that it was not trained on: of classifiers in a folder for each label. With --ladder others will do, too, and "
            f"pairs read {CAPTIONS}.",
            show_default=False,
        ),
    ],
    bound: Annotated[
        float | None,
        typer.Option(min=0, max=1, help=f"Accuracy that a rung may lose to be served in int8. [default: {BOUND:g}]", show_default=False),
    ] = None,
    ladder: Annotated[bool, typer.Option("--ladder", help="Measure what merging costs and gains, instead of int8.")] = False,
    r: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="With --ladder: tokens to merge in each block; repeat it, for a rung each. [default: the bundle's rungs]",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help=f"Measure on fewer than {FEWEST} images, too.")] = False,
) -> None:
    """Measure a classifier's accuracy in 8-bit integers, or with --ladder a model's answers and throughput, rung by rung.

    The figures are written into bundle.json, and the bundle's digest changes with it. Workers that start afterwards serve in int8, where
    that is at least 1.3 times as fast as PyTorch, those rungs that lose no more than the bound and whose labels are sure to agree with
    float32's in 99 % of the images (one-sided 95 % bound of Clopper and Pearson).
    """
    require_engine("calibrate")
    if r and not ladder:
        raise Misuse("--r: names rungs of a ladder; add --ladder")
    if ladder and bound is not None:
        raise Misuse("--bound: concerns int8, which --ladder does not measure")
    try:
        from models.bundle import BundleError, read, rewrite
        from models.onnx.backend import GraphError
    except ModuleNotFoundError as error:
        raise lacks(error) from error
    try:
        found = read(bundle)
        if ladder:
            spec, lines = _with_ladder(found, images, r or (), force)
        else:
            spec, lines = _with_int8(found, images, BOUND if bound is None else bound, force)
        rewrite(found, spec)
    except (BundleError, GraphError, OSError) as error:
        raise Failure(f"calibrate: {error}") from error
    for line in lines:
        typer.echo(line)
    typer.echo(f"written      {bundle / 'bundle.json'}, digest {spec.digest()[:12]}; workers read it when they start")


def _with_int8(bundle: Bundle, images: Path, bound: float, force: bool) -> tuple[BundleSpec, list[str]]:
    """The spec with what integers cost, and lines for the user. Raises Misuse, BundleError and GraphError."""
    import numpy as np

    from models.bundle import EMBEDDED
    from models.onnx.backend import calibrate, has_graph
    from models.spec import LEAST_AGREEMENT

    spec = bundle.spec
    if spec.task in EMBEDDED:
        raise Misuse(
            f"{spec.id}: vectors (task {spec.task}) are served in float32 alone, since an index must not mix number formats; "
            "--ladder measures what merging costs them"
        )
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
    int8 = calibrate(bundle, pixels, np.array([label for _, label in labelled]), bound)
    return spec.model_copy(update={"int8": int8}), [*_int8_lines(int8), f"measured     on {int8.images} images, bound {bound:g}"]


def _int8_lines(int8: Int8) -> Iterator[str]:
    """A line for each rung; figures with their standard errors."""
    for name, found in int8.rungs.items():
        one, other = (_with_error(share, int8.images) for share in (found.float32, found.int8))
        loss = f"{found.float32 - found.int8:.4f} ± {found.loss_error or 0:.4f}"
        same = f"{found.agreement or 0:.2%}, at least {found.agreement_bound or 0:.2%}"
        refusal = int8.refusal(name)
        verdict = "served" if refusal is None else f"not served: {refusal}"
        yield f"{name:<12} float32 {one}  int8 {other}  loss {loss}  same labels {same}  {verdict}"


def _with_ladder(bundle: Bundle, images: Path, values: Sequence[int], force: bool) -> tuple[BundleSpec, list[str]]:
    """The spec with a measured ladder, and lines for the user. values: r of the rungs; empty: the bundle's. Raises Misuse, BundleError."""
    from kernels.memory import keep_freed_memory
    from server.telemetry import logs
    from server.worker.ladder import measure_quality, measure_throughput
    from server.worker.layout import choose
    from server.worker.measurements import Measurements
    from server.worker.warmup import Loader

    spec, settings = bundle.spec, settings_of(None)
    rungs = _rungs(spec, values)
    examples = _examples(images, spec)
    if len(examples.pixels) < FEWEST and not force:
        raise Misuse(
            f"--images: {images} holds {len(examples.pixels)} images; fewer than {FEWEST} tell little, and recall is higher the fewer "
            "there are (--force measures all the same)"
        )
    try:
        layout = choose(settings)
    except ValueError as error:
        raise Misuse(str(error)) from error
    logs.configure("warning", process="calibrate")
    keep_freed_memory()
    schedules = {rung.name: rung.merge for rung in rungs}
    quality = measure_quality(bundle, schedules, examples, layout.device)
    with TemporaryDirectory() as cache:
        loader = Loader(layout, settings.dtype, Measurements(Path(cache)), settings.backend)
        throughput = measure_throughput(bundle, schedules, loader)
    measured = [
        rung.model_copy(
            update={
                "accuracy": round(quality.shares[rung.name], 5),
                "throughput": round(throughput.ratios[rung.name], 3),
                "metric": quality.metric,
            }
        )
        for rung in rungs
    ]
    way = {"batch_size": throughput.batch_size, "device": layout.device.type, "slots": layout.slots, "threads": layout.threads}
    told = {"ladder": _rows(quality, throughput), "throughput": {"what": "images per second as served, relative to merging off", **way}}
    update = {"ladder": measured, "int8": _still_true(spec, measured), "quality": {**spec.quality, **told}}
    return spec.model_copy(update=update), [*_ladder_lines(quality, throughput)]


def _rungs(spec: BundleSpec, values: Sequence[int]) -> Sequence[Rung]:
    """The rungs to measure. Raises Misuse for a bundle that can have none."""
    from models.bundle import EMBEDDED
    from models.loading import not_served
    from models.published.bundling import ladder
    from models.registry import architectures, read_config
    from models.spec import Rung

    architecture = architectures().get(spec.architecture)
    if spec.task not in ("classify", *EMBEDDED):
        raise Misuse(f"{spec.id}: its task is {spec.task}; ladders are measured of classify, {', '.join(EMBEDDED)}")
    if architecture is None or not architecture.merges:
        raise Misuse(f"{spec.id}: tokens of architecture {spec.architecture} do not merge, so it has no ladder")
    if reason := not_served(spec):
        raise Misuse(f"{spec.id}: {reason}")
    if values:
        rungs = [Rung(name=f"r{value}", schedule=value) for value in sorted(set(values))]
    else:
        try:
            rungs = spec.ladder or ladder(architecture, spec.task, read_config(architecture.config, spec.config))
        except ValueError as error:
            raise Misuse(f"{spec.id}: config: {error}") from error
    if not rungs:
        raise Misuse(f"{spec.id}: has no rungs; name some with --r")
    if spec.default_rung not in (None, *(rung.name for rung in rungs)):
        raise Misuse(f"--r: the default rung of {spec.id}, {spec.default_rung}, would be gone; name it too, or change default_rung")
    return rungs


def _still_true(spec: BundleSpec, ladder: Sequence[Rung]) -> Int8 | None:
    """What integers cost, without rungs that are gone or have another schedule now."""
    if spec.int8 is None:
        return None
    same = {"off", *(rung.name for rung in ladder if (old := spec.rung(rung.name)) is not None and old.schedule == rung.schedule)}
    return spec.int8.model_copy(update={"rungs": {name: found for name, found in spec.int8.rungs.items() if name in same}})


def _examples(folder: Path, spec: BundleSpec) -> Examples:
    """What a ladder is measured on. Raises Misuse."""
    import numpy as np

    from server.worker.ladder import Examples

    if not folder.is_dir():
        raise Misuse(f"--images: {folder} is no folder")
    if spec.task == "classify" and any(path.is_dir() for path in folder.iterdir()):
        labelled = list(_labelled(folder, spec))
        if not labelled:
            raise Misuse(f"--images: {folder} holds no images in folders of labels")
        pixels = np.stack(at_model_size((path for path, _ in labelled), spec, "--images"))
        return Examples(pixels, labels=np.array([label for _, label in labelled]))
    if spec.text is not None and (folder / CAPTIONS).is_file():
        pairs = _captions(folder / CAPTIONS)
        places = {file: place for place, file in enumerate(dict.fromkeys(file for file, _ in pairs))}
        pixels = np.stack(at_model_size(places, spec, "--images"))
        return Examples(pixels, captions=[caption for _, caption in pairs], captioned=[places[file] for file, _ in pairs])
    files, _ = of_folders([folder])
    return Examples(np.stack(at_model_size(files, spec, "--images")))


def _captions(file: Path) -> list[tuple[Path, str]]:
    """Image files and what each shows. Raises Misuse naming the line."""
    found = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Misuse(f"--images: {file}: cannot be read as UTF-8 ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            image, caption = row["image"], row["caption"]
        except (ValueError, KeyError, TypeError) as error:
            raise Misuse(f'--images: {file}:{number}: must be a JSON object like {{"image": FILE, "caption": TEXT}}') from error
        if not isinstance(image, str) or not isinstance(caption, str) or not caption.strip():
            raise Misuse(f"--images: {file}:{number}: image and caption must be texts that are not empty")
        found.append((file.parent / image, caption))
    if not found:
        raise Misuse(f"--images: {file}: has no lines")
    return found


def _rows(quality: Quality, throughput: Throughput) -> list[dict[str, Any]]:
    """Figures of each rung, and of merging off, for `quality` of bundle.json."""
    return [
        {
            "rung": name,
            "throughput": round(throughput.ratios[name], 3),
            quality.metric: {"value": round(share, 5), "standard_error": round(_error(share, quality.count), 5), "n": quality.count},
        }
        for name, share in quality.shares.items()
    ]


def _ladder_lines(quality: Quality, throughput: Throughput) -> Iterator[str]:
    for name, share in quality.shares.items():
        yield f"{name:<12} {quality.metric} {_with_error(share, quality.count)}  throughput {throughput.ratios[name]:.2f}×"
    of = "captions" if quality.metric == "text-recall" else "images"
    yield f"measured     on {quality.count} {of}; throughput in batches of {throughput.batch_size}"
    if quality.truncated:
        yield f"truncated    {quality.truncated} captions were longer than the bundle reads, and lost their end"


def _error(share: float, count: int) -> float:
    """Standard error of a share."""
    return math.sqrt(share * (1 - share) / count)


def _with_error(share: float, count: int) -> str:
    return f"{share:.4f} ± {_error(share, count):.4f}"


def _labelled(folder: Path, spec: BundleSpec) -> Iterator[tuple[Path, int]]:
    """Images below FOLDER/LABEL/ and the index of their label. Raises Misuse."""
    if not folder.is_dir():
        raise Misuse(f"--images: {folder} is no folder")
    places = {label: index for index, label in enumerate(spec.labels)}
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        if part.name not in places:
            raise Misuse(f"--images: {part} is named after no label of {spec.id}; `opsin bundles show` lists them")
        yield from ((path, places[part.name]) for path in sorted(part.iterdir()) if path.is_file())
