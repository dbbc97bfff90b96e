"""The hot operations of token merging as Triton kernels for CUDA, each a PyTorch operator that `torch.compile` and `torch.export` see.

Every kernel means what its namesake in `kernels.reference` means; `kernels.ops` checks arguments and chooses. With `TRITON_INTERPRET=1`
set before the first import, Triton interprets the kernels on tensors of a CPU: how the tests run them.
"""

from kernels.triton.attention import has_tiles, size_biased_attention
from kernels.triton.matching import bipartite_match
from kernels.triton.merging import check_triton, merge

__all__ = ["bipartite_match", "check_triton", "has_tiles", "merge", "size_biased_attention"]
