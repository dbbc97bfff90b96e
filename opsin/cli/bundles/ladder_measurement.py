"""`opsin calibrate --ladder`: measure a bundle's ladder on a folder of files."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from opsin.cli.bundles.labelled_images import MIN_FILES, read_labelled_images
from opsin.cli.bundles.labelled_recordings import read_recordings
from opsin.cli.services import settings_of
from opsin.cli.shared.console import format_count, progress_bar
from opsin.cli.shared.errors import UsageError

if TYPE_CHECKING:
    from models.bundle import Bundle, BundleSpec
    from models.bundle_schema import Int8, Rung
    from opsin.measuring.ladder import Quality, Throughput
    from server.tasks.classify.clips import Use
    from server.worker.backends.loading import Loader

MergePair = tuple[int, int | None]
"""Tokens to merge in each block of a rung, and of its video half if that differs."""


@dataclass(frozen=True)
class LadderMeasurement:
    """Figures of a ladder, and what they were measured on."""

    quality: Quality
    throughput: Throughput
    measured_on: str
    """Inputs on which the accuracy was measured."""
    unit: str
    """Unit that the throughput counts."""
    extra_quality: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of `quality` in bundle.json."""


def measure_ladder(
    bundle: Bundle, folder: Path, merge_pairs: Sequence[MergePair], use: Use | None, *, force: bool
) -> tuple[BundleSpec, list[str]]:
    """Return the spec with a measured ladder, and lines for the user. merge_pairs: the rungs; empty: the bundle's rungs.

    Raises UsageError, BundleError.
    """
    from kernels.malloc import keep_freed_memory
    from models.bundle import Bundle
    from opsin.measuring.clip_ladder import task_of
    from server.telemetry import logs
    from server.worker.backends.learned_cache import LearnedCache
    from server.worker.backends.loading import Loader
    from server.worker.device_layout import choose_layout

    spec, settings = bundle.spec, settings_of(None)
    rungs = _choose_rungs(spec, merge_pairs)
    try:
        layout = choose_layout(settings)
    except ValueError as error:
        raise UsageError(str(error)) from error
    logs.configure("warning", process="calibrate")
    keep_freed_memory()
    planned = Bundle(path=bundle.path, spec=spec.model_copy(update={"ladder": list(rungs)}))
    measure = _measure_images if task_of(spec) is None else _measure_recordings
    with TemporaryDirectory() as cache:
        loader = Loader(layout, settings.dtype, LearnedCache(Path(cache)), settings.offered_backend)
        measurement = measure(planned, folder, use, loader, force=force)
    quality, throughput = measurement.quality, measurement.throughput
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
    conditions = {"batch_size": throughput.batch_size, "device": layout.device.type, "slots": layout.slots, "threads": layout.threads}
    unit_text = f"{measurement.unit} per second as served, relative to merging off"
    quality_update = {
        "ladder": _quality_rows(quality, throughput),
        "throughput": {"what": unit_text, **conditions},
        **measurement.extra_quality,
    }
    unchanged = _unchanged_rungs(spec, ladder)
    update = {"ladder": ladder, "int8": _filter_int8(spec, unchanged), "quality": {**_filter_comparison(spec, unchanged), **quality_update}}
    return spec.model_copy(update=update), [*_lines(measurement)]


def _measure_images(bundle: Bundle, folder: Path, use: Use | None, loader: Loader, *, force: bool) -> LadderMeasurement:
    from opsin.measuring.ladder import measure_quality, measure_throughput

    if use is not None:
        raise UsageError(f"--use {use}: {bundle.spec.id} does not classify sound and sight separately; leave it out")
    images = read_labelled_images(folder, bundle.spec)
    if len(images.pixels) < MIN_FILES and not force:
        raise UsageError(
            f"--images: {folder} holds {len(images.pixels)} images; fewer than {MIN_FILES} are not reliable, and recall rises the fewer "
            "there are (--force measures anyway)"
        )
    schedules = {rung.name: rung.merge for rung in bundle.spec.ladder}
    quality = measure_quality(bundle, schedules, images, loader.layout.device)
    measured_on = "captions" if quality.metric == "text-recall" else "images"
    return LadderMeasurement(quality, measure_throughput(bundle, schedules, loader), measured_on, "images")


def _measure_recordings(bundle: Bundle, folder: Path, use: Use | None, loader: Loader, *, force: bool) -> LadderMeasurement:
    """Measure a bundle for clips or sounds. Raises UsageError, also for a file that cannot be classified."""
    from opsin.measuring.clip_ladder import UnusableRecording, measure_recordings, measure_steps
    from server.media.images import ImageDecoder
    from server.media.limits import MediaLimits

    spec, settings = bundle.spec, settings_of(None)
    chosen, recordings = read_recordings(folder, spec, use)
    if len(recordings) < MIN_FILES and not force:
        raise UsageError(
            f"--files: {folder} holds {len(recordings)} clips or sounds; fewer than {MIN_FILES} are not reliable (--force measures anyway)"
        )
    for one in recordings:
        if (nbytes := sum(file.stat().st_size for file in one.files.values())) > settings.max_body_bytes:
            raise UsageError(f"--files: {one.name}: {nbytes} bytes are above the limit of {settings.max_body_bytes} (OPSIN_MAX_BODY_BYTES)")
    decoder = ImageDecoder(settings.max_pixels, MediaLimits(clips=settings.clip_limits, sounds=settings.sound_limits))
    with progress_bar("Classifying", len(recordings)) as advance:
        try:
            quality = measure_recordings(bundle, chosen, recordings, decoder, loader.layout.device, advance)
        except UnusableRecording as error:
            raise UsageError(f"--files: {error}") from error
    throughput = measure_steps(bundle, chosen, loader)
    measured_on = {"both": "clips with sound", "sight": "clips", "sound": "sounds"}[chosen]
    if spec.sound is None:
        return LadderMeasurement(quality, throughput, measured_on, "views")
    return LadderMeasurement(quality, throughput, measured_on, "windows", {"ladder_by": chosen})


def _choose_rungs(spec: BundleSpec, merge_pairs: Sequence[MergePair]) -> Sequence[Rung]:
    """Return the rungs to measure. Raises UsageError for a bundle that can have none."""
    from models.bundle import VECTOR_TASKS
    from models.checkpoints.bundle_fields import unmeasured_ladder
    from models.loading import unsupported_reason
    from models.registry import architectures, read_config
    from opsin.measuring.clip_ladder import task_of

    architecture = architectures().get(spec.architecture)
    if spec.task not in ("classify", *VECTOR_TASKS) and task_of(spec) is None:
        raise UsageError(
            f"{spec.id}: its task is {spec.task}; ladders can be measured for classify, {', '.join(VECTOR_TASKS)}, and for clips and sounds"
        )
    if architecture is None or not architecture.merges:
        raise UsageError(f"{spec.id}: tokens of architecture {spec.architecture} do not merge, so it has no ladder")
    if reason := unsupported_reason(spec):
        raise UsageError(f"{spec.id}: {reason}")
    if any(sight is not None for _, sight in merge_pairs) and (spec.sound is None or spec.clip is None or spec.preprocess is None):
        raise UsageError(f"--r-sight: {spec.id} is not an audio-visual bundle; leave it out")
    if merge_pairs:
        rungs: Sequence[Rung] = [_make_rung(*pair) for pair in sorted(set(merge_pairs), key=lambda pair: (pair[0], pair[1] or 0))]
    else:
        try:
            config = read_config(architecture.config, spec.config)
            rungs = spec.ladder or unmeasured_ladder(architecture, spec.task, config, sees=spec.preprocess is not None)
        except ValueError as error:
            raise UsageError(f"{spec.id}: config: {error}") from error
    if not rungs:
        raise UsageError(f"{spec.id}: has no rungs; specify some with --r")
    if spec.default_rung not in (None, *(rung.name for rung in rungs)):
        raise UsageError(f"--r: the default rung of {spec.id}, {spec.default_rung}, is missing; add it, or change default_rung")
    return rungs


def _make_rung(r: int, sight: int | None) -> Rung:
    from models.bundle_schema import Rung

    return Rung(name=f"r{r}", schedule=r) if sight is None else Rung(name=f"r{r}-{sight}", schedule=r, schedule_sight=sight)


def _unchanged_rungs(spec: BundleSpec, ladder: Sequence[Rung]) -> set[str]:
    """Return the names of the rungs that keep their schedule, and `off`."""
    return {"off", *(rung.name for rung in ladder if (old := spec.rung(rung.name)) is not None and old.schedule == rung.schedule)}


def _filter_int8(spec: BundleSpec, rungs: Collection[str]) -> Int8 | None:
    """Return the accuracy in int8 of these rungs only."""
    if spec.int8 is None:
        return None
    return spec.int8.model_copy(update={"rungs": {name: accuracies for name, accuracies in spec.int8.rungs.items() if name in rungs}})


def _filter_comparison(spec: BundleSpec, rungs: Collection[str]) -> dict[str, Any]:
    """Return `quality` with the results of `opsin compare` on these rungs only."""
    from models.bundle_schema import Comparison

    if (comparison := Comparison.from_quality(spec.quality)) is None:
        return spec.quality
    results = [result for result in comparison.results if result.merging in rungs]
    return {**spec.quality, "comparison": comparison.model_copy(update={"results": results}).model_dump()}


def _quality_rows(quality: Quality, throughput: Throughput) -> list[dict[str, Any]]:
    """Return the figures of each rung, and of merging off, for `quality` of bundle.json."""
    return [
        {"rung": name, "throughput": round(throughput.ratios[name], 3), quality.metric: _figures(quality, share)}
        for name, share in quality.shares.items()
    ]


def _figures(quality: Quality, value: float) -> dict[str, float]:
    """Return a share with its standard error. A mean average precision has the number of its labels instead."""
    uncertainty = {"labels": quality.classes} if quality.classes else {"standard_error": round(_standard_error(value, quality.count), 5)}
    return {"value": round(value, 5), **uncertainty, "n": quality.count}


def _lines(measurement: LadderMeasurement) -> Iterator[str]:
    quality, throughput = measurement.quality, measurement.throughput
    for name, share in quality.shares.items():
        figure = f"{share:.4f}" if quality.classes else format_with_error(share, quality.count)
        yield f"{name:<12} {quality.metric} {figure}  throughput {throughput.ratios[name]:.2f}×"
    label_count = f" with {format_count(quality.classes, 'label')}" if quality.classes else ""
    yield f"measured     on {quality.count} {measurement.measured_on}{label_count}; throughput in batches of {throughput.batch_size}"
    if quality.truncated:
        yield f"truncated    {quality.truncated} captions were longer than the bundle reads, and were cut"


def _standard_error(share: float, count: int) -> float:
    """Return the standard error of a share."""
    return math.sqrt(share * (1 - share) / count)


def format_with_error(share: float, count: int) -> str:
    return f"{share:.4f} ± {_standard_error(share, count):.4f}"
