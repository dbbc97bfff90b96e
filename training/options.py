"""Options of `opsin train`; the other commands of training share their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainOptions:
    recipe: Path
    changes: tuple[str, ...] = ()
    """Overrides, `phases.0.loop.batch_size=8`."""
    runs: Path = Path("runs")
    bundles: Path = Path("bundles")
    cache: Path = Path(".cache/data")
    phase: str | None = None
    """Train this one alone."""
    dry_run: bool = False
    tensorboard: bool = True
