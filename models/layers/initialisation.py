"""Initialisation of weights that several models share."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def initialise_like_slowfast(model: nn.Module) -> None:
    """Initialise as the training code of MViT and Rev-ViT does: truncated normal of standard deviation 0.02 for matrices and kernels, 0.02
    for biases of linear layers and norms. The models initialise their tokens and tables themselves."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            nn.init.trunc_normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
            nn.init.constant_(module.bias, 0.02)


def load_encoder(model: nn.Module, pretrained: Mapping[str, Tensor], *, fresh: tuple[str, ...]) -> None:
    """Load all parameters except those whose names start with one of `fresh`, in place; weights of a decoder are ignored.

    Raises ValueError that names what is missing or has another shape.
    """
    state = model.state_dict()
    names = [name for name in state if not name.startswith(fresh)]
    missing = [name for name in names if name not in pretrained]
    if missing:
        raise ValueError(f"the pre-trained weights lack {', '.join(missing)}")
    wrong = [name for name in names if pretrained[name].shape != state[name].shape]
    if wrong:
        raise ValueError(f"the pre-trained weights have another shape: {', '.join(wrong)}")
    model.load_state_dict({name: pretrained[name] for name in names}, strict=False)


def init_head(head: nn.Linear) -> None:
    """Initialise near zero, as MAE's fine-tuning does: truncated normal of standard deviation 2e-5."""
    nn.init.trunc_normal_(head.weight, std=2e-5)
    nn.init.zeros_(head.bias)
