"""Starting values that several models share."""

from __future__ import annotations

from torch import nn


def initialise_like_slowfast(model: nn.Module) -> None:
    """Matrices and kernels truncated normal of deviation 0.02, biases of linear layers and norms 0.02, as the training code of MViT and
    Rev-ViT starts. Tokens and tables are the models' own matter."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            nn.init.trunc_normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
            nn.init.constant_(module.bias, 0.02)
