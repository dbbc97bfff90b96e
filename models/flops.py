"""A model on random input of its own size: what its forward pass costs, counted without storage, and what a benchmark times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as meta_config
from torch.utils.flop_counter import FlopCounterMode

from models.layers.meta_device import without_memory
from models.registry import Call, Native, architectures, named


@dataclass(frozen=True)
class RandomInput:
    """A `models.registry.Maker`."""

    batch: int
    dtype: torch.dtype
    device: torch.device

    def normal(self, *shape: int) -> Tensor:
        """(batch, *shape)."""
        return torch.randn(self.batch, *shape, dtype=self.dtype, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        """(batch, *shape) of the noise by which patches are chosen: float32, since ties are decided by their order."""
        return torch.rand(self.batch, *shape, device=self.device)

    def words(self, length: int) -> Tensor:
        return torch.full((self.batch, length), 5, dtype=torch.int64, device=self.device)


@dataclass(frozen=True)
class Cost:
    parameters: int
    flops: int
    """For one sample; a multiply-add counts as two."""
    tokens: int


def native(architecture: str) -> Native:
    """Raises ValueError for a model that computes nothing."""
    found = architectures()[architecture].native
    if found is None:
        raise ValueError(f"architecture {architecture} computes nothing")
    return found


def prepare(architecture: str, model: nn.Module, batch: int) -> Call:
    """A forward pass over one batch of input that lies ready."""
    parameter = next(model.parameters())
    prepared: Call = named(native(architecture).call)(model, model.config, RandomInput(batch, parameter.dtype, parameter.device))
    return prepared


def cost(architecture: str, config: Any) -> Cost:
    """The cost of a config's model at its native size."""
    model = without_storage(architecture, config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, count_flops(lambda: prepare(architecture, model, 1)), native(architecture).tokens(config))


@dataclass(frozen=True)
class TowerFlops:
    """Operations for one image and for one text; a multiply-add counts as two."""

    image: int
    text: int


def tower_flops(architecture: str, config: Any, length: int) -> TowerFlops:
    """Count the towers of a pair. length: word pieces of a text; FLIP reads `text_length` of them, whatever the text."""
    model: Any = without_storage(architecture, config)
    make = RandomInput(1, torch.float32, torch.device("meta"))
    pixels, words = make.normal(3, config.image_size, config.image_size), make.words(length)
    return TowerFlops(count_flops(lambda: lambda: model.encode_images(pixels)), count_flops(lambda: lambda: model.encode_texts(words)))


def without_storage(architecture: str, config: Any) -> nn.Module:
    """A model on the meta device, which counts and does not compute."""
    with without_memory():
        model = architectures()[architecture].build(config)
    return model.to("meta").eval().requires_grad_(False)


def count_flops(prepared: Callable[[], Call]) -> int:
    """Count the operations of a call that `prepared` makes for a model without storage: on a device, fused attention would not count."""
    # MCC embeds only windows that hold points: without values, take all of them
    with meta_config.patch(meta_nonzero_assume_all_nonzero=True), torch.inference_mode():  # type: ignore[attr-defined]
        call = prepared()
        with FlopCounterMode(display=False) as counter:
            call()
    return int(counter.get_total_flops())
