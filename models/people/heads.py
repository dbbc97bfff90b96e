"""Encoders of inputs and heads that LART (arXiv 2304.01199) and PHALP's pose predictor share."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.people.smpl import SMPLParameters, SMPLRegressor
from models.people.track_batch import POSE_VALUES


@dataclass(frozen=True)
class TrackFeatureDims:
    """Dimensions of one kind of input: its values, the width of the layers between, its channels of the token."""

    values: int
    hidden: int
    width: int


POSE_FEATURE = TrackFeatureDims(POSE_VALUES, POSE_VALUES, 128)


def build_encoder(feature: TrackFeatureDims, layers: int) -> nn.Sequential:
    widths = [feature.values, *[feature.hidden] * (layers - 1), feature.width]
    steps: list[nn.Module] = []
    for before, after in pairwise(widths):
        steps += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*steps[:-1])


@dataclass(frozen=True)
class HeadOutputs:
    actions: Tensor
    """(..., actions), before the sigmoid."""
    person: SMPLParameters
    location: Tensor
    """(..., 3), in the camera's coordinates; depth divided by 200."""

    @property
    def pose(self) -> Tensor:
        """(..., 229), raw."""
        return torch.cat([self.person.pose, self.location], dim=-1)


class Heads(nn.Module):
    def __init__(self, width: int, actions: int, regressor_hidden: int) -> None:
        super().__init__()
        self.actions = nn.Linear(width, actions)
        self.regressor = SMPLRegressor(width, regressor_hidden)
        self.location = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))

    def forward(self, tokens: Tensor) -> HeadOutputs:
        return HeadOutputs(self.actions(tokens), self.regressor(tokens), self.location(tokens))
