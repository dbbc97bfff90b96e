"""The lines that `opsin import` ends with: what the bundle is, and in bold, as the last one, the numbers that it answers in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from opsin.cli.bundles import number_formats
from opsin.cli.bundles.tokenizers import summary
from opsin.cli.shared.console import counted, escape_controls, format_bytes

if TYPE_CHECKING:
    from models.bundle import Bundle, BundleSpec

WIDEST = 120
"""Characters of the line of the architecture."""
MAX_SHOWN_CHARS = 24
"""Characters of a field's value there."""
TRUNKS = (("", ""), ("text_", "texts "), ("decoder_", "decoder "))
"""Prefixes of the fields that give a trunk's size, and what the line calls the trunk."""
MEASURES = frozenset({"patch_size", *(prefix + field for prefix, _ in TRUNKS for field in ("depth", "width", "heads"))})
"""Fields that a published size is known by, stated in words."""
UNSAID = {"onnx": frozenset({"output"})}
"""Fields that say nothing to a reader, by architecture."""
ELSEWHERE = frozenset({"image_size", "image_width", "classes", "drop_path", "dropout"})
"""Fields that the line states otherwise, or other lines do, or that only training reads."""


def show(bundle: Bundle) -> None:
    """Print what was imported."""
    spec = bundle.spec
    if "repository" in spec.provenance:
        _row("repository", f"{spec.provenance['repository']} at {spec.provenance['revision']}")
    _row("family", spec.provenance["family"])
    _row("task", spec.task)
    typer.echo(escape_controls(architecture_line(spec.architecture, spec.config)))
    for name, text in _inputs(spec):
        _row(name, text)
    if texts := summary(spec):
        _row("texts", texts)
    if "transform" in spec.provenance:
        _row("transform", spec.provenance["transform"])
    if spec.labels:
        _row("labels", f"{counted(len(spec.labels), 'label')}: {', '.join(spec.labels[:4])}{', …' if spec.labels[4:] else ''}")
    if "left_out" in spec.provenance:
        _row("left out", ", ".join(spec.provenance["left_out"]))
    for note in spec.provenance.get("notes", []):
        _row("note", note)
    if spec.ladder:
        _row("ladder", f"{', '.join(rung.name for rung in spec.ladder)} (not measured)")
    _row("license", spec.license)
    _row("written", f"{bundle.path} ({format_bytes(bundle.spec.size)})")
    typer.secho(f"{'format':<13} {number_formats.sentence(bundle)}", bold=True)


def _row(name: str, text: str) -> None:
    typer.echo(escape_controls(f"{name:<13} {text}"))  # files name outputs and labels


def architecture_line(architecture: str, fields: dict[str, Any]) -> str:
    """The published size that a network has, if any, else its trunks; and the fields in which it differs from that size, or from the
    defaults. Of a network without blocks all fields but those that are 0, false or empty."""
    from models.registry import architectures, read_config

    config = read_config(architectures()[architecture].config, fields)
    own = asdict(config)
    name, usual = _closest(architecture, own)
    size, patch = architectures()[architecture].purpose.size(config), own.get("patch_size")
    parts = [name] if name else [f"patches of {patch}"] if patch else []
    if size is not None:
        parts = [" ".join([*parts, "at", " × ".join(map(str, dict.fromkeys(size)))])]
    for prefix, trunk in TRUNKS[:1] if name else TRUNKS:
        if prefix + "depth" in own:
            parts.append(trunk + ", ".join(_trunk(own, prefix)))
    parts += [
        _setting(field, value)
        for field, value in own.items()
        if field not in MEASURES | ELSEWHERE | UNSAID.get(architecture, frozenset()) and usual.get(field, ...) != value
    ]
    line = f"{'architecture':<13} {architecture}" + (": " if parts else "") + ", ".join(parts)
    return line if len(line) <= WIDEST else line[: WIDEST + 1 - len(", …")].rpartition(", ")[0] + ", …"


def _trunk(fields: dict[str, Any], prefix: str) -> Iterator[str]:
    depth, width, heads = (fields.get(f"{prefix}{field}") for field in ("depth", "width", "heads"))
    yield counted(depth or 0, "block")
    if width is not None:
        yield f"width {width}"
    if heads is not None:
        yield counted(heads, "head")


def _closest(architecture: str, own: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The published size with the same patches and trunks that has most fields in common, and its fields. None without one: the fields
    are the defaults, or the empty ones of a network without blocks."""
    from models.registry import architectures
    from models.systems.published_sizes import sizes

    published = {found.name: asdict(found.config) for found in sizes().values() if found.architecture == architecture}
    alike = [name for name, known in published.items() if all(known.get(field) == own.get(field) for field in MEASURES)]
    if alike:
        name = min(alike, key=lambda name: sum(own[field] != value for field, value in published[name].items()))
        return name, published[name]
    if "depth" in own:
        return None, asdict(architectures()[architecture].config())
    return None, {field: value for field, value in own.items() if not value}


def _setting(field: str, value: object) -> str:
    """A field as `--set` takes it; a long value by its name alone."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"{field}={text}" if len(text) <= MAX_SHOWN_CHARS else f"{field}=…"


def _inputs(spec: BundleSpec) -> Iterator[tuple[str, str]]:
    """Lines that say how images, clips and sounds become input."""
    pictures, clip, sound = spec.preprocess, spec.clip, spec.sound
    if pictures is not None:
        crop = f"{pictures.image_size} × {pictures.image_width}" if pictures.image_width else f"{pictures.image_size}"
        squeezed = "squeezed to" if pictures.fit == "squeeze" else f"squeezed to {pictures.short_side}, crop"
        how = f"short side {pictures.short_side}, crop" if pictures.fit == "crop" else squeezed
        yield "images", f"{how} {crop}, {pictures.interpolation}, mean {pictures.mean}, std {pictures.std}"
    if clip is not None:
        smooth = ", smoothed where they shrink" if clip.smooth else ""
        yield "clips", f"{clip.frames} frames, {clip.stride:g} apart at {clip.rate:g} a second{smooth}"
    if sound is not None:
        bank = f"{sound.frames} frames of {sound.mel_bins} mel bins"
        yield "sound", f"{bank} at {sound.sample_rate} Hz, mean {sound.mean}, std {sound.std}"
