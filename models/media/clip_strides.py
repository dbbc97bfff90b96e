"""Strides of published clips. Imports no torch."""

from __future__ import annotations

from typing import Any

from models.bundle_schema import Clip

SLOWFAST_STRIDES = {32: 3.0, 40: 3.0}
"""Number of frames of a published clip → distance of its frames in frames of the video; 4 for all other lengths."""


def slowfast_clip(config: Any) -> Clip:
    """Return the clip of a model of SlowFast or MAE-ST."""
    return Clip(frames=config.frames, stride=SLOWFAST_STRIDES.get(config.frames, 4.0))
