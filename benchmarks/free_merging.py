"""Cost of merging besides what it saves: `python -m benchmarks.free_merging BUNDLE`.

Compares a classifier's default rung with the same network in which as many tokens are cut off: a merge that costs nothing.
CPU time of one thread, in turns, by PyTorch without and with compiled loops for merging (the extra `fast`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from rich.table import Table
from torch import Tensor

from benchmarks import machine
from kernels.malloc import keep_freed_memory
from kernels.numba_loader import load_compiled_loops
from kernels.ops import compiled_loops, effective_r
from models.bundle import read
from models.layers.token_merging import Tokens
from models.loading import LoadedModel, load
from models.merge_schedule import MergeSchedule
from server.worker.backends.verification import DTYPES, default_schedule, sample

SIZES = (1, 8, 32)


def cut(tokens: Tokens, _metric: Tensor, r: int, residual: Tensor | None = None) -> Tokens:
    """Replace `Tokens.merge`: drop the last tokens, and let the others grow as if these had merged into them."""
    tokens = tokens if residual is None else tokens.add(residual)
    count = tokens.x.shape[1] - effective_r(tokens.x.shape[1], r, tokens.protected)
    if count == tokens.x.shape[1]:
        return tokens
    size = torch.ones(len(tokens.x), count, 1) if tokens.size is None else tokens.size[:, :count]
    return replace(tokens, x=tokens.x[:, :count], size=size)


def ratios(model: LoadedModel, size: int, seconds: float, *, fused: bool) -> tuple[float, float, float]:
    """How many times as fast as without merging the usual rung is, as it is and if merging were free; and the first ÷ the second."""
    arrays = sample(model.spec, size)
    merged, plain = ({"merge": list(one.expand(model.depth))} for one in (default_schedule(model.spec), MergeSchedule.off()))
    loops = compiled_loops(load_compiled_loops(next(model.model.parameters()).dtype, None)) if fused else nullcontext()
    free = patch.object(Tokens, "merge", cut)
    ways: dict[str, Callable[[], object]] = {
        "off": lambda: model.forward(arrays, plain),
        "on": lambda: model.forward(arrays, merged),
        "free": lambda: _within(free, lambda: model.forward(arrays, merged)),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    with loops:
        for way in ways.values():
            way()
        until = time.monotonic() + seconds
        while time.monotonic() < until or len(taken["off"]) < 5:
            for name, way in ways.items():
                started_at = time.thread_time()  # waiting for a busy CPU does not count
                way()
                taken[name].append(time.thread_time() - started_at)
    on, ideal = (median(off / other for off, other in zip(taken["off"], taken[name], strict=True)) for name in ("on", "free"))
    return on, ideal, median(free / on for free, on in zip(taken["free"], taken["on"], strict=True))


def _within(context: AbstractContextManager[object], call: Callable[[], object]) -> object:
    with context:
        return call()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.free_merging", description=__doc__)
    parser.add_argument("bundle", type=Path, help="folder NAME/VERSION of a classifier")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each row")
    options = parser.parse_args()
    bundle = read(options.bundle)
    if bundle.spec.task != "classify" or not bundle.spec.merges:
        parser.error(f"{bundle.spec.id}: no classifier whose tokens merge; GET /v1/models/{bundle.spec.name} shows its speed")
    keep_freed_memory()  # as the worker does
    torch.set_num_threads(1)
    table = Table(title=f"{bundle.spec.id}, rung {bundle.spec.default_rung}")
    for column in ("dtype", "merging", "batch", "times as fast as off", "if it were free", "share"):
        table.add_column(column, justify="right")
    for name, dtype in DTYPES.items():
        model = load(bundle, device=torch.device("cpu"), dtype=dtype, packed=True)
        for fused in (False, True):
            for size in SIZES:
                on, ideal, share = ratios(model, size, options.seconds, fused=fused)
                table.add_row(name, "loops" if fused else "PyTorch", str(size), f"{on:.2f}", f"{ideal:.2f}", f"{share:.2f}")
    machine.show().print(table)


if __name__ == "__main__":
    main()
