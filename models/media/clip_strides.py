"""Strides of published clips. Imports no torch."""

from __future__ import annotations

from typing import Any

from models.bundle_schema import Clip

SLOWFAST_STRIDES = {32: 3.0, 40: 3.0}
"""Frames of a published clip → frames of the video from one to the next; 4 for all other lengths."""


def slowfast_clip(config: Any) -> Clip:
    """The clip of a model that SlowFast or MAE-ST trained."""
    return Clip(frames=config.frames, stride=SLOWFAST_STRIDES.get(config.frames, 4.0))
