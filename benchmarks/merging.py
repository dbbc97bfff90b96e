"""How much faster a forward pass gets by merging tokens: `python -m benchmarks.merging`.

Off-line, this code alone: the same model with merging off and on, in pairs that follow each other, so that what else the machine does hits
both. The bar is the FLOP-ideal: the ratio of the multiply-accumulates of the blocks. timm's own model is measured, too, as a check that the
ratio is not bought with a slow baseline. `first ÷ on` is how much longer the first pass with a new schedule takes. With `--fused` tokens
merge in the compiled loops of the extra `fast`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Protocol

import timm
import torch
from rich.table import Table

from benchmarks import machine
from benchmarks.kernels import DTYPES, seconds_of
from kernels.malloc import keep_freed_memory
from kernels.numba_loader import load_compiled_loops
from kernels.ops import compiled_loops
from models.layers.packed_linear import pack_linears, supports_packed_linear
from models.merge_schedule import MergeSchedule
from models.systems.mae_st.model import VideoMAE, VideoMAEConfig
from models.systems.vit.model import ViT, ViTConfig

Config = ViTConfig | VideoMAEConfig

SIZES: Mapping[str, tuple[Config, str | None, int]] = {
    "Ti/16": (ViTConfig(width=192, depth=12, heads=3), "vit_tiny_patch16_224", 13),
    "S/16": (ViTConfig(width=384, depth=12, heads=6), "vit_small_patch16_224", 13),
    "B/16": (ViTConfig(width=768, depth=12, heads=12), "vit_base_patch16_224", 13),
    "L/16": (ViTConfig(width=1024, depth=24, heads=16), "vit_large_patch16_224", 8),
    "L/16@384": (ViTConfig(image_size=384, width=1024, depth=24, heads=16), "vit_large_patch16_384", 23),
    "clip": (VideoMAEConfig(), None, 65),
}
"""Name → our config, timm's name (None: timm has none), and the r of ToMe's tables. A clip has 16 frames, 1568 patches."""


class Trunk(Protocol):
    """Sizes from which the operations of a transformer's blocks follow."""

    @property
    def special_tokens(self) -> int: ...
    @property
    def patches(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def mlp_ratio(self) -> float: ...


@dataclass(frozen=True)
class MergingRun:
    size: str
    dtype: str
    r: int
    batch: int
    threads: int
    pairs: int
    fused: bool
    device: str = "cpu"


@dataclass(frozen=True)
class OffOnSeconds:
    """Seconds of one forward pass each."""

    off: float
    on: float

    @property
    def ratio(self) -> float:
        return self.off / self.on


@dataclass(frozen=True)
class MergingTiming:
    run: MergingRun
    tokens_in: int
    tokens_out: int
    first: float
    """Time in seconds of the first forward pass with this schedule, after one without merging."""
    pairs: list[OffOnSeconds]
    timm: float | None
    """Median time in seconds."""
    ideal: float

    @property
    def ratio(self) -> float:
        return statistics.median(pair.ratio for pair in self.pairs)

    @property
    def off(self) -> float:
        return statistics.median(pair.off for pair in self.pairs)

    @property
    def on(self) -> float:
        return statistics.median(pair.on for pair in self.pairs)

    @property
    def share(self) -> float:
        """Share of the FLOP-ideal ratio."""
        return self.ratio / self.ideal


def block_macs(config: Trunk, merge: MergeSchedule) -> int:
    """Multiply-accumulates of all blocks for one image or clip: the merge comes between attention and MLP, and its own cost is left out."""
    width, hidden = config.width, round(config.width * config.mlp_ratio)
    before = config.special_tokens + config.patches
    total = 0
    for after in merge.token_counts(before, config.depth, config.special_tokens):
        total += before * 4 * width * width + 2 * before * before * width + after * 2 * width * hidden
        before = after
    return total


def measure(run: MergingRun) -> MergingTiming:
    config, timm_name, _ = SIZES[run.size]
    device = torch.device(run.device)
    dtype, merge = DTYPES[run.dtype], MergeSchedule.constant(run.r)
    torch.set_num_threads(run.threads)
    torch.manual_seed(0)
    model = (ViT(config) if isinstance(config, ViTConfig) else VideoMAE(config)).eval().to(device, dtype)
    if supports_packed_linear(device, dtype):
        pack_linears(model)  # as the worker does
    theirs = timm.create_model(timm_name, pretrained=False).eval().to(device, dtype) if timm_name else None
    shape = (config.channels, *config.image_shape) if isinstance(config, ViTConfig) else config.clip_shape
    pixels = torch.randn(run.batch, *shape, dtype=dtype, device=device)
    loops = compiled_loops(load_compiled_loops(dtype, None)) if run.fused else nullcontext()
    schedules = {"off": MergeSchedule.off(), "on": merge}
    pairs, others = [], []
    with torch.inference_mode(), loops:
        model(pixels)  # warm-up
        first = seconds_of(lambda: model(pixels, merge=merge), device)
        merged = model(pixels, merge=merge)
        if theirs is not None:
            theirs(pixels)
        for _ in range(run.pairs):
            schedules = dict(reversed(schedules.items()))  # so that a drift favours neither
            pairs.append(OffOnSeconds(**{name: seconds_of(partial(model, pixels, merge=one), device) for name, one in schedules.items()}))
            if theirs is not None:
                others.append(seconds_of(lambda: theirs(pixels), device))
    ideal = block_macs(config, MergeSchedule.off()) / block_macs(config, merge)
    return MergingTiming(run, merged.tokens_in, merged.tokens_out, first, pairs, statistics.median(others) if others else None, ideal)


def table(results: list[MergingTiming]) -> Table:
    view = Table(title="Forward pass with merging off and on")
    for column in (
        "model",
        "dtype",
        "r",
        "batch",
        "threads",
        "tokens",
        "timm ms",
        "off ms",
        "on ms",
        "first ÷ on",
        "ratio",
        "min..max",
        "ideal",
        "share",
    ):
        view.add_column(column, justify="left" if column in ("model", "dtype") else "right")
    for result in results:
        ratios = [pair.ratio for pair in result.pairs]
        view.add_row(
            result.run.size,
            result.run.dtype,
            str(result.run.r),
            str(result.run.batch),
            str(result.run.threads),
            f"{result.tokens_in} → {result.tokens_out}",
            "–" if result.timm is None else f"{result.timm * 1000:.0f}",
            f"{result.off * 1000:.0f}",
            f"{result.on * 1000:.0f}",
            f"{result.first / result.on:.2f}",
            f"{result.ratio:.3f}",
            f"{min(ratios):.2f}..{max(ratios):.2f}",
            f"{result.ideal:.3f}",
            f"{result.share:.3f}",
        )
    return view


def main() -> None:
    native_bf16 = any(flag in machine.describe().flags for flag in ("avx512_bf16", "amx_bf16"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merging", description=__doc__)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["S/16", "B/16", "L/16"])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32", "bfloat16"] if native_bf16 else ["float32"])
    parser.add_argument("--r", type=int, help="tokens merged in each block (default: 13; 8 for L/16)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--fused", action="store_true", help="merge in compiled loops (the extra `fast`)")
    options = parser.parse_args()
    runs = [
        MergingRun(
            size, dtype, SIZES[size][2] if options.r is None else options.r, options.batch, options.threads, options.pairs, options.fused
        )
        for size in options.size
        for dtype in options.dtype
    ]
    keep_freed_memory()  # as the worker does
    console = machine.show()
    results = []
    for run in runs:
        with console.status(f"{run.size} {run.dtype}: {run.pairs} pairs"):
            results.append(measure(run))
    console.print(table(results))
    rows = [{**asdict(result), "ratio": result.ratio, "share": result.share, "off": result.off, "on": result.on} for result in results]
    machine.write_result(parser.prog, {"results": rows})


if __name__ == "__main__":
    main()
