"""`opsin calibrate`: measure what 8-bit integers, or merging, cost a bundle's answers, and write it into its bundle.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opsin.cli.bundles import ladder_measurement
from opsin.cli.bundles.labelled_images import CAPTIONS, MIN_FILES, iter_labelled
from opsin.cli.bundles.labelled_recordings import LABELS
from opsin.cli.bundles.model_inputs import at_model_size
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.requirements import requires_extra

if TYPE_CHECKING:
    from models.bundle import Bundle, BundleSpec
    from models.bundle_schema import Int8
    from server.tasks.classify.clips import Use

USES: Mapping[str, Use] = {"sound": "sound", "sight": "sight"}
BOUND = 0.005


def calibrate(
    bundle: Annotated[Path, typer.Argument(metavar="DIR/NAME/VERSION", help="The bundle's folder.", show_default=False)],
    images: Annotated[
        Path,
        typer.Option(
            "--images",
            "--files",
            metavar="FOLDER",
            help="Images, clips or sounds that it was not trained on, in a folder for each label. With --ladder others will do, too; pairs "
            f"read {CAPTIONS}, and {LABELS} names the labels of clips and sounds: FILE,LABEL;LABEL.",
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
    r_sight: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Of a bundle that hears and sees: tokens to merge in each block of the half that sees, one for each --r, in their order. "
            "[default: as --r]",
            show_default=False,
        ),
    ] = None,
    use: Annotated[
        str | None,
        typer.Option(
            metavar="sound|sight",
            help="What a bundle that classifies sound and sight apart is measured by. [default: what the files are]",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help=f"Measure on fewer than {MIN_FILES} files, too.")] = False,
) -> None:
    """Measure a classifier's accuracy in 8-bit integers, or with --ladder a model's answers and throughput, rung by rung.

    The figures are written into bundle.json, and the bundle's digest changes with it. Workers that start afterwards serve in int8, where
    that is at least 1.3 times as fast as PyTorch, those rungs that lose no more than the bound and whose labels are sure to agree with
    float32's in 99 % of the images (one-sided 95 % bound of Clopper and Pearson).
    """
    for option, value in (("--r", r), ("--r-sight", r_sight)):
        if value and not ladder:
            raise UsageError(f"{option}: names rungs of a ladder; add --ladder")
    if use is not None and not ladder:
        raise UsageError("--use: concerns a ladder; add --ladder")
    if use is not None and use not in USES:
        raise UsageError(f"--use {use}: say {' or '.join(USES)}")
    if r_sight and len(r_sight) != len(r or ()):
        raise UsageError(f"--r-sight: {len(r_sight)} given for {len(r or ())} of --r; give one for each")
    if ladder and bound is not None:
        raise UsageError("--bound: concerns int8, which --ladder does not measure")
    with requires_extra("server"):
        from models.bundle import BundleError, read, rewrite
        from models.merge_schedule import MOST_MERGED
        from models.systems.onnx.classifier_backend import GraphError
    for option, value in (("--r", r), ("--r-sight", r_sight)):
        if value and max(value) > MOST_MERGED:
            raise UsageError(f"{option} {max(value)}: no block merges more than {MOST_MERGED} tokens; use less")
    try:
        found = read(bundle)
        if ladder:
            halves = list(zip_longest(r or (), r_sight or ()))
            spec, lines = ladder_measurement.measure_ladder(found, images, halves, None if use is None else USES[use], force=force)
        else:
            spec, lines = _with_int8(found, images, BOUND if bound is None else bound, force)
        replace_spec(found, spec)
    except (BundleError, GraphError, OSError) as error:
        raise CommandError(f"calibrate: {error}") from error
    for line in lines:
        typer.echo(line)
    typer.echo(f"written      {bundle / 'bundle.json'}, digest {spec.digest()[:12]}; workers read it when they start")


def _with_int8(bundle: Bundle, images: Path, bound: float, force: bool) -> tuple[BundleSpec, list[str]]:
    """The spec with what integers cost, and lines for the user. Raises UsageError, BundleError and GraphError."""
    import numpy as np

    from models.bundle import VECTOR_TASKS
    from models.bundle_schema import MIN_AGREEMENT
    from models.systems.onnx.classifier_backend import calibrate, has_graph

    spec = bundle.spec
    if spec.task in EMBEDDED:
        raise UsageError(
            f"{spec.id}: vectors (task {spec.task}) are served in float32 alone, since an index must not mix number formats; "
            "--ladder measures what merging costs them"
        )
    if not has_graph(spec):
        raise UsageError(
            f"{spec.id}: architecture {spec.architecture} cannot be served in int8 for task {spec.task}; images that a ViT classifies can"
        )
    known = list(iter_labelled(images, spec))
    if len(known) < MIN_FILES and not force:
        raise UsageError(
            f"--images: {images} holds {len(known)} images in folders of labels; at least {MIN_FILES} are needed to know whether "
            f"{LEAST_AGREEMENT:.0%} of the labels stay the same (--force measures all the same)"
        )
    if not known:
        raise UsageError(f"--images: {images} holds no images in folders of labels")
    pixels = np.stack(at_model_size((path for path, _ in known), spec, "--images"))
    int8 = calibrate(bundle, pixels, np.array([label for _, label in known]), bound)
    return spec.model_copy(update={"int8": int8}), [*_int8_lines(int8), f"measured     on {int8.images} images, bound {bound:g}"]


def _int8_lines(int8: Int8) -> Iterator[str]:
    """A line for each rung; figures with their standard errors."""
    for name, found in int8.rungs.items():
        one, other = (ladder_measurement.format_with_error(share, int8.images) for share in (found.float32, found.int8))
        loss = f"{found.float32 - found.int8:.4f} ± {found.loss_error or 0:.4f}"
        same = f"{found.agreement or 0:.2%}, at least {found.agreement_bound or 0:.2%}"
        refusal = int8.refusal(name)
        verdict = "served" if refusal is None else f"not served: {refusal}"
        yield f"{name:<12} float32 {one}  int8 {other}  loss {loss}  same labels {same}  {verdict}"
