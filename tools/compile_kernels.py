"""Compiles kernels for GPUs that need not be here: `python -m tools.compile_kernels [--all]`, a line of JSON for each.

Triton brings NVIDIA's assembler with it. It finds what the interpreter does not: types that do not fit, tiles that a GPU has no room for.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.triton import attention, matching, merging
from kernels.triton.autotune import TunedKernel, small

CAPABILITIES = (80, 90)
"""A100 and H100."""

POINTERS = {"unmerged": "i64", "src": "i64", "dst": "i64", "owner": "i64", "partner": "i32", "rank": "i32"}
FLOAT32 = {"best", "size", "source", "merged_size", "merged_source", "log_sum", "delta"}
TENSORS = {"metric", "x", "merged", "grad", "grad_x", "q", "k", "v", "out", "grad_q", "grad_k", "grad_v"}
"""Arguments in the precision of the model."""

Choice = tuple[str, Any, dict[str, Any]]


def choices(dtype: str, largest: bool) -> list[Choice]:
    """Name, kernel and compile-time arguments. largest: with the widest heads that the kernels take, not with those of a ViT."""
    found: list[Choice] = [
        ("rank", matching._rank, {"BLOCK_EVEN": 64, "BLOCK_OTHERS": 64}),
        ("select", matching._select, {"PROTECTED": 2, "BLOCK": 4096}),
        ("merge_backward", merging._merge_backward, {**_merging(), "BLOCK_TOKENS": 16, "BLOCK_CHANNELS": 256}),
    ]
    found += [("best_partner", matching._best_partner, {"PROTECTED": 2, "BLOCK_CHANNELS": 64})]
    found += [("merge", merging._merge, {**_merging(), "TRACE": trace, "BLOCK_COLUMNS": 256}) for trace in (0, 1, 2)]
    for kernel in (attention._attend, attention._attend_backward_keys, attention._attend_backward_queries):
        name = kernel.tuner.base_fn.__name__.lstrip("_")
        found.append((name, kernel, {"BLOCK_CHANNELS": 128 if largest and dtype != "fp32" else 64}))
    return [(name, kernel.tuner if isinstance(kernel, TunedKernel) else kernel, constants) for name, kernel, constants in found]


def _merging() -> dict[str, Any]:
    return {"SIZED": True, "ACCUMULATOR": tl.float32}


def build(kernel: Any, constants: dict[str, Any], config: triton.Config | None, dtype: str, capability: int) -> int:
    """Compile to machine code. Returns bytes of shared memory."""
    function = kernel.fn if config else kernel
    constants = {**constants, **(config.kwargs if config else {})}
    signature = {name: _type(name, constants, dtype) for name in function.arg_names}
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages} if config else {}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert len(compiled.asm["cubin"]) > 0
    return int(compiled.metadata.shared)


def _type(name: str, constants: dict[str, Any], dtype: str) -> str:
    if name in constants:
        return "constexpr"
    if name in TENSORS:
        return f"*{dtype}"
    if name in FLOAT32:
        return "*fp32"
    if name in POINTERS:
        return f"*{POINTERS[name]}"
    return "fp32" if name.startswith("scale") else "i32"


def candidates(kernel: Any, dtype: str, every: bool) -> list[triton.Config | None]:
    """Return the candidates of the tuner, or only the smallest of them."""
    configs = getattr(kernel, "configs", None)
    if configs is None:
        return [None]
    configs = small(configs) if dtype == "fp32" else configs
    return list(configs) if every else [min(configs, key=lambda config: math.prod(config.kwargs.values()))]


def main() -> None:
    every = "--all" in sys.argv[1:]
    for dtype in ("bf16", "fp16", "fp32") if every else ("bf16",):
        for name, kernel, constants in choices(dtype, largest=every):
            for config in candidates(kernel, dtype, every):
                for capability in CAPABILITIES if every else CAPABILITIES[-1:]:
                    shared = build(kernel, constants, config, dtype, capability)
                    line = {"kernel": name, "dtype": dtype, "sm": capability, "config": str(config), "shared": shared}
                    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
