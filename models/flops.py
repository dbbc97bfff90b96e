"""Forward passes on random inputs of a model's own size: their cost, counted without storage, and their preparation for benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as meta_config
from torch.utils.flop_counter import FlopCounterMode

from models.layers.meta_device import on_meta_device
from models.registry import DummyForward, ForwardCall, architectures, resolve


@dataclass(frozen=True)
class RandomInputMaker:
    """A `models.registry.InputMaker`."""

    batch: int
    dtype: torch.dtype
    device: torch.device

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.batch, *shape, dtype=self.dtype, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Draw the noise that chooses patches, (batch, *shape): float32, since ties are decided by their order."""
        return torch.rand(self.batch, *shape, device=self.device)

    def words(self, length: int) -> Tensor:
        return torch.full((self.batch, length), 5, dtype=torch.int64, device=self.device)


@dataclass(frozen=True)
class ForwardCost:
    parameters: int
    flops: int
    """Operations for one sample; a multiply-add counts as two."""
    tokens: int


def dummy_forward(architecture: str) -> DummyForward:
    """Return the architecture's dummy forward pass. Raises ValueError for a model that computes nothing."""
    forward = architectures()[architecture].dummy_forward
    if forward is None:
        raise ValueError(f"architecture {architecture} computes nothing")
    return forward


def prepare_forward(architecture: str, model: nn.Module, batch: int) -> ForwardCall:
    """Prepare a forward pass over one batch of random input."""
    parameter = next(model.parameters())
    prepared: ForwardCall = resolve(dummy_forward(architecture).call)(
        model, model.config, RandomInputMaker(batch, parameter.dtype, parameter.device)
    )
    return prepared


def forward_cost(architecture: str, config: Any) -> ForwardCost:
    """Count the cost of a config's model at its own size."""
    model = build_on_meta(architecture, config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ForwardCost(parameters, count_flops(lambda: prepare_forward(architecture, model, 1)), dummy_forward(architecture).tokens(config))


def build_on_meta(architecture: str, config: Any) -> nn.Module:
    with on_meta_device():
        model = architectures()[architecture].build(config)
    return model.to("meta").eval().requires_grad_(False)


def count_flops(prepared: Callable[[], ForwardCall]) -> int:
    """Count the operations of a call that `prepared` makes for a model without storage: on a device, fused attention is not counted."""
    # MCC embeds only windows with points: without values, all of them
    with meta_config.patch(meta_nonzero_assume_all_nonzero=True), torch.inference_mode():  # type: ignore[attr-defined]
        call = prepared()
        with FlopCounterMode(display=False) as counter:
            call()
    return int(counter.get_total_flops())
