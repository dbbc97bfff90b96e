"""How fast the operations of token merging are: `python -m benchmarks.kernels [--device cuda]`.

Three forms of each, in rounds that follow each other, so that what else the machine does hits all alike:
  kernel   Triton on CUDA; on a CPU the loops of the extra `fast`, which match and merge (Triton's interpreter is not timed)
  eager    `kernels.reference`, plain PyTorch
  paper    as ToMe (arXiv 2210.09461) formulates it: gathers with an expanded index, and a scatter-reduce of every token times its size;
           softmax written out, with the matrix of weights in memory
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from benchmarks import machine
from kernels import numba_loader, ops, reference
from kernels.ops import Matching

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HEAD = 64


@dataclass(frozen=True)
class KernelShape:
    name: str
    tokens: int
    r: int
    width: int


SHAPES = (
    KernelShape("flags", 65, 13, 192),
    KernelShape("ViT-S/16", 197, 13, 384),
    KernelShape("ViT-L/16", 197, 8, 1024),
    KernelShape("ViT-L/16 at 512", 1025, 40, 1024),
    KernelShape("MAE-ST ViT-L", 1569, 65, 1024),
)


@dataclass(frozen=True)
class KernelTiming:
    op: str
    shape: KernelShape
    batch: int
    seconds: dict[str, list[float]]
    """Times in seconds, by form."""

    def median(self, form: str) -> float:
        return statistics.median(self.seconds[form])


@dataclass(frozen=True)
class KernelInputs:
    """Inputs of the three operations. As in a block, keys are between queries and values, and the attention branch is not yet added."""

    x: Tensor
    residual: Tensor
    size: Tensor
    q: Tensor
    k: Tensor
    v: Tensor

    @staticmethod
    def draw(shape: KernelShape, batch: int, dtype: torch.dtype, device: torch.device) -> KernelInputs:
        def normal(*sizes: int) -> Tensor:
            return torch.randn(batch, *sizes, dtype=dtype, device=device)

        size = torch.randint(1, 9, (batch, shape.tokens, 1), device=device).float()
        heads = shape.width // HEAD
        q, k, v = normal(shape.tokens, 3 * heads * HEAD).unflatten(-1, (3, heads, HEAD)).permute(2, 0, 3, 1, 4)
        return KernelInputs(normal(shape.tokens, shape.width), normal(shape.tokens, shape.width), size, q, k, v)


def forms(shape: KernelShape, inputs: KernelInputs) -> Mapping[str, Mapping[str, Callable[[], Any]]]:
    """Operation → form → call."""
    matching = reference.bipartite_match(inputs.k.sum(dim=1), shape.r, 1)
    return {
        "match": {
            "kernel": lambda: ops.bipartite_match(inputs.k, shape.r, protected=1),
            "eager": lambda: reference.bipartite_match(inputs.k.sum(dim=1), shape.r, 1),
            "paper": lambda: paper_match(inputs.k.mean(dim=1), shape.r),
        },
        "merge": {
            "kernel": lambda: ops.merge(inputs.x, inputs.size, matching, inputs.residual),
            "eager": lambda: reference.merge(inputs.x + inputs.residual, inputs.size, matching),
            "paper": lambda: paper_merge(inputs.x + inputs.residual, inputs.size, matching),
        },
        "attend": {
            "kernel": lambda: ops.size_biased_attention(inputs.q, inputs.k, inputs.v, inputs.size),
            "eager": lambda: reference.size_biased_attention(inputs.q, inputs.k, inputs.v, inputs.size, 0.0),
            "paper": lambda: paper_attention(inputs.q, inputs.k, inputs.v, inputs.size),
        },
    }


def paper_match(metric: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Section 3.1, with a class token."""
    metric = metric / metric.norm(dim=-1, keepdim=True)
    scores = metric[:, ::2] @ metric[:, 1::2].mT
    scores[:, 0] = -torch.inf
    best, destination = scores.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)
    return order[:, r:].sort(dim=-1).values, order[:, :r], destination.gather(1, order[:, :r])


def paper_merge(x: Tensor, size: Tensor, matching: Matching) -> tuple[Tensor, Tensor]:
    """Section 3: every token times its size, summed over gathers and a scatter, divided by the sum of sizes."""

    def sum_merged(values: Tensor) -> Tensor:
        def expand(index: Tensor) -> Tensor:
            return index.unsqueeze(-1).expand(-1, -1, values.shape[2])

        moved = values.gather(1, expand(matching.src))
        return values.gather(1, expand(matching.unmerged)).scatter_reduce(1, expand(matching.dst), moved, "sum")

    total = sum_merged(size)
    return sum_merged(x * size) / total, total


def paper_attention(q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> Tensor:
    """Section 3.2, with the matrix of weights."""
    logits = q @ k.mT * q.shape[-1] ** -0.5 + size.log().to(q.dtype).view(size.shape[0], 1, 1, -1)
    return logits.softmax(dim=-1) @ v


def measure(shape: KernelShape, batch: int, dtype: torch.dtype, device: torch.device, rounds: int) -> list[KernelTiming]:
    torch.manual_seed(0)
    results = []
    for op, calls in forms(shape, KernelInputs.draw(shape, batch, dtype, device)).items():
        has_kernel = device.type == "cuda" or (op != "attend" and numba_loader.is_installed())
        timed = {form: call for form, call in calls.items() if has_kernel or form != "kernel"}
        seconds: dict[str, list[float]] = {form: [] for form in timed}
        for call in timed.values():
            call()  # compiles and tunes, or warms up
        for _ in range(rounds):
            for form, call in timed.items():
                seconds[form].append(seconds_of(call, device))
        results.append(KernelTiming(op, shape, batch, seconds))
    return results


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter  # waiting for a busy CPU does not count
        start = clock()
        call()
        return clock() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def table(results: list[KernelTiming], device: torch.device) -> Table:
    view = Table(title=f"Operations of token merging on {torch.cuda.get_device_name(device) if device.type == 'cuda' else 'the CPU'}, µs")
    for column in ("op", "shape", "tokens", "r", "batch", "kernel", "eager", "paper", "paper ÷ best of ours"):
        view.add_column(column, justify="left" if column in ("op", "shape") else "right")
    for result in results:
        micros = {form: f"{result.median(form) * 1e6:.0f}" for form in result.seconds}
        ours = min(result.median(form) for form in result.seconds if form != "paper")
        view.add_row(
            result.op,
            result.shape.name,
            str(result.shape.tokens),
            str(result.shape.r),
            str(result.batch),
            *(micros.get(form, "–") for form in ("kernel", "eager", "paper")),
            f"{result.median('paper') / ours:.2f}",
        )
    return view


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description="Time matching, merging and proportional attention.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="(default: bfloat16 on CUDA, float32 on a CPU)")
    parser.add_argument("--batch", type=int, help="(default: 64 on CUDA, 2 on a CPU)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    dtype = options.dtype or ("bfloat16" if on_gpu else "float32")
    batch = options.batch or (64 if on_gpu else 2)
    torch.set_num_threads(options.threads)
    console = machine.show()
    results = []
    compiled = (
        nullcontext()
        if on_gpu or not numba_loader.is_installed()
        else ops.compiled_loops(numba_loader.load_compiled_loops(DTYPES[dtype], None))
    )
    with torch.inference_mode(), compiled:
        for shape in SHAPES:
            with console.status(shape.name):
                results += measure(shape, batch, DTYPES[dtype], device, options.rounds)
    console.print(table(results, device))
    content = {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "dtype": dtype,
        "results": [asdict(result) for result in results],
    }
    machine.write_result(parser.prog, content)


if __name__ == "__main__":
    main()
