"""Addition of a tokenizer to an image-text bundle: its section `text` and its `tokenizer.json`. Imports no torch."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from models.bundle import TOKENIZER_FILE, Bundle, BundleSpec, replace_files
from models.bundle_schema import MAX_TEXT_TOKENS, TextSpec
from models.systems.image_text.tokenizer import TEXT_CONVENTIONS, TextConvention, Tokenizer, check_fit, position_count
from models.systems.image_text.tokenizer_conversion import lowercase, read_vocabulary
from models.systems.image_text.tokenizer_vocabulary import TokenizerError

MAX_FLIP_SCALE = 100.0
"""Maximum scale of FLIP, which clips the logarithm of its scale to [0, log 100]."""


def prepare_tokenizer(
    spec: BundleSpec,
    weights: Path,
    tokenizer: Path,
    templates: Sequence[str] | None = None,
    *,
    max_length: int = MAX_TEXT_TOKENS,
    special: bool | None = None,
) -> tuple[TextSpec, bytes]:
    """Return the section `text` of a pair's spec, and the content of its `tokenizer.json`.

    weights: the pair's safetensors file. tokenizer: as `read_vocabulary` takes it. templates: None for those of the spec, else the label
    alone. max_length and special: for a pair that was trained with texts of at most so many word pieces, and with special tokens or
    without; otherwise as published. Raises TokenizerError with a sentence for the user.
    """
    try:
        positions_count = position_count(spec.architecture, spec.config)
    except ValueError as error:
        raise TokenizerError(f"{spec.id}: {error}") from error
    convention = TEXT_CONVENTIONS[spec.architecture]
    length = min(positions_count, convention.length or positions_count, max_length)
    has_special = convention.special if special is None else special
    file = read_vocabulary(tokenizer, special=has_special)
    if convention.lowercases:
        file = lowercase(file)
    try:
        check_fit(file, spec.config.get("vocabulary"))
        if has_special and not (file.prefix_ids if convention.has_prefix else file.suffix_ids):
            raise TokenizerError(
                f"post_processor: puts no token {_missing_position(convention)}, which is the one that {spec.architecture} uses"
            )
        Tokenizer.from_file(file, length=length, is_fixed_length=False, padding=0)
    except TokenizerError as error:
        raise TokenizerError(f"{tokenizer}: {error}") from error
    default_templates = spec.text.templates if spec.text is not None else ["{}"]
    try:
        text = TextSpec(
            length=length,
            padding=convention.padding,
            empty=convention.empty,
            templates=list(templates) if templates is not None else default_templates,
            scale=_scale(spec, weights),
            scores=convention.scores,
            bias=_read_scalar(weights, "logit_bias") if convention.scores == "sigmoid" else 0.0,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise TokenizerError(f"text.{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}") from error
    return text, file.to_bytes()


def _scale(spec: BundleSpec, weights: Path) -> float:
    """Return the factor of the cosines, in float64: the exponential of the weight `logit_scale`, FLIP's from 1 to 100, or the fixed one."""
    fixed = spec.config.get("fixed_temperature")
    if fixed:
        return 1 / float(fixed)
    logarithm = _read_scalar(weights, "logit_scale")
    if spec.architecture == "flip" and logarithm >= math.log(MAX_FLIP_SCALE):
        return MAX_FLIP_SCALE
    if spec.architecture == "flip":
        return math.exp(max(logarithm, 0.0))
    try:
        return math.exp(logarithm)
    except OverflowError:
        return math.inf  # refused by `TextSpec`


def _read_scalar(weights: Path, name: str) -> float:
    try:
        with safe_open(weights, framework="pt") as file:
            return float(file.get_tensor(name))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise TokenizerError(f"{weights}: {name} cannot be read ({error})") from error


def _missing_position(convention: TextConvention) -> str:
    return "before a text, as [CLS] or <s>" if convention.has_prefix else "after a text, as </s>"


def add_tokenizer(bundle: Bundle, tokenizer: Path, templates: Sequence[str] | None) -> Bundle:
    """Add a tokenizer to a bundle, or replace it: `tokenizer.json` and `bundle.json` change at once. See `prepare_tokenizer`."""
    text, content = prepare_tokenizer(bundle.spec, bundle.weights_path, tokenizer, templates)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / TOKENIZER_FILE
        file.write_bytes(content)
        return replace_files(bundle, bundle.spec.model_copy(update={"text": text}), {TOKENIZER_FILE: file})
