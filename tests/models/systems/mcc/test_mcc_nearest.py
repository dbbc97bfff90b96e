"""Starting values by which queries of an MCC look at the nearest seen points."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.systems.mcc.init_attention import GeometryChannels, init_nearest_attention
from models.systems.mcc.model import MCC, MCCConfig

CONFIG = MCCConfig(
    image_size=48,
    patch_size=6,
    width=96,
    depth=1,
    heads=4,
    window=4,
    window_heads=4,
    decoder_width=96,
    decoder_depth=2,
    decoder_heads=8,
    drop_path=0.0,
    regress_colour=True,
)


def build(*, looks: bool = True) -> MCC:
    torch.manual_seed(0)
    model = MCC(CONFIG).eval()
    if looks:
        init_nearest_attention(model)
    return model


def wall() -> Tensor:
    """Seen points of a wall across the line of sight, (1, 32, 32, 3), with its two last rows unseen."""
    axis = torch.linspace(-2, 2, 32)
    seen = torch.stack([axis.expand(32, -1), axis.unsqueeze(1).expand(-1, 32), torch.zeros(32, 32)], dim=-1)
    seen[-2:] = torch.inf
    return seen.unsqueeze(0)


@torch.no_grad()
def answers(model: MCC, seen: Tensor, queries: Tensor) -> Tensor:
    """Return the decoder's output of queries (Q, 3)."""
    image = torch.full((1, 3, 48, 48), 0.5)
    return model.decode_queries(model.cache_scene(model.encode(image, seen)), queries.unsqueeze(0))[0]


def influence(model: MCC, query: Tensor, rows: slice, columns: slice) -> float:
    """Change of a query's answer when a part of the wall is dented."""
    dented = wall()
    dented[0, rows, columns, 2] += 0.3
    return float((answers(model, dented, query[None]) - answers(model, wall(), query[None])).norm())


def test_near_points_weigh_more_than_distant_ones() -> None:
    query = torch.tensor([-1.0, -1.0, 0.1])
    near, far = (slice(4, 12), slice(4, 12)), (slice(18, 26), slice(18, 26))
    assert influence(build(), query, *near) > 4 * influence(build(), query, *far)
    assert influence(build(looks=False), query, *near) < 2 * influence(build(looks=False), query, *far)


def test_unseen_pixels_are_no_points_at_the_origin() -> None:
    """Windows without a seen point change nothing of what is near."""
    model, query = build(), torch.tensor([[-1.0, -1.0, 0.0]])
    seen, less = wall(), wall()
    less[:, 16:, 16:] = torch.inf
    away = float((answers(model, less, query) - answers(model, seen, query)).norm())
    assert away < 0.1 * influence(model, query[0], slice(4, 12), slice(4, 12))


def test_self_weight_of_query_encodes_distance_to_surface() -> None:
    """Before the wall; and, across the line of sight, outside of its outline."""
    model, written = build(), []
    model.decoder_blocks[0].attn.proj.register_forward_hook(lambda _module, _inputs, added: written.append(added))
    before = torch.tensor([[-0.5, -0.5, -distance] for distance in (0.0, 0.2, 0.4, 0.8)])
    adjacent = torch.tensor([[2.0 + distance, -0.5, 0.8] for distance in (-0.3, 0.2, 0.6, 1.0)])
    answers(model, wall(), torch.cat([before, adjacent]))
    channels = GeometryChannels.allocate(CONFIG.decoder_width, CONFIG.decoder_heads)
    alone = written[-1][0][:, list(channels.self_weights)]  # (8, heads), half of which measure across the line of sight
    in_space, across = alone[:4, :4].mean(dim=1), alone[4:, 4:].mean(dim=1)
    for weights in (in_space, across):
        assert (weights.diff() > 0).all() and weights[0] < 0.5 and weights[-1] > 0.95
    assert alone[:4, 4:].max() < 0.5  # all of them within the outline


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window_heads": 6}, "window_heads: 6 is not a multiple of 4"),
        ({"decoder_heads": 6}, "decoder_heads: 6 is not a multiple of 4"),
        ({"width": 32}, "width 32 is too small"),
        ({"decoder_heads": 16}, "decoder_width: 16 heads of 96 channels"),
        ({"window_depth": 2}, "window: one block"),
        ({"qkv_bias": False}, "qkv_bias"),
    ],
)
def test_networks_without_room_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        init_nearest_attention(MCC(replace(CONFIG, **change)))
