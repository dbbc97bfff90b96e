"""Forward passes on random input of a model's own size that several systems share."""

from __future__ import annotations

from typing import Any

from models.registry import ForwardCall, InputMaker


def images(model: Any, config: Any, make: InputMaker) -> ForwardCall:
    pixels = make.normal(3, config.image_size, config.image_size)
    return lambda: model(pixels)


def clips(model: Any, config: Any, make: InputMaker) -> ForwardCall:
    pixels = make.normal(3, config.frames, config.image_size, config.image_size)
    return lambda: model(pixels)


def images_or_clips(model: Any, config: Any, make: InputMaker) -> ForwardCall:
    return (images if config.images else clips)(model, config, make)


def masked_images(model: Any, config: Any, make: InputMaker) -> ForwardCall:
    pixels, noise = make.normal(3, config.image_size, config.image_size), make.uniform(config.patches)
    return lambda: model(pixels, noise)


def masked_clips(model: Any, config: Any, make: InputMaker) -> ForwardCall:
    pixels, noise = make.normal(3, config.frames, config.image_size, config.image_size), make.uniform(config.patches)
    return lambda: model(pixels, noise)
