"""`opsin calibrate`: measure the accuracy of a bundle in 8-bit integers, or of its ladder, and write it into its bundle.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opsin.cli.bundles import ladder_measurement
from opsin.cli.bundles.labelled_images import CAPTIONS_FILE, MIN_FILES, iter_labelled, load_at_model_size
from opsin.cli.bundles.labelled_recordings import LABELS_FILE
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.requirements import requires_extra

if TYPE_CHECKING:
    from models.bundle import Bundle, BundleSpec
    from models.bundle_schema import Int8
    from server.tasks.classify.clips import Use

USE_OPTIONS: Mapping[str, Use] = {"sound": "sound", "sight": "sight"}
DEFAULT_BOUND = 0.005


def calibrate(
    bundle: Annotated[Path, typer.Argument(metavar="DIR/NAME/VERSION", help="The bundle's folder.")],
    images: Annotated[
        Path,
        typer.Option(
            "--images",
            "--files",
            metavar="FOLDER",
            help="Images, clips or sounds that it was not trained on, in a folder for each label. With --ladder, folders of labels are not "
            f"required; pairs read {CAPTIONS_FILE}, and {LABELS_FILE} has the labels of clips and sounds: FILE,LABEL;LABEL.",
        ),
    ],
    bound: Annotated[
        float | None,
        typer.Option(min=0, max=1, help=f"Maximum loss of accuracy of a rung that is served in int8. [default: {DEFAULT_BOUND:g}]"),
    ] = None,
    ladder: Annotated[bool, typer.Option("--ladder", help="Measure accuracy and throughput of merging, instead of int8.")] = False,
    r: Annotated[
        list[int] | None,
        typer.Option(min=1, help="With --ladder: tokens to merge in each block of a rung; repeatable. [default: the bundle's rungs]"),
    ] = None,
    r_sight: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="For an audio-visual bundle: tokens to merge in each block of the video half, one for each --r, in their order. "
            "[default: as --r]",
        ),
    ] = None,
    use: Annotated[
        str | None,
        typer.Option(
            metavar="sound|sight",
            help="Input to measure a bundle with that classifies either sound or sight. [default: the kind of the files]",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help=f"Measure even on fewer than {MIN_FILES} files.")] = False,
) -> None:
    """Measure a classifier's accuracy in 8-bit integers or, with --ladder, a model's accuracy and throughput, rung by rung.

    The figures are written into bundle.json, which changes the bundle's digest. Workers that start afterwards serve rungs in int8 if that
    is at least 1.3 times as fast as PyTorch, their loss is within the bound, and their labels agree with float32's in at least 99 % of the
    images (one-sided 95 % bound of Clopper and Pearson).
    """
    for option, value in (("--r", r), ("--r-sight", r_sight)):
        if value and not ladder:
            raise UsageError(f"{option}: only valid with --ladder")
    if use is not None and not ladder:
        raise UsageError("--use: only valid with --ladder")
    if use is not None and use not in USE_OPTIONS:
        raise UsageError(f"--use {use}: use {' or '.join(USE_OPTIONS)}")
    if r_sight and len(r_sight) != len(r or ()):
        raise UsageError(f"--r-sight: {len(r_sight)} given for {len(r or ())} of --r; give one for each")
    if ladder and bound is not None:
        raise UsageError("--bound: cannot be combined with --ladder, which does not measure int8")
    with requires_extra("server"):
        from models.bundle import BundleError, read, replace_spec
        from models.merge_schedule import MAX_MERGED_TOKENS
        from models.systems.onnx.classifier_backend import GraphError
    for option, value in (("--r", r), ("--r-sight", r_sight)):
        if value and max(value) > MAX_MERGED_TOKENS:
            raise UsageError(f"{option} {max(value)}: a block cannot merge more than {MAX_MERGED_TOKENS} tokens")
    try:
        original = read(bundle)
        if ladder:
            r_pairs = list(zip_longest(r or (), r_sight or ()))
            spec, lines = ladder_measurement.measure_ladder(
                original, images, r_pairs, None if use is None else USE_OPTIONS[use], force=force
            )
        else:
            spec, lines = _with_int8(original, images, DEFAULT_BOUND if bound is None else bound, force)
        replace_spec(original, spec)
    except (BundleError, GraphError, OSError) as error:
        raise CommandError(f"calibrate: {error}") from error
    for line in lines:
        typer.echo(line)
    typer.echo(f"written      {bundle / 'bundle.json'}, digest {spec.digest()[:12]}; workers read it when they start")


def _with_int8(bundle: Bundle, images: Path, bound: float, force: bool) -> tuple[BundleSpec, list[str]]:
    """Return the spec with the accuracy in int8, and lines for the user. Raises UsageError, BundleError and GraphError."""
    import numpy as np

    from models.bundle import VECTOR_TASKS
    from models.bundle_schema import MIN_AGREEMENT
    from models.systems.onnx.classifier_backend import calibrate, has_graph

    spec = bundle.spec
    if spec.task in VECTOR_TASKS:
        raise UsageError(
            f"{spec.id}: vectors (task {spec.task}) are only served in float32, since an index must not mix number formats; "
            "--ladder measures their merging"
        )
    if not has_graph(spec):
        raise UsageError(
            f"{spec.id}: architecture {spec.architecture} cannot be served in int8 for task {spec.task}; only ViT classifiers of images can"
        )
    labelled = list(iter_labelled(images, spec))
    if len(labelled) < MIN_FILES and not force:
        raise UsageError(
            f"--images: {images} holds {len(labelled)} images in folders of labels; at least {MIN_FILES} are needed to know whether "
            f"{MIN_AGREEMENT:.0%} of the labels stay the same (--force measures all the same)"
        )
    if not labelled:
        raise UsageError(f"--images: {images} holds no images in folders of labels")
    pixels = np.stack(load_at_model_size((path for path, _ in labelled), spec, "--images"))
    int8 = calibrate(bundle, pixels, np.array([label for _, label in labelled]), bound)
    return spec.model_copy(update={"int8": int8}), [*_int8_lines(int8), f"measured     on {int8.images} images, bound {bound:g}"]


def _int8_lines(int8: Int8) -> Iterator[str]:
    """Yield a line for each rung: figures with their standard errors."""
    for name, accuracies in int8.rungs.items():
        exact, quantised = (ladder_measurement.format_with_error(share, int8.images) for share in (accuracies.float32, accuracies.int8))
        loss = f"{accuracies.float32 - accuracies.int8:.4f} ± {accuracies.loss_error or 0:.4f}"
        same = f"{accuracies.agreement or 0:.2%}, at least {accuracies.agreement_bound or 0:.2%}"
        refusal = int8.refusal(name)
        verdict = "served" if refusal is None else f"not served: {refusal}"
        yield f"{name:<12} float32 {exact}  int8 {quantised}  loss {loss}  same labels {same}  {verdict}"
