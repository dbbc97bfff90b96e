"""How each pair of towers reads texts. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Reading:
    """The facts that the authors' code holds, and no checkpoint."""

    positions: Callable[[Mapping[str, Any]], int]
    """Number of word pieces that the network has positions for, from its config."""
    length: int | None
    """Number of word pieces at which the authors cut, special ones included; None: as many as there are positions."""
    padding: Literal["longest", "length"] = "longest"
    empty: bool = True
    special: bool = True
    """Whether special tokens frame a text."""
    begins: bool = True
    """Whether one of them stands before it."""
    lowers: bool = False
    """Whether capitals were small in training, of which the tokenizer's file may know nothing."""
    scores: Literal["softmax", "sigmoid"] = "softmax"


READINGS: Mapping[str, Reading] = {
    # XLM-R's positions are counted from the one after padding
    "maws_clip": Reading(lambda config: int(config["positions"]) - int(config["padding"]) - 1, 102),
    "cit": Reading(lambda config: int(config["positions"]), 32),
    "clip": Reading(lambda config: int(config["text_length"]), None),
    "flip": Reading(lambda config: int(config["text_length"]), None, padding="length", empty=False, special=False),
    "siglip": Reading(lambda config: int(config["text_length"]), None, padding="length", begins=False, lowers=True, scores="sigmoid"),
}
"""Architecture → how it reads. MAWS cuts to 100 pieces and adds two; CiT has 32 with both; FLIP 32 without any, and reads padding;
SigLIP 64 with one behind the text, and reads padding."""


def positions(architecture: str, config: Mapping[str, Any]) -> int:
    """Raises ValueError with a sentence."""
    reading = READINGS.get(architecture)
    if reading is None:
        raise ValueError(f"architecture {architecture} reads no texts; {', '.join(READINGS)} do")
    try:
        return reading.positions(config)
    except KeyError as error:
        raise ValueError(f"config: {error.args[0]} is missing") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"config: {error}") from error
