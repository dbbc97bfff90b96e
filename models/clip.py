"""What models that match pictures with texts have in common (CLIP, arXiv 2103.00020): unit features, the contrastive loss, zero-shot
classes. The models are `models.flip`, `models.cit` and `models.maws`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

INITIAL_SCALE = math.log(1 / 0.07)
"""Logarithm of what cosines are multiplied by before softmax, where training starts."""


def unit(x: Tensor, added: float = 0.0) -> Tensor:
    """(..., C) divided by its length. added: to the length (FLIP)."""
    return x / (x.norm(dim=-1, keepdim=True) + added) if added else F.normalize(x, dim=-1, eps=1e-12)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, *, symmetric: bool = True) -> Tensor:
    """Scalar: cross-entropy of finding the text of each picture among all, and the picture of each text; only the former if not symmetric.

    images, texts: (B, C), unit vectors of the whole batch, row by row a pair; scale: what their cosines are multiplied by.
    """
    logits = scale * (images @ texts.T)  # (B, B)
    pairs = torch.arange(len(images), device=images.device)
    to_text = F.cross_entropy(logits, pairs)
    return (to_text + F.cross_entropy(logits.T, pairs)) / 2 if symmetric else to_text


def class_features(texts: Tensor, classes: Tensor, count: int, added: float = 0.0) -> Tensor:
    """What pictures are compared with, (count, C): of each class the mean of its texts, as a unit vector.

    texts: (T, C), of any length, each made a unit vector first; classes: (T,) int64, whose texts they are. added: as for `unit`.
    """
    total = torch.zeros(count, texts.shape[1], dtype=texts.dtype, device=texts.device).index_add_(0, classes, unit(texts, added))
    members = classes.bincount(minlength=count)
    if not bool(members.all()):
        raise ValueError(f"class {int(members.argmin())} has no text")
    return unit(total / members.unsqueeze(1), added)
