"""Starting values that several models share."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def initialise_like_slowfast(model: nn.Module) -> None:
    """Initialise as the training code of MViT and Rev-ViT does: matrices and kernels truncated normal of standard deviation 0.02, biases of
    linear layers and norms 0.02. Tokens and tables are the models' own matter."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            nn.init.trunc_normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
            nn.init.constant_(module.bias, 0.02)


def load_encoder(model: nn.Module, pretrained: Mapping[str, Tensor], *, fresh: tuple[str, ...]) -> None:
    """Load all parameters but those whose names start with one of `fresh`, in place; what a decoder needs is left out.

    Raises ValueError naming what does not fit.
    """
    own = model.state_dict()
    wanted = [name for name in own if not name.startswith(fresh)]
    missing = [name for name in wanted if name not in pretrained]
    if missing:
        raise ValueError(f"the pre-trained weights lack {', '.join(missing)}")
    wrong = [name for name in wanted if pretrained[name].shape != own[name].shape]
    if wrong:
        raise ValueError(f"the pre-trained weights have another shape: {', '.join(wrong)}")
    model.load_state_dict({name: pretrained[name] for name in wanted}, strict=False)


def init_head(head: nn.Linear) -> None:
    """Near zero, as in MAE's fine-tuning: truncated normal of standard deviation 2e-5."""
    nn.init.trunc_normal_(head.weight, std=2e-5)
    nn.init.zeros_(head.bias)
