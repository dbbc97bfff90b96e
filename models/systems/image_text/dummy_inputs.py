"""Forward passes of pairs of towers on random input: an image and a text in each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models.registry import ForwardCall, InputMaker


def _make_dummy(text_length: Callable[[Any], int]) -> Callable[[Any, Any, InputMaker], ForwardCall]:
    def dummy(model: Any, config: Any, make: InputMaker) -> ForwardCall:
        pixels, words = make.normal(3, config.image_size, config.image_size), make.words(text_length(config))
        return lambda: model(pixels, words)

    return dummy


maws_clip = _make_dummy(lambda config: 102)
"""MAWS's published tokenizer pads every text to 102 tokens, start and end included; the features do not depend on it."""
cit = _make_dummy(lambda config: 32)
"""CiT's captions have 32 tokens."""
flip = clip = siglip = _make_dummy(lambda config: int(config.text_length))
