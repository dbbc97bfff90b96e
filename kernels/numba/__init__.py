"""The merging of tokens as loops that numba compiles for this CPU: the extra `fast`. Inference in float32 and bfloat16.

Every function means what its namesake in `kernels.reference` means; `kernels.ops` chooses. numba keeps compiled code between processes,
next to these files or in the folder that is given to `load_compiled_loops`.
"""

from kernels.numba.matching import bipartite_match
from kernels.numba.merging import merge

__all__ = ["bipartite_match", "merge"]
