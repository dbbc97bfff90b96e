"""The starter for reconstruction, as it is shipped: on a ball that is made here, since it must not need a download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models import bundle
from models.bundle import Bundle
from models.loading import load
from models.systems.mcc.model import MCC
from models.systems.mcc.scene_inputs import normalise_points
from starters.evaluation import cards as model_card

FOLDER = Path(__file__).parents[2] / "bundles/reconstruct/2.0.0"
THRESHOLD = 0.1


@pytest.fixture(scope="module")
def starter() -> Bundle:
    return bundle.read(FOLDER)


def test_the_starter_is_small_whole_and_licensed(starter: Bundle) -> None:
    starter.verify()
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 16_000_000
    assert (starter.spec.task, starter.spec.architecture) == ("reconstruct", "mcc")
    data = starter.spec.provenance["data"]
    free = {"MIT", "zlib", "Apache-2.0", "BSD-3-Clause", "CC0-1.0 and CC-BY-3.0"}
    assert {package["license"] for package in data["packages"]} <= free
    assert data["creators"].keys() >= {"CC-BY-3.0", "CC-BY-3.0-US"}
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == model_card.render(starter.spec)


def ball(side: int) -> tuple[Tensor, Tensor]:
    """Draw an orange ball that fills most of a far camera's image (1, 3, 96, 96), and its visible points (1, side, side, 3)."""
    axis = (torch.arange(side) + 0.5) / side * 2.2 - 1.1
    x, y = axis.expand(side, -1), axis.unsqueeze(1).expand(-1, side)
    square = 1 - x**2 - y**2
    seen = torch.stack([x, y, 6 - square.clamp(min=0).sqrt()], dim=-1).masked_fill((square < 0).unsqueeze(-1), torch.inf)
    inside = torch.nn.functional.interpolate((square > 0).float()[None, None], size=(96, 96))
    return inside * torch.tensor([0.9, 0.5, 0.1]).view(1, 3, 1, 1), seen.unsqueeze(0)


@torch.inference_mode()
def test_starter_finds_visible_surface_and_leaves_air_empty(starter: Bundle) -> None:
    model = load(starter).model
    assert isinstance(model, MCC)
    image, seen = ball(model.config.seen_size)
    points, scale, _ = normalise_points(seen)
    scene = model.cache_scene(model.encode(image, points))
    front = points[points.isfinite().all(dim=-1)]
    chosen = front[torch.from_numpy(np.random.default_rng(0).permutation(len(front))[:500])]

    def occupancy_at(moved: float) -> float:
        """Share of the seen points that are occupied when moved away from the camera by so many radii of the ball."""
        queries = chosen + torch.tensor([0.0, 0.0, moved]) / scale
        return float((model.predict_occupancy(model.decode_queries(scene, queries[None])).sigmoid() > THRESHOLD).float().mean())

    assert occupancy_at(0.0) > 0.8
    assert occupancy_at(-0.4) < 0.1
