"""How fast every system's forward pass is, and how much of the machine it uses: `python -m benchmarks.models`.

Each system at a size like ViT-B (HMR2 is published as ViT-H alone), with random weights and input: what is measured is time. The bar is the
peak of the same machine: the best rate at which it multiplies two large matrices, in the same precision, on the same threads, just before.
A low share shows where a model does something else than multiply matrices, or multiplies small ones.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn

from benchmarks import machine
from kernels.malloc import keep_freed_memory
from models.flops import RandomInputMaker, build_on_meta, count_flops, dummy_forward, prepare_forward
from models.layers.packed_linear import pack_linears, supports_packed_linear
from models.registry import ForwardCall, architectures
from models.systems.diffmae.dummy_inputs import DummyMaskedBatch
from models.systems.diffmae.model import DiffMAE
from models.systems.mcc.model import MCC
from models.systems.mcc.queries import QUERIES, random_scene_inputs
from models.systems.published_sizes import sizes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

LIKE_VIT_B = (
    "vit_base_patch16",
    "mae_vit_base_patch16",
    "video_vit_base_patch16",
    "mae_video_vit_base_patch16",
    "maws_vit_b16_xlmr_b",
    "flip_base16",
    "clip_base16",
    "siglip_base16",
    "cit_mocob16",
    "diffmae_vit_base_patch16",
    "mcc_vit_base_patch16",
    "mvitv2_s_16x4",
    "rev_vit_b",
    "rev_mvit_b",
    "rev_mvit_b_16x4",
    "mavil_base",
    "mavil_pretraining_base",
    "audio_mae_vit_base_patch16",
    "hmr2_vit_huge_patch16",
    "lart_hiera",
    "phalp_appearance",
)

MATRIX = 2048
"""Rows and columns of the matrices whose product is the peak."""
SMALL_MATRIX = 256
PATIENCE = 5.0
"""Maximum time in seconds of one product of the large matrices."""
MAX_CLIPS = 2
"""Most inputs of a batch, where each has more than a thousand tokens."""


@dataclass(frozen=True)
class ForwardWork:
    """One forward pass of a model that is ready."""

    name: str
    unit: str
    samples: int
    """Number of samples in a pass."""
    call: ForwardCall


@dataclass(frozen=True)
class ModelTiming:
    name: str
    unit: str
    samples: int
    parameters: int
    flops: int
    """Operations of a pass, a multiply-add counted as two."""
    seconds: list[float]
    peak: float
    """FLOP/s of a matrix product."""

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.samples / statistics.median(self.seconds)

    @property
    def share(self) -> float:
        """Share of the peak."""
        return self.flops / statistics.median(self.seconds) / self.peak


def measure(name: str, architecture: str, config: Any, dtype: torch.dtype, batch: int, passes: int) -> list[ModelTiming]:
    """Return a model's forward pass and, if a part of it is repeated for the same input, that part."""
    torch.manual_seed(0)
    model = architectures()[architecture].build(config).eval().to(dtype).requires_grad_(False)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    flops = count(architecture, config, batch)
    results = []
    with torch.inference_mode():
        if supports_packed_linear(torch.device("cpu"), dtype):
            pack_linears(model)  # as the worker does
        for work, cost in zip(works(name, architecture, model, batch), flops, strict=True):
            peak = peak_flops(dtype)
            work.call()
            results.append(
                ModelTiming(work.name, work.unit, work.samples, parameters, cost, [_seconds(work.call) for _ in range(passes)], peak)
            )
    return results


def works(name: str, architecture: str, model: nn.Module, batch: int) -> list[ForwardWork]:
    parameter = next(model.parameters())
    make = RandomInputMaker(batch, parameter.dtype, parameter.device)
    found = [ForwardWork(name, dummy_forward(architecture).unit, batch, prepare_forward(architecture, model, batch))]
    repeated = REPEATED.get(architecture)
    return found if repeated is None else [*found, repeated(name, model, make)]


def count(architecture: str, config: Any, batch: int) -> list[int]:
    """FLOPs of each of `works`."""
    model = build_on_meta(architecture, config)
    numbers = range(2 if architecture in REPEATED else 1)

    def prepare_call(number: int) -> Callable[[], ForwardCall]:
        return lambda: works("", architecture, model, batch)[number].call

    return [count_flops(prepare_call(number)) for number in numbers]


def _step(name: str, model: nn.Module, make: RandomInputMaker) -> ForwardWork:
    """Return one step of a sampler, which does not include the encoder."""
    assert isinstance(model, DiffMAE)
    masked = DummyMaskedBatch.draw(model.config, make)
    context = model.encode(masked.pixels, masked.split)
    return ForwardWork(f"{name}, a step", "step", make.batch, lambda: model.predict(masked.noisy, masked.times, context))


def _queries(name: str, model: nn.Module, make: RandomInputMaker) -> ForwardWork:
    """Points asked about a scene that is remembered."""
    assert isinstance(model, MCC)
    scene, queries = model.cache_scene(model.encode(*random_scene_inputs(model.config, make))), make.normal(QUERIES, 3)
    return ForwardWork(
        f"{name}, queries", "query", make.batch * QUERIES, lambda: model.predict_outputs(model.decode_queries(scene, queries))
    )


REPEATED: Mapping[str, Callable[[str, nn.Module, RandomInputMaker], ForwardWork]] = {"diffmae": _step, "mcc": _queries}


def peak_flops(dtype: torch.dtype) -> float:
    """FLOP/s: the best of five products of two matrices; of smaller ones where the CPU has no instructions for the format."""
    probe = _product_flops(SMALL_MATRIX, dtype, repeats=1)
    return _product_flops(MATRIX, dtype, repeats=5) if 2 * MATRIX**3 / probe < PATIENCE else probe


def _product_flops(side: int, dtype: torch.dtype, repeats: int) -> float:
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    return 2 * side**3 / min(_seconds(lambda: a @ b) for _ in range(repeats))


def _seconds(call: ForwardCall) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def table(results: list[ModelTiming]) -> Table:
    view = Table(title="Forward passes, and their share of the peak of a matrix product")
    for column in ("model", "parameters", "batch", "GFLOPs", "ms", "rate", "GFLOP/s", "peak", "share"):
        view.add_column(column, justify="left" if column == "model" else "right")
    for result in results:
        seconds = statistics.median(result.seconds)
        view.add_row(
            result.name,
            f"{result.parameters / 1e6:.0f} M",
            str(result.samples),
            f"{result.flops / 1e9:.1f}",
            f"{seconds * 1000:.0f}",
            f"{result.rate:.3g} {result.unit}/s",
            f"{result.flops / seconds / 1e9:.0f}",
            f"{result.peak / 1e9:.0f}",
            f"{result.share:.0%}",
        )
    return view


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models", description="Measure the forward pass of every system at a size like ViT-B."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of `opsin models` (default: {', '.join(LIKE_VIT_B)})")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="bfloat16" if supports_packed_linear(torch.device("cpu"), torch.bfloat16) else "float32"
    )
    parser.add_argument("--batch", type=int, default=8, help=f"at most; {MAX_CLIPS} for more than 1000 tokens each (default: 8)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--passes", type=int, default=5)
    options = parser.parse_args()
    names = options.names or LIKE_VIT_B
    unknown = [name for name in names if name not in sizes()]
    if unknown:
        parser.error(f"{', '.join(unknown)}: unknown; `opsin models` lists the names")
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the worker does
    console = machine.show()
    results: list[ModelTiming] = []
    for size in (sizes()[name] for name in names):
        long = dummy_forward(size.architecture).tokens(size.config) > 1000
        batch = min(options.batch, MAX_CLIPS) if long else options.batch
        with console.status(size.name):
            measured = measure(size.name, size.architecture, size.config, DTYPES[options.dtype], batch, options.passes)
        for result in measured:  # a row as soon as it is known: the whole takes minutes
            console.print(f"{result.name}: {result.rate:.3g} {result.unit}/s, {result.share:.0%} of the peak", highlight=False)
        results += measured
    console.print(table(results))
    rows = [asdict(result) | {"rate": result.rate, "share": result.share} for result in results]
    machine.write_result(parser.prog, {"dtype": options.dtype, "threads": options.threads, "results": rows})


if __name__ == "__main__":
    main()
