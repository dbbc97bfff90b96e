"""The report of `opsin import`: the properties of the bundle and, in bold in the last line, its number format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from opsin.cli.bundles import number_formats
from opsin.cli.bundles.tokenizers import summary
from opsin.cli.shared.console import format_count, escape_controls, format_bytes

if TYPE_CHECKING:
    from models.bundle import Bundle, BundleSpec

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
    typer.secho(f"{'format':<13} {number_formats.describe_format(bundle)}", bold=True)


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
        if field not in SIZE_FIELDS | FIELDS_STATED_ELSEWHERE | HIDDEN_FIELDS.get(architecture, frozenset()) and reference_fields.get(field, ...) != value
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
    from models.registry import architectures
    from models.systems.published_sizes import sizes

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
