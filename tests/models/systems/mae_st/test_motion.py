"""Initial values that see motion: what they say about moving textures before training."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from models.layers.token_merging import Tokens
from models.systems.mae_st.init_motion import DIRECTIONS, MotionChannels, init_motion_filters, motion_filters
from models.systems.mae_st.pretraining import VideoMAEPretraining, VideoMAEPretrainingConfig

SMALL = VideoMAEPretrainingConfig(
    image_size=96, patch_size=16, frames=16, patch_frames=4, width=192, depth=2, heads=3, decoder_width=16, decoder_depth=1, decoder_heads=2
)
CHANNELS = MotionChannels.from_filters(2 * (3 * DIRECTIONS + 8))
HALF = DIRECTIONS // 2


@pytest.fixture(scope="module")
def network() -> VideoMAEPretraining:
    torch.manual_seed(0)
    model = VideoMAEPretraining(SMALL).eval()
    init_motion_filters(model)
    return model


def moving(seed: int, shift: tuple[float, float] = (0, 0), zoom: float = 1.0, roll: float = 0.0) -> torch.Tensor:
    """Draw (1, 3, 16, 96, 96): a texture that moves to the right and down by pixels of each frame, grows, and turns clockwise by
    degrees."""
    texture = cv2.GaussianBlur(np.random.default_rng(seed).standard_normal((192, 192)).astype(np.float32), (0, 0), 2.0)
    texture /= texture.std()
    frames = []
    for number in range(16):
        matrix = cv2.getRotationMatrix2D((96, 96), -roll * number, zoom**number)
        matrix[:, 2] += np.array(shift) * number
        frames.append(cv2.warpAffine(texture, matrix, (192, 192), borderMode=cv2.BORDER_REFLECT)[48:144, 48:144])
    return torch.from_numpy(np.stack(frames)).expand(1, 3, 16, 96, 96)


@torch.inference_mode()
def means(network: VideoMAEPretraining, clip: torch.Tensor) -> torch.Tensor:
    """Return the means of the patches behind two blocks: (192,)."""
    x = network.patch_embed(clip) + network.pos_embed()[:, 1:]
    tokens = Tokens(x)
    for block in network.blocks:
        tokens = block(tokens, 0)
    return tokens.x[0].mean(dim=0)


def opponent(network: VideoMAEPretraining, clip: torch.Tensor, way: int) -> float:
    return sum(float(means(network, clip)[CHANNELS.opponents + speed * HALF + way]) for speed in range(3))


def flow(network: VideoMAEPretraining, clip: torch.Tensor, around: int) -> float:
    found = means(network, clip)[CHANNELS.flows : CHANNELS.positions]
    return float(found[around::2].sum())


@pytest.mark.parametrize(("way", "shift"), [(0, (1.5, 0.0)), (2, (0.0, 1.5))], ids=["right", "down"])
def test_opposite_directions_are_distinguished(network: VideoMAEPretraining, way: int, shift: tuple[float, float]) -> None:
    for seed in range(6):
        forth, back = (opponent(network, moving(seed, (sign * shift[0], sign * shift[1])), way) for sign in (1, -1))
        assert forth > back + 0.5


def test_growing_and_turning_differ_from_their_opposites(network: VideoMAEPretraining) -> None:
    for seed in range(6):
        assert flow(network, moving(seed, zoom=1.03), 0) > flow(network, moving(seed, zoom=1 / 1.03), 0) + 0.5
        assert flow(network, moving(seed, roll=-2.0), 1) > flow(network, moving(seed, roll=2.0), 1) + 0.5  # counterclockwise


def test_filters_are_pairs_of_length_1_without_a_mean() -> None:
    for frames, side in ((4, 16), (3, 8)):
        filters = motion_filters(frames, side).double().flatten(1)
        assert len(filters) == CHANNELS.opponents
        assert filters.sum(dim=1).abs().max() < 1e-4
        torch.testing.assert_close(filters.norm(dim=1), torch.ones(len(filters), dtype=torch.float64), atol=1e-5, rtol=0)
        assert (filters[0::2] * filters[1::2]).sum(dim=1).abs().max() < 0.2


@pytest.mark.parametrize("change", [{"width": 96}, {"patch_frames": 2}, {"separate_positions": False}, {"depth": 1}])
def test_a_network_that_is_too_small_for_it_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="needed"):
        init_motion_filters(VideoMAEPretraining(dataclasses.replace(SMALL, **change)))
