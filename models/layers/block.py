"""The transformer block that all models of this family share, with token merging between attention and MLP; attention from one sequence to
another; and initialisation that several models share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import ops
from models.layers.token_merging import Tokens


class Attention(nn.Module):
    """Multi-head self-attention, timm's parameter names: the rows of `qkv` are q, k and v, each split into heads contiguously.

    head_dim: channels of a head; None for width / heads.
    """

    packable = True
    """False if other code reads the weights of q, k and v: then they stay as they are (`models.layers.packed_linear`)."""

    def __init__(self, width: int, heads: int, qkv_bias: bool = True, head_dim: int | None = None) -> None:
        super().__init__()
        if head_dim is None and width % heads:
            raise ValueError(f"width {width} cannot be split into {heads} heads")
        inner = width if head_dim is None else heads * head_dim
        self.heads = heads
        self.key_multiple = 1  # keys are padded to a multiple if that is faster (`models.layers.packed_linear`)
        self.qkv = nn.Linear(width, 3 * inner, bias=qkv_bias)
        self.proj = nn.Linear(inner, width)

    def forward(self, x: Tensor, key_size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Attend: x (B, N, C) and sizes of keys (B, N, 1) → output (B, N, C) and keys (B, H, N, D)."""
        q, k, v = self.project(x)
        return self.join_heads(ops.size_biased_attention(q, k, v, key_size, key_multiple=self.key_multiple)), k

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project x (B, N, C) → q, k and v, (B, H, N, D) each."""
        return self.split_heads(self.qkv(x))

    def split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split the output (B, N, 3 · inner) of `qkv` → q, k and v, (B, H, N, D) each."""
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # type: ignore[no-untyped-call]
        return q, k, v

    def join_heads(self, attended: Tensor) -> Tensor:
        """Join the outputs of the heads (B, H, N, D) and project them → (B, N, C)."""
        output: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return output


class QuickGelu(nn.Module):
    """x · sigmoid(1.702 x), the approximation of GELU in CLIP's published towers (section 2 of arXiv 1606.08415)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Mlp(nn.Module):
    def __init__(
        self,
        width: int,
        hidden: int,
        width_out: int | None = None,
        dropout: float = 0.0,
        *,
        tanh_gelu: bool = False,
        quick_gelu: bool = False,
    ) -> None:
        """tanh_gelu: the approximation of GELU by tanh, which JAX has by default. quick_gelu: `QuickGelu` instead."""
        super().__init__()
        self.gelu = "tanh" if tanh_gelu else "none"
        self.quick = QuickGelu() if quick_gelu else None
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width_out or width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.fc1(x)
        hidden = F.gelu(hidden, approximate=self.gelu) if self.quick is None else self.quick(hidden)
        return self.fc2(F.dropout(hidden, self.dropout, self.training))  # type: ignore[no-any-return]


class ResidualBranch(Enum):
    """The two residual branches of a block, for models that add them to different streams."""

    ATTENTION = "attention"
    MLP = "mlp"


class TransformerBlock(nn.Module):
    """Pre-norm block. ToMe merges between attention and MLP, by the keys averaged over heads: section 3 of arXiv 2210.09461."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        mlp_norm_eps: float | None = None,
        drop_path: float = 0.0,
        tanh_gelu: bool = False,
        quick_gelu: bool = False,
    ) -> None:
        """mlp_norm_eps: of the norm before the MLP; None for `norm_eps`."""
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads, qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps if mlp_norm_eps is None else mlp_norm_eps)
        self.mlp = Mlp(width, hidden, tanh_gelu=tanh_gelu, quick_gelu=quick_gelu)
        self.drop_path = drop_path

    def forward(self, tokens: Tokens, r: int = 0, keep: Tensor | None = None, *, half: ResidualBranch | None = None) -> Tokens:
        """Run attention and MLP, and merge r tokens between them.

        keep: (2, B) of 0 and 1, which samples keep the attention and the MLP branch in stochastic depth; None: drawn, in training. half:
        compute one branch only, with its norm and without the residual: x becomes what is to be added.
        """
        if half is ResidualBranch.MLP:
            return replace(tokens, x=self.mlp(self.norm2(tokens.x)))
        if half is ResidualBranch.ATTENTION:
            attended, keys = self.attn(self.norm1(tokens.x), tokens.key_size)
            return replace(tokens, x=attended, metric=keys.sum(dim=1))
        keep_attention, keep_mlp = (None, None) if keep is None else keep
        attended, keys = self.attn(self.norm1(tokens.x), tokens.key_size)
        # the mean of the keys over heads is their sum, except for a factor that cosines do not depend on
        tokens = tokens.merge(keys, r, self._drop(attended, keep_attention))
        return tokens.add(self._drop(self.mlp(self.norm2(tokens.x)), keep_mlp))

    def _drop(self, residual: Tensor, keep: Tensor | None) -> Tensor:
        return drop_branch(residual, self.drop_path, self.training, keep)


def drop_branch(residual: Tensor, rate: float, training: bool, keep: Tensor | None = None) -> Tensor:
    """Stochastic depth (arXiv 1603.09382): leave a whole branch out of a sample with probability `rate`, in training.

    keep: (B,) of 0 and 1, which samples keep it; None: drawn, in training.
    """
    scale = drop_scale(residual, rate, training, keep)
    return residual if scale is None else residual * scale


def drop_scale(x: Tensor, rate: float, training: bool, keep: Tensor | None = None) -> Tensor | None:
    """Factor of a branch of x (B, …) in stochastic depth: (B, 1, …) of 0 and 1 / (1 - rate); None if it does nothing."""
    if keep is None:
        if not training or rate == 0.0:
            return None
        keep = torch.empty(x.shape[0], dtype=x.dtype, device=x.device).bernoulli_(1.0 - rate)
    return (keep.to(x.dtype) / (1.0 - rate)).view(-1, *[1] * (x.dim() - 1))


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Return rates that rise linearly from 0 in the first block to `rate` in the last."""
    return [rate * block / max(depth - 1, 1) for block in range(depth)]


@dataclass(frozen=True)
class KVCache:
    """Keys and values of a context, computed once for all that attends to them."""

    keys: Tensor
    values: Tensor
    """(B, H, M, D) each."""
    size: Tensor | None = None
    """(B, M, 1), how many tokens each key counts for."""

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def repeat(self, count: int) -> KVCache:
        """Repeat one sample's keys and values for `count` samples, without a copy."""
        size = None if self.size is None else self.size.expand(count, -1, -1)
        return KVCache(self.keys.expand(count, -1, -1, -1), self.values.expand(count, -1, -1, -1), size)

    def select(self, samples: slice) -> KVCache:
        """Copy keys and values of some samples."""
        return KVCache(self.keys[samples].clone(), self.values[samples].clone(), None if self.size is None else self.size[samples].clone())


class CrossAttention(nn.Module):
    """Cross-attention. The rows of `kv` are k and v, each split into heads contiguously.

    bias: of q, k and v. head_dim: channels of a head; None for width / heads.
    """

    def __init__(self, width: int, context_width: int, heads: int, *, bias: bool = True, head_dim: int | None = None) -> None:
        super().__init__()
        if head_dim is None and width % heads:
            raise ValueError(f"width {width} cannot be split into {heads} heads")
        inner = width if head_dim is None else heads * head_dim
        self.heads = heads
        self.q = nn.Linear(width, inner, bias=bias)
        self.kv = nn.Linear(context_width, 2 * inner, bias=bias)
        self.proj = nn.Linear(inner, width)

    def project_kv(self, context: Tensor, size: Tensor | None = None) -> KVCache:
        """Project a context (B, M, context_width), with sizes (B, M, 1), to keys and values."""
        keys, values = (self._split(part).contiguous() for part in self.kv(context).chunk(2, dim=-1))
        return KVCache(keys, values, size)

    def forward(self, x: Tensor, cache: KVCache) -> Tensor:
        """Attend from x (B, N, C) to cached keys and values → (B, N, C)."""
        output: Tensor = self.proj(self.attend(self.q(x), cache))
        return output

    def attend(self, queries: Tensor, cache: KVCache) -> Tensor:
        """Attend with queries (B, N, inner), the output of `q` → (B, N, inner), the input of `proj`."""
        attended = ops.size_biased_attention(self._split(queries), cache.keys, cache.values, cache.size)
        return attended.transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        by_head: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]  # (B, H, N, D)
        return by_head


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
