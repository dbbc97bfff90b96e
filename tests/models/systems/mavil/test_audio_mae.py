"""Audio-MAE beyond the recorded case (tests/golden/mavil/audio_mae_window_decoder): its window attention written out pair by pair."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.patches import normalise_patches, patchify
from models.systems.mavil.audio_mae import AudioMAE, AudioMAEConfig, WindowAttention

SOUND = torch.randn(2, 1, 32, 16, generator=torch.Generator().manual_seed(1))


def attention_written_out(attention: WindowAttention, x: Tensor) -> Tensor:
    """Pair by pair over the whole map: who shares a window, who does but comes from the other end, and what distance adds."""
    rows, columns = attention.grid
    q, k, v = (part[0] for part in attention.project(x))  # (H, L, D)
    shift, (window_rows, window_columns) = attention.shift, attention.window
    output = torch.zeros_like(q)
    for query in range(rows * columns):
        row, column = divmod(query, columns)
        scores, values = [], []
        for key in range(rows * columns):
            other_row, other_column = divmod(key, columns)
            rolled, other_rolled = (row - shift) % rows, (other_row - shift) % rows
            if rolled // window_rows != other_rolled // window_rows or column // window_columns != other_column // window_columns:
                continue
            distance = torch.tensor([float(rolled - other_rolled), float(column - other_column)])
            network = attention.meta_mlp
            bias = network.fc2(F.relu(network.fc1(distance.sign() * (1 + distance.abs()).log())))
            length = (q[:, query].norm(dim=-1) * k[:, key].norm(dim=-1)).clamp(min=1e-6)
            score = (q[:, query] * k[:, key]).sum(dim=-1) / length / attention.tau.clamp(min=0.01) + bias
            beyond_the_end = (rolled >= rows - shift) != (other_rolled >= rows - shift)
            scores.append(score - 100 if shift and beyond_the_end else score)
            values.append(v[:, key])
        weights = torch.stack(scores).softmax(dim=0)  # (keys, H)
        output[:, query] = (weights.unsqueeze(-1) * torch.stack(values)).sum(dim=0)
    return attention.join_heads(output.unsqueeze(0))


@pytest.mark.parametrize(
    ("grid", "shift", "tau"),
    [((8, 4), 0, 1.0), ((8, 4), 2, 1.0), ((8, 8), 2, 0.3), ((8, 4), 2, 0.001), ((4, 4), 2, 1.0), ((2, 4), 2, 1.0), ((8, 2), 2, 0.5)],
)
def test_window_attention_written_out(grid: tuple[int, int], shift: int, tau: float) -> None:
    torch.manual_seed(0)
    attention = WindowAttention(16, 2, grid=grid, window=(4, 4), shift=shift).eval()
    nn.init.constant_(attention.tau, tau)
    x = torch.randn(1, grid[0] * grid[1], 16)
    with torch.no_grad():
        torch.testing.assert_close(attention(x), attention_written_out(attention, x), rtol=1e-4, atol=1e-5)


def test_windows_of_several_sounds_do_not_meet() -> None:
    torch.manual_seed(0)
    attention = WindowAttention(16, 2, grid=(8, 4), window=(4, 4), shift=2).eval()
    x = torch.randn(3, 32, 16)
    torch.testing.assert_close(attention(x)[1:2], attention(x[1:2]))
    with pytest.raises(ValueError, match="a grid of 6 × 4 cannot be cut into windows of 4 × 4"):
        WindowAttention(16, 2, grid=(6, 4), window=(4, 4), shift=2)


def test_only_training_drops_parts_of_what_distance_adds() -> None:
    torch.manual_seed(0)
    network = WindowAttention(16, 2, grid=(8, 4), window=(4, 4), shift=2).meta_mlp
    dropped = (network.train()() != network.eval()()).float().mean()
    assert dropped > 0.9
    assert torch.equal(network(), network())


@pytest.mark.parametrize("window", [None, (4, 4)])
@pytest.mark.parametrize("normalised", [True, False])
def test_audio_mae_rebuilds_what_was_removed(window: tuple[int, int] | None, normalised: bool) -> None:
    config = AudioMAEConfig(32, 16, 4, 32, 2, 4, 16, 2, 2, window=window, mask_ratio=0.75, normalise_targets=normalised)
    torch.manual_seed(0)
    model = AudioMAE(config)
    answer = model(SOUND, torch.rand(2, 32))
    patches = patchify(SOUND, 4)
    errors = (answer.patches - (normalise_patches(patches) if normalised else patches)).square().mean(dim=-1)
    torch.testing.assert_close(answer.loss, errors[answer.mask == 1].mean())
    assert answer.mask.sum(dim=1).tolist() == [24, 24]
    answer.loss.backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert idle == []
