"""A bundle's ladder, measured on a folder of files, for `opsin calibrate --ladder`."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from opsin.cli.bundles.labelled_images import MIN_FILES, examples
from opsin.cli.bundles.labelled_recordings import recordings
from opsin.cli.services import settings_of
from opsin.cli.shared.console import counted, make_console
from opsin.cli.shared.errors import UsageError

if TYPE_CHECKING:
    from models.bundle import Bundle, BundleSpec
    from models.bundle_schema import Int8, Rung
    from opsin.measuring.ladder import Quality, Throughput
    from server.tasks.classify.clips import Use
    from server.worker.warmup import Loader

Halves = tuple[int, int | None]
"""r of a rung, and of the half that sees where that has its own."""


@dataclass(frozen=True)
class LadderMeasurement:
    """Figures of a ladder, and what they are of."""

    quality: Quality
    throughput: Throughput
    of: str
    """Inputs on which the accuracy was measured."""
    unit: str
    """Unit that the throughput counts."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """For `quality` of bundle.json."""


def measure_ladder(bundle: Bundle, folder: Path, values: Sequence[Halves], use: Use | None, *, force: bool) -> tuple[BundleSpec, list[str]]:
    """Return the spec with a measured ladder, and lines for the user. values: of the rungs; empty: the bundle's.

    Raises UsageError, BundleError."""
    from kernels.malloc import keep_freed_memory
    from models.bundle import Bundle
    from opsin.measuring.clip_ladder import task_of
    from server.telemetry import logs
    from server.worker.device_layout import choose
    from server.worker.measurement_cache import Measurements
    from server.worker.warmup import Loader

    spec, settings = bundle.spec, settings_of(None)
    rungs = _rungs(spec, values)
    try:
        layout = choose(settings)
    except ValueError as error:
        raise UsageError(str(error)) from error
    logs.configure("warning", process="calibrate")
    keep_freed_memory()
    planned = Bundle(path=bundle.path, spec=spec.model_copy(update={"ladder": list(rungs)}))
    measure = _of_images if task_of(spec) is None else _of_recordings
    with TemporaryDirectory() as cache:
        loader = Loader(layout, settings.dtype, Measurements(Path(cache)), settings.offered_backend)
        found = measure(planned, folder, use, loader, force=force)
    quality, throughput = found.quality, found.throughput
    ladder = [
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
    what = f"{found.unit} per second as served, relative to merging off"
    told = {"ladder": _rows(quality, throughput), "throughput": {"what": what, **way}, **found.told}
    same = _unchanged(spec, ladder)
    update = {"ladder": ladder, "int8": _int8(spec, same), "quality": {**_quality(spec, same), **told}}
    return spec.model_copy(update=update), [*_lines(found)]


def _of_images(bundle: Bundle, folder: Path, use: Use | None, loader: Loader, *, force: bool) -> LadderMeasurement:
    from opsin.measuring.ladder import measure_quality, measure_throughput

    if use is not None:
        raise UsageError(f"--use {use}: {bundle.spec.id} does not classify sound and sight apart; leave it out")
    given = examples(folder, bundle.spec)
    if len(given.pixels) < MIN_FILES and not force:
        raise UsageError(
            f"--images: {folder} holds {len(given.pixels)} images; fewer than {MIN_FILES} tell little, and recall is higher the fewer "
            "there are (--force measures all the same)"
        )
    schedules = {rung.name: rung.merge for rung in bundle.spec.ladder}
    quality = measure_quality(bundle, schedules, given, loader.layout.device)
    of = "captions" if quality.metric == "text-recall" else "images"
    return LadderMeasurement(quality, measure_throughput(bundle, schedules, loader), of, "images")


def _of_recordings(bundle: Bundle, folder: Path, use: Use | None, loader: Loader, *, force: bool) -> LadderMeasurement:
    """Raises UsageError also for a file that cannot be classified."""
    from rich.progress import Progress

    from opsin.measuring.clip_ladder import UnusableRecording, measure_recordings, measure_steps
    from server.media.images import Decoder
    from server.media.limits import Limits

    spec, settings = bundle.spec, settings_of(None)
    chosen, given = recordings(folder, spec, use)
    if len(given) < MIN_FILES and not force:
        raise UsageError(
            f"--files: {folder} holds {len(given)} clips or sounds; fewer than {MIN_FILES} tell little (--force measures all the same)"
        )
    for one in given:
        if (nbytes := sum(file.stat().st_size for file in one.files.values())) > settings.max_body_bytes:
            raise UsageError(f"--files: {one.name}: {nbytes} bytes are above the limit of {settings.max_body_bytes} (OPSIN_MAX_BODY_BYTES)")
    decoder = Decoder(settings.max_pixels, Limits(clips=settings.clip_limits, sounds=settings.sound_limits))
    console = make_console(errors=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("Classifying", total=len(given))
        try:
            quality = measure_recordings(bundle, chosen, given, decoder, loader.layout.device, lambda count: bar.advance(shown, count))
        except UnusableRecording as error:
            raise UsageError(f"--files: {error}") from error
    throughput = measure_steps(bundle, chosen, loader)
    of = {"both": "clips with sound", "sight": "clips", "sound": "sounds"}[chosen]
    if spec.sound is None:
        return LadderMeasurement(quality, throughput, of, "views")
    return LadderMeasurement(quality, throughput, of, "windows", {"ladder_by": chosen})


def _rungs(spec: BundleSpec, values: Sequence[Halves]) -> Sequence[Rung]:
    """The rungs to measure. Raises UsageError for a bundle that can have none."""
    from models.bundle import EMBEDDED
    from models.checkpoints.bundle_fields import ladder
    from models.loading import not_served
    from models.registry import architectures, read_config
    from opsin.measuring.clip_ladder import task_of

    architecture = architectures().get(spec.architecture)
    if spec.task not in ("classify", *EMBEDDED) and task_of(spec) is None:
        raise UsageError(
            f"{spec.id}: its task is {spec.task}; ladders are measured of classify, {', '.join(EMBEDDED)}, and of clips and sounds"
        )
    if architecture is None or not architecture.merges:
        raise UsageError(f"{spec.id}: tokens of architecture {spec.architecture} do not merge, so it has no ladder")
    if reason := not_served(spec):
        raise UsageError(f"{spec.id}: {reason}")
    if any(sight is not None for _, sight in values) and (spec.sound is None or spec.clip is None or spec.preprocess is None):
        raise UsageError(f"--r-sight: {spec.id} does not hear and see; leave it out")
    if values:
        rungs: Sequence[Rung] = [_rung(*halves) for halves in sorted(set(values), key=lambda halves: (halves[0], halves[1] or 0))]
    else:
        try:
            config = read_config(architecture.config, spec.config)
            rungs = spec.ladder or unmeasured_ladder(architecture, spec.task, config, sees=spec.preprocess is not None)
        except ValueError as error:
            raise UsageError(f"{spec.id}: config: {error}") from error
    if not rungs:
        raise UsageError(f"{spec.id}: has no rungs; name some with --r")
    if spec.default_rung not in (None, *(rung.name for rung in rungs)):
        raise UsageError(f"--r: the default rung of {spec.id}, {spec.default_rung}, would be gone; name it too, or change default_rung")
    return rungs


def _rung(r: int, sight: int | None) -> Rung:
    from models.bundle_schema import Rung

    return Rung(name=f"r{r}", schedule=r) if sight is None else Rung(name=f"r{r}-{sight}", schedule=r, schedule_sight=sight)


def _unchanged(spec: BundleSpec, ladder: Sequence[Rung]) -> set[str]:
    """Names of the rungs that keep their schedule, and `off`."""
    return {"off", *(rung.name for rung in ladder if (old := spec.rung(rung.name)) is not None and old.schedule == rung.schedule)}


def _int8(spec: BundleSpec, rungs: Collection[str]) -> Int8 | None:
    """The cost of integers on these rungs."""
    if spec.int8 is None:
        return None
    return spec.int8.model_copy(update={"rungs": {name: found for name, found in spec.int8.rungs.items() if name in rungs}})


def _quality(spec: BundleSpec, rungs: Collection[str]) -> dict[str, Any]:
    """`quality` with the results of `opsin compare` on these rungs alone."""
    from models.bundle_schema import Comparison

    if (found := Comparison.of(spec.quality)) is None:
        return spec.quality
    kept = [result for result in found.results if result.merging in rungs]
    return {**spec.quality, "comparison": found.model_copy(update={"results": kept}).model_dump()}


def _rows(quality: Quality, throughput: Throughput) -> list[dict[str, Any]]:
    """Figures of each rung, and of merging off, for `quality` of bundle.json."""
    return [
        {"rung": name, "throughput": round(throughput.ratios[name], 3), quality.metric: _figures(quality, share)}
        for name, share in quality.shares.items()
    ]


def _figures(quality: Quality, value: float) -> dict[str, float]:
    """A share with its standard error. A mean average precision has none, but a number of labels over which it is the mean."""
    told = {"labels": quality.classes} if quality.classes else {"standard_error": round(_error(value, quality.count), 5)}
    return {"value": round(value, 5), **told, "n": quality.count}


def _lines(found: LadderMeasurement) -> Iterator[str]:
    quality, throughput = found.quality, found.throughput
    for name, share in quality.shares.items():
        figure = f"{share:.4f}" if quality.classes else format_with_error(share, quality.count)
        yield f"{name:<12} {quality.metric} {figure}  throughput {throughput.ratios[name]:.2f}×"
    over = f" with {counted(quality.classes, 'label')}" if quality.classes else ""
    yield f"measured     on {quality.count} {found.of}{over}; throughput in batches of {throughput.batch_size}"
    if quality.truncated:
        yield f"truncated    {quality.truncated} captions were longer than the bundle reads, and lost their end"


def _error(share: float, count: int) -> float:
    """Standard error of a share."""
    return math.sqrt(share * (1 - share) / count)


def format_with_error(share: float, count: int) -> str:
    return f"{share:.4f} ± {_error(share, count):.4f}"
