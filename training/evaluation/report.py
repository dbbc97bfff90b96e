"""Measurements of a finished network, and reports of them that stay on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.bundle_schema import Rung
from models.systems.mavil.model import MAViL
from models.systems.vit.model import ViT
from training.errors import TrainingError
from training.fingerprint import sha256_of_weights
from training.phase_runner import RunContext
from training.recipe import Recipe
from training.recipe_settings import RecipeSettings

_BEFORE = "judging"
"""Name of the folder of reports in runs of earlier versions."""


@dataclass(frozen=True)
class Measurement:
    """Measurements as a bundle says them."""

    quality: dict[str, Any] = field(default_factory=dict)
    ladder: list[Rung] = field(default_factory=list)
    default_rung: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    """Description of the data for the provenance."""


def round_weights(network: nn.Module, recipe: Recipe) -> nn.Module:
    """Round weights to the number format of the recipe's bundle, so that the shipped network is evaluated."""
    assert recipe.release is not None
    return (network.half().float() if recipe.release.dtype == "float16" else network).eval()


def calibrate(network: ViT | MAViL, temperature: float) -> nn.Module:
    """Divide the weights of the head by `temperature`: confidences change, predictions do not."""
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.div_(temperature)
    return network


def reports(context: RunContext) -> Path:
    """Folder of reports and of scored rows. Those of a run of an earlier version move there: a test split is looked at once."""
    folder = context.runs / "evaluation"
    if (before := context.runs / _BEFORE).is_dir() and not folder.exists():
        before.rename(folder)
    return folder


def read_or_evaluate_once(file: Path, of: Mapping[str, str], look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Evaluate on a test split and write the report to `file`, or read it if weights and settings are the same.

    Raises TrainingError if the test split was evaluated with others.
    """
    if file.is_file():
        earlier: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if earlier["judged"] != of:
            raise TrainingError(f"{file}: the test split was looked at with other weights or settings; choose by the validation split")
        return earlier
    return write_report(file, of, look())


def write_report(file: Path, of: Mapping[str, str], report: dict[str, Any]) -> dict[str, Any]:
    """Write a report with its `weights_and_settings`."""
    content = {"judged": dict(of), **report}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


def weights_and_settings(settings: RecipeSettings, network: nn.Module) -> dict[str, str]:
    """Return digests of weights and settings, which identify an evaluation."""
    return {"weights": sha256_of_weights(network.state_dict()), "settings": sha256(settings.model_dump_json().encode()).hexdigest()}
