"""What the tests of recorded systems ask in the same words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.published import FAMILIES, fit
from models.registry import ARCHITECTURES, mismatch

GOLDEN = Path(__file__).parents[1] / "golden"


def full_sizes(system: str) -> dict[str, dict[str, Tensor]]:
    """The published checkpoints of a system by name: names and shapes, no storage."""
    content = json.loads((GOLDEN / system / "published_keys.json").read_text())
    return {name: {key: torch.empty(shape, device="meta") for key, shape in entry["params"].items()} for name, entry in content.items()}


def loads_strictly(published: Mapping[str, Tensor], family: str) -> None:
    """Names and shapes of a full-size checkpoint are those of the model that its family builds for it."""
    found = fit(published, FAMILIES[family], {})
    assert found.perfect, found.complaint()
    with torch.device("meta"):
        model = ARCHITECTURES[FAMILIES[family].architecture].build(found.config())
    assert mismatch(model, found.weights) is None


def round_trips(published: Mapping[str, Tensor], family: str, settings: Mapping[str, object]) -> dict[str, Tensor]:
    """Import, export and import again: bit for bit the same. Returns what was exported."""
    first = fit(published, FAMILIES[family], dict(settings))
    assert first.perfect, first.complaint()
    exported = FAMILIES[family].export(first.weights)
    assert all(torch.equal(published[key], value) for key, value in exported.items())
    second = fit(exported, FAMILIES[family], dict(settings))
    assert second.perfect, second.complaint()
    assert first.weights.keys() == second.weights.keys()
    assert all(torch.equal(second.weights[name], value) for name, value in first.weights.items())
    return exported


def relative_deviation(got: Tensor, expected: Tensor) -> float:
    """The largest error, by the largest value expected."""
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max())
