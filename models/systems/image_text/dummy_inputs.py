"""Forward passes of pairs of towers on random input: an image and a text in each row."""

from __future__ import annotations

from models.registry import ForwardCall, InputMaker
from models.systems.image_text.cit import CiT, CiTConfig
from models.systems.image_text.clip import CLIP, CLIPConfig
from models.systems.image_text.flip import FLIP, FLIPConfig
from models.systems.image_text.maws import MAWSClip, MAWSClipConfig
from models.systems.image_text.siglip import SigLIP, SigLIPConfig

MAWS_TEXT_LENGTH = 102
"""Number of tokens to which MAWS's published tokenizer pads every text, start and end included; the features do not depend on it."""
CIT_TEXT_LENGTH = 32
"""Number of tokens of CiT's captions."""


def maws_clip(model: MAWSClip, config: MAWSClipConfig, make: InputMaker) -> ForwardCall:
    pixels, words = make.normal(3, config.image_size, config.image_size), make.words(MAWS_TEXT_LENGTH)
    return lambda: model(pixels, words)


def flip(model: FLIP, config: FLIPConfig, make: InputMaker) -> ForwardCall:
    pixels, words = make.normal(3, config.image_size, config.image_size), make.words(config.text_length)
    return lambda: model(pixels, words)


def clip(model: CLIP, config: CLIPConfig, make: InputMaker) -> ForwardCall:
    pixels, words = make.normal(3, config.image_size, config.image_size), make.words(config.text_length)
    return lambda: model(pixels, words)


def siglip(model: SigLIP, config: SigLIPConfig, make: InputMaker) -> ForwardCall:
    pixels, words = make.normal(3, config.image_size, config.image_size), make.words(config.text_length)
    return lambda: model(pixels, words)


def cit(model: CiT, config: CiTConfig, make: InputMaker) -> ForwardCall:
    pixels, words = make.normal(3, config.image_size, config.image_size), make.words(CIT_TEXT_LENGTH)
    return lambda: model(pixels, words)
