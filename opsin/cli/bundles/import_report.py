"""The report of `opsin import`: the properties of the bundle and, in bold in the last line, the number format in which this machine serves
it, with its difference from float32 on real images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from opsin.cli.bundles.compare import compute_logits
from opsin.cli.bundles.labelled_images import load_at_model_size
from opsin.cli.bundles.tokenizers import summary
from opsin.cli.services import settings_of
from opsin.cli.shared.console import escape_controls, format_bytes, format_count
from opsin.cli.shared.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from models.bundle import Bundle, BundleSpec
    from server.worker.backends.learner import Format
    from server.worker.device_layout import Layout

MAX_LINE_CHARS = 120
"""Maximum length of the architecture's line."""
MAX_VALUE_CHARS = 24
"""Maximum length of a field's value in that line."""
TRUNKS = (("", ""), ("text_", "texts "), ("decoder_", "decoder "))
"""Prefix of the fields with a trunk's size, and the trunk's name in the line."""
SIZE_FIELDS = frozenset({"patch_size", *(prefix + field for prefix, _ in TRUNKS for field in ("depth", "width", "heads"))})
"""Fields that identify a published size; the line states them in words."""
HIDDEN_FIELDS = {"onnx": frozenset({"output"})}
"""Fields without meaning for a reader, by architecture."""
FIELDS_STATED_ELSEWHERE = frozenset({"image_size", "image_width", "classes", "drop_path", "dropout"})
"""Fields that are stated in another form or line, or that only training reads."""
PIN_HINT = "OPSIN_DTYPE=float32 forces float32"
MEASURED_HINT = "measured just now; each worker measures for itself"
MAX_TRIAL_BYTES = 2**31
"""Maximum size of the weights that an import runs to measure the number format."""
TRIAL_BATCH = 4
MAX_TRIAL_S = 5.0
"""Maximum time for the images; at least one is run."""
MEMBER_TASKS = frozenset({"pose", "body", "depth", "actions"})
"""Tasks of bundles that are only served as members of pipelines, which compute in float32."""
ARRAY_SUFFIXES = ("-depth", "-mask")
"""Suffixes of sample names that are not photographs or drawings."""


def show(bundle: Bundle) -> None:
    """Print the report of an imported bundle."""
    spec = bundle.spec
    if "repository" in spec.provenance:
        _print_line("repository", f"{spec.provenance['repository']} at {spec.provenance['revision']}")
    _print_line("family", spec.provenance["family"])
    _print_line("task", spec.task)
    typer.echo(escape_controls(architecture_line(spec.architecture, spec.config)))
    for name, text in _describe_inputs(spec):
        _print_line(name, text)
    if texts := summary(spec):
        _print_line("texts", texts)
    if "transform" in spec.provenance:
        _print_line("transform", spec.provenance["transform"])
    if spec.labels:
        _print_line("labels", f"{format_count(len(spec.labels), 'label')}: {', '.join(spec.labels[:4])}{', …' if spec.labels[4:] else ''}")
    if "left_out" in spec.provenance:
        _print_line("left out", ", ".join(spec.provenance["left_out"]))
    for note in spec.provenance.get("notes", []):
        _print_line("note", note)
    if spec.ladder:
        _print_line("ladder", f"{', '.join(rung.name for rung in spec.ladder)} (not measured)")
    _print_line("license", spec.license)
    _print_line("written", f"{bundle.path} ({format_bytes(bundle.spec.size)})")
    typer.secho(f"{'format':<13} {describe_format(bundle)}", bold=True)


def _print_line(name: str, text: str) -> None:
    typer.echo(escape_controls(f"{name:<13} {text}"))  # names of outputs and labels come from files


def architecture_line(architecture: str, fields: dict[str, Any]) -> str:
    """Return the line of the architecture: its published size, else its trunks, and the fields that differ from that size or the defaults.

    For a network without blocks, all fields except those that are 0, false or empty.
    """
    from models.registry import architectures, read_config

    config = read_config(architectures()[architecture].config, fields)
    config_fields = asdict(config)
    name, reference_fields = _closest_published_size(architecture, config_fields)
    size, patch = architectures()[architecture].bundle_defaults.size(config), config_fields.get("patch_size")
    parts = [name] if name else [f"patches of {patch}"] if patch else []
    if size is not None:
        parts = [" ".join([*parts, "at", " × ".join(map(str, dict.fromkeys(size)))])]
    for prefix, trunk in TRUNKS[:1] if name else TRUNKS:
        if prefix + "depth" in config_fields:
            parts.append(trunk + ", ".join(_describe_trunk(config_fields, prefix)))
    parts += [
        _format_setting(field, value)
        for field, value in config_fields.items()
        if field not in SIZE_FIELDS | FIELDS_STATED_ELSEWHERE | HIDDEN_FIELDS.get(architecture, frozenset())
        and reference_fields.get(field, ...) != value
    ]
    line = f"{'architecture':<13} {architecture}" + (": " if parts else "") + ", ".join(parts)
    return line if len(line) <= MAX_LINE_CHARS else line[: MAX_LINE_CHARS + 1 - len(", …")].rpartition(", ")[0] + ", …"


def _describe_trunk(fields: dict[str, Any], prefix: str) -> Iterator[str]:
    depth, width, heads = (fields.get(f"{prefix}{field}") for field in ("depth", "width", "heads"))
    yield format_count(depth or 0, "block")
    if width is not None:
        yield f"width {width}"
    if heads is not None:
        yield format_count(heads, "head")


def _closest_published_size(architecture: str, fields: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return the published size with equal patches and trunks that has most fields in common, and its fields.

    The size is None if there is none; the fields are then the defaults, or the empty ones of a network without blocks.
    """
    from models.registry import architectures, sizes

    published = {size.name: asdict(size.config) for size in sizes().values() if size.architecture == architecture}
    candidates = [name for name, size in published.items() if all(size.get(field) == fields.get(field) for field in SIZE_FIELDS)]
    if candidates:
        name = min(candidates, key=lambda name: sum(fields[field] != value for field, value in published[name].items()))
        return name, published[name]
    if "depth" in fields:
        return None, asdict(architectures()[architecture].config())
    return None, {field: value for field, value in fields.items() if not value}


def _format_setting(field: str, value: object) -> str:
    """Format a field as `--set` takes it; a long value is omitted."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"{field}={text}" if len(text) <= MAX_VALUE_CHARS else f"{field}=…"


def _describe_inputs(spec: BundleSpec) -> Iterator[tuple[str, str]]:
    """Yield name and text of the lines about the preprocessing of images, clips and sounds."""
    images, clip, sound = spec.preprocess, spec.clip, spec.sound
    if images is not None:
        crop = f"{images.image_size} × {images.image_width}" if images.image_width else f"{images.image_size}"
        squeezing = "squeezed to" if images.fit == "squeeze" else f"squeezed to {images.short_side}, crop"
        resizing = f"short side {images.short_side}, crop" if images.fit == "crop" else squeezing
        yield "images", f"{resizing} {crop}, {images.interpolation}, mean {images.mean}, std {images.std}"
    if clip is not None:
        smooth = ", smoothed when shrunk" if clip.smooth else ""
        yield "clips", f"{clip.frames} frames, {clip.stride:g} apart at {clip.rate:g} per second{smooth}"
    if sound is not None:
        bank = f"{sound.frames} frames of {sound.mel_bins} mel bins"
        yield "sound", f"{bank} at {sound.sample_rate} Hz, mean {sound.mean}, std {sound.std}"


def describe_format(bundle: Bundle) -> str:
    """Describe the format used on this machine, its difference from float32 on sample images, and the setting that forces float32."""
    from models.bundle import GRAPH_FILE, BundleError
    from models.loading import unsupported_reason
    from server.worker import device_layout
    from server.worker.backends.runner import is_precise

    spec, is_graph = bundle.spec, bundle.spec.weights_file == GRAPH_FILE
    full_precision = "the graph's own numbers" if is_graph else "float32"
    if reason := unsupported_reason(spec):
        return f"{full_precision} on every machine, as a member of a pipeline" if spec.task in MEMBER_TASKS else f"none: {reason}"
    settings, name = settings_of(None), None
    try:
        layout = device_layout.choose_layout(settings)
        if spec.size <= MAX_TRIAL_BYTES:
            name = _faster_format(bundle, layout, settings.dtype)
        if is_graph or is_precise(spec):
            return f"{full_precision} on every machine, regardless of OPSIN_DTYPE"
        if name is None:
            return f"measured by the first worker, since the weights are large, and then shown in GET /v1/models; {PIN_HINT}"
        distance = _half_distance(bundle, layout)
    except (BundleError, UsageError, ValueError, RuntimeError) as error:
        return f"unknown: it does not run on this machine ({error})"
    device = _device_name(layout.device)
    chosen = (
        f"float32 on {device} ({layout.half}, if that is faster: {distance})" if name == "float32" else f"{name} on {device}: {distance}"
    )
    measured_hint = f"; {MEASURED_HINT}" if settings.dtype == "auto" else ""
    return f"{chosen}{measured_hint}; {PIN_HINT}"


def _faster_format(bundle: Bundle, layout: Layout, setting: str) -> Format:
    """Return the format that the setting names, or that workers of this machine would choose. Raises BundleError."""
    from models.loading import load
    from opsin.measuring.ladder import REPEATS, measure_seconds
    from server.worker.backends.learner import HANDICAPS
    from server.worker.backends.runner import is_precise
    from server.worker.backends.verification import DTYPES, default_schedule, sample

    if setting == "float32" or is_precise(bundle.spec):
        return "float32"
    if setting == layout.half:
        return layout.half
    formats: tuple[Format, ...] = ("float32", layout.half)
    models = {name: load(bundle, device=layout.device, dtype=DTYPES[name], packed=True) for name in formats}
    exact, job = models["float32"], sample(bundle.spec, TRIAL_BATCH)
    if exact.steps is not None or next(exact.model.parameters(), None) is None:
        return "float32"
    options = {"merge": default_schedule(bundle.spec).expand(exact.depth)}
    seconds = {
        name: min(measure_seconds(layout, lambda model=model: model.forward(job, options)) for _ in range(1 + REPEATS))  # type: ignore[misc]
        for name, model in models.items()
    }
    return layout.half if HANDICAPS[layout.half] * seconds[layout.half] < seconds["float32"] else "float32"


def _device_name(device: torch.device) -> str:
    import torch

    return "this machine's CPU" if device.type == "cpu" else f"this machine's GPU ({torch.cuda.get_device_name(device)})"


def _half_distance(bundle: Bundle, layout: Layout) -> str:
    """Describe how a classifier's logits in the device's 16-bit format differ from those in float32. Raises BundleError, UsageError."""
    import numpy as np
    import torch

    from models.loading import load
    from server.worker.backends.verification import DTYPES, default_schedule

    exact, short = (load(bundle, device=layout.device, dtype=dtype, packed=True) for dtype in (torch.float32, DTYPES[layout.half]))
    schedule, images = default_schedule(bundle.spec), load_at_model_size(_sample_images(), bundle.spec, "import")
    max_distance, same_labels, count, deadline = 0.0, 0, 0, time.monotonic() + MAX_TRIAL_S
    for image in images:
        if count and time.monotonic() > deadline:
            break
        exact_logits, short_logits = (compute_logits(model, exact.depth, image[None], schedule)[0] for model in (exact, short))
        max_distance = max(max_distance, float(np.abs(exact_logits.astype(np.float64) - short_logits).max()))
        same_labels += int(exact_logits.argmax() == short_logits.argmax())
        count += 1
    return f"at most {max_distance:.1e} from float32's logits on {format_count(count, 'image')}, best label equal on {same_labels}"


def _sample_images() -> list[Path]:
    """Return the drawings and photographs of the playground."""
    from server.playground import SAMPLES

    return [file for file in sorted(SAMPLES.glob("*.png")) if not file.stem.endswith(ARRAY_SUFFIXES)]
