"""Objectives by kind: the one place that lists ours. A line here makes `objective: {kind: …}` of a recipe mean something."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny

from training.kinds import Kinds
from training.objectives.protocols import ObjectiveSettings

KINDS = Kinds(
    ObjectiveSettings,  # type: ignore[type-abstract]
    {
        "mae": "training.objectives.mae:MAESettings",
        "supervised": "training.objectives.supervised:SupervisedSettings",
        "linear_probe": "training.objectives.linear_probe:LinearProbeSettings",
        "hashtags": "training.objectives.hashtags:HashtagSettings",
        "diffmae": "training.objectives.diffmae:DiffMAESettings",
        "contrastive": "training.objectives.contrastive:ContrastiveSettings",
        "proxies": "training.objectives.proxy_nca:ProxiesSettings",
        "cit": "training.objectives.cit:CiTSettings",
        "mavil": "training.objectives.mavil:MAViLSettings",
        "audio_visual": "training.objectives.mavil:AudioVisualSettings",
        "lart": "training.objectives.lart:LARTSettings",
        "mcc": "training.objectives.mcc:MCCSettings",
        "back": "training.objectives.back_surface:BackSettings",
        "depth": "training.objectives.depth:DepthSettings",
    },
)

AnyObjective = Annotated[SerializeAsAny[ObjectiveSettings], BeforeValidator(KINDS.read)]
"""Field of a recipe with settings of any kind."""
