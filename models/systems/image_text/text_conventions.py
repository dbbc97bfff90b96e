"""Conventions by which each pair of towers tokenizes texts. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class TextConvention:
    """Properties of an architecture's texts that the authors' code has, and no checkpoint."""

    positions: Callable[[Mapping[str, Any]], int]
    """Function of a config → number of word pieces that the network has positions for."""
    length: int | None
    """Number of word pieces at which the authors truncate, special ones included; None: the number of positions."""
    padding: Literal["longest", "length"] = "longest"
    empty: bool = True
    special: bool = True
    """Whether special tokens frame a text."""
    has_prefix: bool = True
    """Whether one of them comes before the text."""
    lowercases: bool = False
    """Whether training texts were lowercased, which the tokenizer's file may omit."""
    scores: Literal["softmax", "sigmoid"] = "softmax"


TEXT_CONVENTIONS: Mapping[str, TextConvention] = {
    # XLM-R's positions start after that of padding
    "maws_clip": TextConvention(lambda config: int(config["positions"]) - int(config["padding"]) - 1, 102),
    "cit": TextConvention(lambda config: int(config["positions"]), 32),
    "clip": TextConvention(lambda config: int(config["text_length"]), None),
    "flip": TextConvention(lambda config: int(config["text_length"]), None, padding="length", empty=False, special=False),
    "siglip": TextConvention(
        lambda config: int(config["text_length"]), None, padding="length", has_prefix=False, lowercases=True, scores="sigmoid"
    ),
}
"""Conventions by architecture. MAWS truncates to 100 pieces and adds two; CiT has 32 including both; FLIP 32 without any, and padding;
SigLIP 64 with one after the text, and padding."""


def position_count(architecture: str, config: Mapping[str, Any]) -> int:
    """Return the number of positions of a pair's text tower. Raises ValueError with a sentence."""
    convention = TEXT_CONVENTIONS.get(architecture)
    if convention is None:
        raise ValueError(f"architecture {architecture} has no text tower; {', '.join(TEXT_CONVENTIONS)} have one")
    try:
        return convention.positions(config)
    except KeyError as error:
        raise ValueError(f"config: {error.args[0]} is missing") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"config: {error}") from error
