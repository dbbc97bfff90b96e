"""`--tokenizer` of `opsin import`, and `opsin bundles tokenizer`: add a tokenizer to an image-text bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from opsin.cli.shared.errors import UsageError

if TYPE_CHECKING:
    from models.bundle import Bundle, BundleSpec
    from models.bundle_schema import TextSpec


def prepare_tokenizer(
    spec: BundleSpec, weights: Path, tokenizer: Path, templates: Path | None, folder: Path
) -> tuple[TextSpec, dict[str, Path]]:
    """Return the section `text` of a new bundle, and its further files, written into `folder`. Raises UsageError."""
    from models.bundle import TOKENIZER_FILE
    from models.systems.image_text.add_tokenizer import prepare_tokenizer
    from models.systems.image_text.tokenizer_conversion import read_templates
    from models.systems.image_text.tokenizer_vocabulary import TokenizerError

    try:
        text, content = prepare_tokenizer(spec, weights, tokenizer, read_templates(templates) if templates else None)
    except TokenizerError as error:
        raise UsageError(str(error)) from error
    file = folder / TOKENIZER_FILE
    file.write_bytes(content)
    return text, {TOKENIZER_FILE: file}


def with_tokenizer(bundle: Bundle, tokenizer: Path, templates: Path | None) -> Bundle:
    """Write a bundle's new tokenizer, and return the bundle. Raises UsageError."""
    from models.systems.image_text.add_tokenizer import add_tokenizer
    from models.systems.image_text.tokenizer_conversion import read_templates
    from models.systems.image_text.tokenizer_vocabulary import TokenizerError

    try:
        return add_tokenizer(bundle, tokenizer, read_templates(templates) if templates else None)
    except TokenizerError as error:
        raise UsageError(str(error)) from error


def summary(spec: BundleSpec) -> str | None:
    """Describe how an image-text bundle reads texts, in one line; None for other bundles."""
    text = spec.text
    if text is None:
        return f"none: it has no tokenizer; `opsin bundles tokenizer {spec.name} FILE` adds one" if spec.task == "zero-shot" else None
    padded = f"padded to {text.length}" if text.padding == "length" else "padded to the longest"
    count = len(text.templates)
    templates = f"{count} templates" if count > 1 else f"template {text.templates[0]!r}"
    bias = f", bias {text.bias:.4g}" if text.bias else ""
    return f"at most {text.length} word pieces, {padded}, {templates}, scale {text.scale:.4g}{bias}, {text.scores}"
