"""The scores of views and windows one by one, and where their tokens went: kept where a job asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ViewTrace:
    """Scores and traces that a job keeps of the steps that it has taken."""

    told: bool = False
    """Whether the scores of each view or window are asked for."""
    traced: bool = False
    """Whether their tokens are traced, too."""
    scores: tuple[Tensor, ...] = ()
    """(classes,) of each step."""
    groups: tuple[Mapping[str, Tensor], ...] = ()
    """Token that holds each patch after each block, by name, int32 (depth, patches), of each step that was traced."""

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> ViewTrace:
        """From options `timeline` and `trace`; the latter wants the former."""
        traced = bool(asked.get("trace"))
        return cls(traced or bool(asked.get("timeline")), traced)

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in self.scores) + sum(one.nbytes for step in self.groups for one in step.values())

    def after(self, scores: Tensor, groups: Mapping[str, Tensor]) -> ViewTrace:
        """Return what is kept after one step more. groups: none where it was not traced."""
        if not self.told:
            return self
        kept = {name: one.clone() for name, one in groups.items()}  # a row of a batch's tensor would keep the whole batch
        return replace(self, scores=(*self.scores, scores.clone()), groups=(*self.groups, kept) if kept else self.groups)

    def table(self, crops: int = 1) -> dict[str, Tensor]:
        """Return `timeline` float32 (views, classes), the mean over the crops of each whole view; nothing if not asked for."""
        views = len(self.scores) // crops
        if not self.told or views == 0:
            return {}
        return {"timeline": torch.stack(self.scores[: views * crops]).view(views, crops, -1).mean(dim=1).float()}

    def traces(self) -> dict[str, Tensor]:
        """Return groups by name, int32 (views, depth, patches)."""
        return {name: torch.stack([step[name] for step in self.groups]) for name in (self.groups[0] if self.groups else ())}
