"""A second formulation of DiffMAE for the tests: the equations one by one in double precision, without layers, batches or fused attention.

It takes one sample and a state dict, and shares no code with `models`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def patches_of(clip: Tensor, frames: int, size: int) -> Tensor:
    """Cut (3, T, H, W) into (N, P), one patch after the other."""
    _, times, height, width = clip.shape
    return torch.stack(
        [
            clip[:, t : t + frames, y : y + size, x : x + size].permute(1, 2, 3, 0).flatten()
            for t in range(0, times, frames)
            for y in range(0, height, size)
            for x in range(0, width, size)
        ]
    )


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    size = q.shape[-1] // heads
    parts = []
    for h in range(heads):
        channels = slice(h * size, (h + 1) * size)
        scores = q[:, channels] @ k[:, channels].T / math.sqrt(size)
        parts.append(scores.softmax(-1) @ v[:, channels])
    return torch.cat(parts, dim=1)


def self_attention(w: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    q, k, v = linear(w, f"{name}.qkv", x).chunk(3, dim=-1)
    return linear(w, f"{name}.proj", attend(q, k, v, heads))


def mlp(w: Weights, name: str, x: Tensor) -> Tensor:
    hidden = linear(w, f"{name}.fc1", x)
    return linear(w, f"{name}.fc2", hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))


def features(w: Weights, clip: Tensor, visible: Tensor, heads: int) -> list[Tensor]:
    """Encode a clip (3, T, H, W), with T = 1 for an image."""
    kernel = w["patch_embed.proj.weight"].double()
    kernel = kernel.unsqueeze(2) if kernel.dim() == 4 else kernel
    values = patches_of(clip, kernel.shape[2], kernel.shape[-1])[visible]
    weight = kernel.permute(2, 3, 4, 1, 0).reshape(-1, kernel.shape[0])
    tokens = values @ weight + w["patch_embed.proj.bias"] + w["pos_embed"][0, 1 + visible]
    x = torch.cat([w["cls_token"][0] + w["pos_embed"][0, :1], tokens])
    outputs = []
    while f"blocks.{len(outputs)}.norm1.weight" in w:
        block = f"blocks.{len(outputs)}"
        x = x + self_attention(w, f"{block}.attn", norm(w, f"{block}.norm1", x), heads)
        x = x + mlp(w, f"{block}.mlp", norm(w, f"{block}.norm2", x))
        outputs.append(x)
    outputs[-1] = norm(w, "norm", x)
    return outputs


def predict(
    w: Weights, encoded: list[Tensor], x_t: Tensor, t: int, visible: Tensor, masked: Tensor, *, heads: int, u_shaped: bool
) -> tuple[Tensor, Tensor | None]:
    """Predict from (M, P) both (M, P) and the CLIP features if there is such a head."""
    places = w["decoder_pos_embed"][0]
    z = linear(w, "noise_embed", x_t) + places[1 + masked]
    if "time_embed.mlp.0.weight" in w:
        width = w["time_embed.mlp.0.weight"].shape[1] // 2
        angles = torch.tensor([t * math.exp(-math.log(10000) * i / width) for i in range(width)], dtype=torch.float64)
        hidden = linear(w, "time_embed.mlp.0", torch.cat([angles.cos(), angles.sin()]))
        z = z + linear(w, "time_embed.mlp.2", hidden / (1 + torch.exp(-hidden)))
    joint = "decoder_embed.weight" in w
    if joint:
        seen = linear(w, "decoder_embed", encoded[-1]) + torch.cat([places[:1], places[1 + visible]])
        z = torch.cat([seen, z])
    blocks = sum(name.endswith("norm_mlp.weight") for name in w)
    for j in range(blocks):
        block = f"decoder_blocks.{j}"
        if not joint:
            source = encoded[len(encoded) - 1 - math.floor(j * len(encoded) / blocks)] if u_shaped else encoded[-1]
            kv = linear(w, f"{block}.cross_attn.kv", norm(w, f"{block}.norm_ctx", source))
            d = kv.shape[-1] // 2
            q = linear(w, f"{block}.cross_attn.q", norm(w, f"{block}.norm_cross", z))
            z = z + linear(w, f"{block}.cross_attn.proj", attend(q, kv[:, :d], kv[:, d:], heads))
        if f"{block}.norm_self.weight" in w:
            z = z + self_attention(w, f"{block}.attn", norm(w, f"{block}.norm_self", z), heads)
        z = z + mlp(w, f"{block}.mlp", norm(w, f"{block}.norm_mlp", z))
    z = norm(w, "decoder_norm", z[-len(masked) :])
    clip = linear(w, "decoder_pred_clip", z) if "decoder_pred_clip.weight" in w else None
    return linear(w, "decoder_pred", z), clip


def sample(
    predicted: Callable[[Tensor, int], Tensor],
    left: Tensor,
    start: Tensor,
    noise: Sequence[Tensor],
    *,
    method: str,
    count: int,
    eta: float = 0.0,
    variance: str = "posterior",
    clip: bool = True,
    predicts_noise: bool = False,
) -> Tensor:
    """Sample (M, P). predicted: x_t and t → the network's answer; left: alpha_bar (T,); noise: what each executed step adds."""
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)
    times = [(k + 1) * len(left) // count - 1 for k in range(count)]
    x = start
    for executed, k in enumerate(reversed(range(count))):
        a, before = left[times[k]], left[times[k - 1]] if k else torch.ones((), dtype=torch.float64)
        answer = predicted(x, times[k])
        x0 = (x - (1 - a).sqrt() * answer) / a.sqrt() if predicts_noise else answer
        if clip:
            x0 = x0.view(len(x0), -1, 3).clamp((0 - mean) / std, (1 - mean) / std).view(x0.shape)
        if k == 0:
            break
        if method == "ddim":
            direction = (x - a.sqrt() * x0) / (1 - a).sqrt()
            sigma = eta * ((1 - before) / (1 - a)).sqrt() * (1 - a / before).sqrt()
            x = before.sqrt() * x0 + (1 - before - sigma**2).sqrt() * direction + sigma * noise[executed]
        else:
            alpha = a / before
            spread = (1 - alpha) * (1 - before) / (1 - a) if variance == "posterior" else 1 - alpha
            middle = before.sqrt() * (1 - alpha) / (1 - a) * x0 + alpha.sqrt() * (1 - before) / (1 - a) * x
            x = middle + spread.sqrt() * noise[executed]
    return x0
