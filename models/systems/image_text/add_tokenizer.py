"""A tokenizer comes to a pair: the bundle's section `text` and its `tokenizer.json`. Imports no torch."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from models.bundle import TOKENIZER_FILE, Bundle, BundleSpec, replace_files
from models.bundle_schema import MAX_TEXT_TOKENS, TextSpec
from models.systems.image_text.text_conventions import READINGS, Reading, positions
from models.systems.image_text.tokenizer import Tokenizer, check_fit
from models.systems.image_text.tokenizer_conversion import in_small_letters, read_vocabulary
from models.systems.image_text.tokenizer_vocabulary import TokenizerError

LARGEST_FLIP_SCALE = 100.0
"""FLIP clips the logarithm of its scale to [0, log 100]."""


def prepare(
    spec: BundleSpec,
    weights: Path,
    tokenizer: Path,
    templates: Sequence[str] | None = None,
    *,
    most: int = MAX_TEXT_TOKENS,
    special: bool | None = None,
) -> tuple[TextSpec, bytes]:
    """The section `text` of a pair's spec, and the content of its `tokenizer.json`.

    weights: the pair's safetensors file. tokenizer: as `read_vocabulary` takes it. templates: None for those that the spec has, else the
    label alone. most and special: of a pair that was trained with texts of at most so many word pieces, and with special tokens or
    without; else as the published one. Raises TokenizerError with a sentence for the user.
    """
    try:
        places = positions(spec.architecture, spec.config)
    except ValueError as error:
        raise TokenizerError(f"{spec.id}: {error}") from error
    reading = READINGS[spec.architecture]
    length = min(places, reading.length or places, most)
    framed = reading.special if special is None else special
    file = read_vocabulary(tokenizer, special=framed)
    if reading.lowers:
        file = in_small_letters(file)
    try:
        check_fit(file, spec.config.get("vocabulary"))
        if framed and not (file.before if reading.begins else file.after):
            raise TokenizerError(f"post_processor: puts no token {_where(reading)}, and {spec.architecture} reads that one")
        Tokenizer.of(file, length=length, fixed=False, padding=0)
    except TokenizerError as error:
        raise TokenizerError(f"{tokenizer}: {error}") from error
    usual = spec.text.templates if spec.text is not None else ["{}"]
    try:
        text = TextSpec(
            length=length,
            padding=reading.padding,
            empty=reading.empty,
            templates=list(templates) if templates is not None else usual,
            scale=_scale(spec, weights),
            scores=reading.scores,
            bias=_number(weights, "logit_bias") if reading.scores == "sigmoid" else 0.0,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise TokenizerError(f"text.{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}") from error
    return text, file.to_bytes()


def _scale(spec: BundleSpec, weights: Path) -> float:
    """Factor of the cosines, in float64: the exponential of the weight `logit_scale`, FLIP's from 1 to 100, or the fixed one."""
    fixed = spec.config.get("fixed_temperature")
    if fixed:
        return 1 / float(fixed)
    logarithm = _number(weights, "logit_scale")
    if spec.architecture == "flip" and logarithm >= math.log(LARGEST_FLIP_SCALE):
        return LARGEST_FLIP_SCALE
    if spec.architecture == "flip":
        return math.exp(max(logarithm, 0.0))
    try:
        return math.exp(logarithm)
    except OverflowError:
        return math.inf  # refused by `TextSpec`


def _number(weights: Path, name: str) -> float:
    try:
        with safe_open(weights, framework="pt") as file:
            return float(file.get_tensor(name))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise TokenizerError(f"{weights}: {name} cannot be read ({error})") from error


def _where(reading: Reading) -> str:
    return "before a text, as [CLS] or <s>" if reading.begins else "behind a text, as </s>"


def add_tokenizer(bundle: Bundle, tokenizer: Path, templates: Sequence[str] | None) -> Bundle:
    """Add a tokenizer to a bundle, or replace it: `tokenizer.json` and `bundle.json` change at once. As for `prepare`."""
    text, content = prepare(bundle.spec, bundle.weights_path, tokenizer, templates)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / TOKENIZER_FILE
        file.write_bytes(content)
        return replace_files(bundle, bundle.spec.model_copy(update={"text": text}), {TOKENIZER_FILE: file})
