"""Objectives by kind: the one place that lists them. A line here makes `objective: {kind: …}` of a recipe mean something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field
from torch import nn

from training.objectives import back, cit, contrastive, depth, diffmae, lart, linear_probe, mae, mavil, maws, mcc, proxies, supervised
from training.objectives.base import Facts
from training.settings import Settings


@dataclass(frozen=True)
class Kind:
    settings: type[Settings]
    """Has a field `kind: Literal[NAME] = NAME`."""
    build: Callable[[Any, nn.Module, Facts], nn.Module]
    """(settings, the phase's network, facts) → the objective. Raises ValueError where the network does not suit."""


KINDS: tuple[Kind, ...] = (
    Kind(mae.MAESettings, mae.build),
    Kind(supervised.SupervisedSettings, supervised.build),
    Kind(linear_probe.LinearProbeSettings, linear_probe.build),
    Kind(maws.HashtagSettings, maws.build),
    Kind(diffmae.DiffMAESettings, diffmae.build),
    Kind(contrastive.ContrastiveSettings, contrastive.build),
    Kind(proxies.ProxiesSettings, proxies.build),
    Kind(cit.CiTSettings, cit.build),
    Kind(mavil.MAViLSettings, mavil.build),
    Kind(mavil.AudioVisualSettings, mavil.build_labels),
    Kind(lart.LARTSettings, lart.build),
    Kind(mcc.MCCSettings, mcc.build),
    Kind(back.BackSettings, back.build),
    Kind(depth.DepthSettings, depth.build),
)

if TYPE_CHECKING:
    ObjectiveSettings = Settings
else:
    ObjectiveSettings = Annotated[Union[tuple(kind.settings for kind in KINDS)], Field(discriminator="kind")]  # noqa: UP007


def build(settings: Settings, model: nn.Module, facts: Facts) -> nn.Module:
    """The objective around its network. Raises ValueError."""
    [kind] = [kind for kind in KINDS if isinstance(settings, kind.settings)]
    return kind.build(settings, model, facts)
