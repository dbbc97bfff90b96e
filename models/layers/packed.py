"""Attention and MLP for bfloat16 on a CPU: weights laid out once as oneDNN multiplies them, instead of in every call, and as many keys as
the CPU likes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.padding import key_multiple
from models.layers.block import Attention, Mlp


class PackedLinear(nn.Module):
    """(..., C_in) → (..., C_out). Bias and activation are applied before the result is rounded to bfloat16."""

    def __init__(self, linear: nn.Linear, *, gelu: str | None = None) -> None:
        """gelu: which one follows, `none` for the exact one or `tanh` for its approximation; None: neither."""
        super().__init__()
        self._weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._activation, self._algorithm = ("none", "none") if gelu is None else ("gelu", gelu)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, self._activation, [], self._algorithm)
        return y


def pack_linears(model: nn.Module) -> None:
    """Replace the linear layers in the blocks of a model that will only answer from now on, in place, and pad keys where that is faster.

    Afterwards the model can be neither saved, moved nor compiled.
    """
    for module in list(model.modules()):
        if isinstance(module, Attention):
            module.key_multiple = key_multiple()
        if isinstance(module, Attention) and module.packable:
            for name, layer in (("qkv", module.qkv), ("proj", module.proj)):
                if isinstance(layer, nn.Linear):  # one head as wide as the tokens may go without a projection
                    setattr(module, name, PackedLinear(layer))
        for name, child in list(module.named_children()):
            if isinstance(child, Mlp):
                setattr(module, name, nn.Sequential(PackedLinear(child.fc1, gelu=child.gelu), PackedLinear(child.fc2)))


def packing_helps(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch and this CPU multiply bfloat16 through oneDNN."""
    if device.type != "cpu" or dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
