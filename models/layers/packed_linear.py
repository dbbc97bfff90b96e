"""Weights in oneDNN's layout, for attention, MLP and patches on a CPU, and keys of attention padded in bfloat16."""

from __future__ import annotations

from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.key_padding import is_faster, key_multiple
from models.layers.block import Attention, Mlp
from models.layers.patches import PatchEmbed, TubePatchEmbed

MAX_TIME_RATIO = 0.95
"""Maximum ratio of a packed layer's time to that of PyTorch's own layer, in float32."""
_ROWS, _IN, _OUT, _ROUNDS = 64, 512, 2048, 9


class PackedLinear(nn.Module):
    """Linear layer with packed weights: (..., C_in) → (..., C_out). In bfloat16, bias and activation are applied before rounding."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, gelu: str | None = None) -> None:
        """weight: (C_out, C_in). gelu: `none` for the exact activation or `tanh` for its approximation; None: no activation."""
        super().__init__()
        self._weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self._bias = None if bias is None else bias.detach()
        self._activation, self._algorithm = ("none", "none") if gelu is None else ("gelu", gelu)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, self._activation, [], self._algorithm)
        return y


class PackedPatches(nn.Module):
    """Embedding of adjacent patches or tubes as one matrix product: (B, channels, [T,] H, W) → (B, N, C).

    It takes half to two thirds of the convolution's time, least with channels last, the layout of normalised images.
    """

    def __init__(self, embed: PatchEmbed | TubePatchEmbed) -> None:
        super().__init__()
        weight = embed.proj.weight.movedim(1, -1).flatten(1)  # (C, [u·]p·p·channels)
        self._linear = PackedLinear(weight, embed.proj.bias)
        self._patch = embed.proj.kernel_size

    def forward(self, images: Tensor) -> Tensor:
        grid, axes = images.movedim(1, -1), len(self._patch)  # the rest at the edges is ignored
        for axis, length in enumerate(self._patch):
            grid = grid.narrow(1 + axis, 0, grid.shape[1 + axis] // length * length)
        for axis, length in enumerate(self._patch):
            grid = grid.unflatten(1 + 2 * axis, (-1, length))  # type: ignore[no-untyped-call]  # (B, [t, u,] h, p, w, p, channels)
        grid_axes, patch_axes = range(1, 2 * axes, 2), range(2, 2 * axes + 1, 2)
        patches = grid.permute(0, *grid_axes, *patch_axes, 2 * axes + 1).flatten(1 + axes).flatten(1, axes)  # (B, N, [u·]p·p·channels)
        y: Tensor = self._linear(patches)
        return y


def pack_linears(model: nn.Module) -> None:
    """Pack the linear layers in the blocks and the patch embedding of a model for inference, in place.

    In bfloat16, also pad keys if that is faster. Afterwards the model can be neither saved, moved nor compiled.
    """
    for module in list(model.modules()):
        if isinstance(module, Attention) and next(module.parameters()).dtype == torch.bfloat16:
            module.key_multiple = key_multiple()
        if isinstance(module, Attention) and module.packable:
            for name, layer in (("qkv", module.qkv), ("proj", module.proj)):
                if isinstance(layer, nn.Linear):  # a single head of full width may lack a projection
                    setattr(module, name, PackedLinear(layer.weight, layer.bias))
        for name, child in list(module.named_children()):
            if isinstance(child, Mlp):
                fc1, fc2 = child.fc1, child.fc2
                first = PackedLinear(fc1.weight, fc1.bias, gelu=child.gelu if child.quick is None else None)
                between = [] if child.quick is None else [child.quick]
                setattr(module, name, nn.Sequential(first, *between, PackedLinear(fc2.weight, fc2.bias)))
            elif isinstance(child, TubePatchEmbed) or (isinstance(child, PatchEmbed) and child.side_by_side):
                setattr(module, name, PackedPatches(child))


def supports_packed_linear(device: torch.device, dtype: torch.dtype) -> bool:
    """Return True if torch multiplies numbers of this type faster through oneDNN on this CPU."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 and _float32_pays()


@cache
def _float32_pays() -> bool:
    """Return True if a packed layer is faster than PyTorch's own, which multiplies float32 by MKL. It is measured once per process."""
    x, weight, bias = torch.randn(_ROWS, _IN), torch.randn(_OUT, _IN), torch.randn(_OUT)
    return is_faster(partial(PackedLinear(weight, bias), x), partial(F.linear, x, weight, bias), max_ratio=MAX_TIME_RATIO, rounds=_ROUNDS)
