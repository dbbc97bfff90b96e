"""Settings of a recipe for judging its network's depths."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from training.settings import Settings


class DepthQuality(Settings):
    """The error of depth that is left after the best scale and shift, on renders of held-out categories and on two photographs, against
    the inflated outline."""

    kind: Literal["depth"]
    views: int = Field(default=4, gt=0)
    """Views of each object, at most."""
    margin: float = Field(default=0.1, ge=0)
    """Share of an object's size that photographs show around it, as the service does."""
