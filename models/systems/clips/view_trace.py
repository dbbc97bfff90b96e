"""Scores and token maps of single views and windows, for jobs that request them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ViewTrace:
    """Scores and traces of the steps of a job so far."""

    keeps_scores: bool = False
    """Whether the scores of each view or window are requested."""
    keeps_groups: bool = False
    """Whether their tokens are traced, too."""
    scores: tuple[Tensor, ...] = ()
    """(classes,) of each step."""
    groups: tuple[Mapping[str, Tensor], ...] = ()
    """Token that holds each patch after each block, by name, int32 (depth, patches), of each traced step."""

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> ViewTrace:
        """Read the options `timeline` and `trace`; the latter implies the former."""
        traced = bool(options.get("trace"))
        return cls(traced or bool(options.get("timeline")), traced)

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in self.scores) + sum(one.nbytes for step in self.groups for one in step.values())

    def after(self, scores: Tensor, groups: Mapping[str, Tensor]) -> ViewTrace:
        """Return the trace after one step more. groups: empty if the step was not traced."""
        if not self.keeps_scores:
            return self
        rows = {name: one.clone() for name, one in groups.items()}  # a row of a batch's tensor would keep the whole batch
        return replace(self, scores=(*self.scores, scores.clone()), groups=(*self.groups, rows) if rows else self.groups)

    def table(self, crops: int = 1) -> dict[str, Tensor]:
        """Return `timeline` float32 (views, classes), the mean over the crops of each whole view; nothing if not asked for."""
        views = len(self.scores) // crops
        if not self.keeps_scores or views == 0:
            return {}
        return {"timeline": torch.stack(self.scores[: views * crops]).view(views, crops, -1).mean(dim=1).float()}

    def traces(self) -> dict[str, Tensor]:
        """Return groups by name, int32 (views, depth, patches)."""
        return {name: torch.stack([step[name] for step in self.groups]) for name in (self.groups[0] if self.groups else ())}
