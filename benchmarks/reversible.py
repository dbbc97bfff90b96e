"""Rev-MViT compared with the MViT of its size, a part of `benchmarks.clips`: training memory and inference throughput."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from benchmarks.rounds import FigureRounds, RoundsFigure
from models.layers.packed_linear import pack_linears, supports_packed_linear
from models.systems.mvit.model import MViT, MViTConfig
from models.systems.mvit.reversible import RevMViT, RevMViTConfig

Model = TypeVar("Model", bound=nn.Module)
AnyConfig = MViTConfig | RevMViTConfig
Config = TypeVar("Config", MViTConfig, RevMViTConfig)


def compare_with_plain(
    plain_config: MViTConfig, config: RevMViTConfig, small: tuple[MViTConfig, RevMViTConfig], rounds: int, log: Callable[[str], None]
) -> list[RoundsFigure]:
    """Measure at the depth of the configs and three times as deep. Each training step has a process of its own, whose memory is then known.

    small: networks whose first step loads what libraries load late.
    """
    figures = []
    for depth in (plain_config.depth, 3 * plain_config.depth):
        ours, plain = deepen(config, depth), deepen(plain_config, depth)
        memory, speed = FigureRounds(), FigureRounds()
        models = ready(RevMViT(ours)), ready(MViT(plain))
        clip = torch.randn(1, plain.channels, plain.frames, plain.image_size, plain.image_size)
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as children:
            for number in range(rounds + 1):
                ours_s, plain_s = (cpu_seconds(partial(model, clip)) for model in models)
                if number:
                    speed.note(plain_s / ours_s, reversible_per_s=1 / ours_s, plain_per_s=1 / plain_s)
            results = [children.apply(training_step, pair) for pair in ((plain, small[0]), (ours, small[1]))]
        memory.note(
            results[0][0] / results[1][0],
            plain_mib=results[0][0],
            reversible_mib=results[1][0],
            plain_s=results[0][1],
            reversible_s=results[1][1],
        )
        log(f"reversible, {depth} blocks: memory {memory.values[0]:.2f}, throughput {statistics.median(speed.values):.2f}")
        figures += [
            memory.figure(f"reversible: MViT's training memory ÷ Rev-MViT's, {depth} blocks", "15.5 at most in the paper"),
            speed.figure(f"reversible: clips/s of Rev-MViT ÷ MViT's, {depth} blocks", "2.3 at most in the paper"),
        ]
    return figures


def deepen(config: Config, depth: int) -> Config:
    """Change the number of blocks: those that are added belong to the third stage of four."""
    last = depth - (config.depth - max(block for block, _ in config.width_growth))

    def move_last(rows: tuple[tuple[Any, ...], ...]) -> tuple[Any, ...]:
        return (*rows[:-1], (last, *rows[-1][1:]))

    changed: dict[str, Any] = {name: move_last(getattr(config, name)) for name in ("width_growth", "head_growth", "q_strides")}
    if isinstance(config, RevMViTConfig):
        changed["transitions"] = (*config.transitions[:-1], last)
    return replace(config, depth=depth, **changed)


def training_step(config: AnyConfig, small: AnyConfig) -> tuple[float, float]:
    """Return the MiB that a forward and backward pass over one clip keep at most, without gradients, and its CPU seconds.

    A step of a small network runs before.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    _measure_step(small)
    return _measure_step(config)


def _measure_step(config: AnyConfig) -> tuple[float, float]:
    model = (RevMViT(config) if isinstance(config, RevMViTConfig) else MViT(config)).train()
    clip = torch.randn(1, config.channels, config.frames, config.image_size, config.image_size)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    Path("/proc/self/clear_refs").write_text("5")  # the most that was resident is counted from here
    before, started_at = _status("VmRSS"), time.process_time()
    model(clip).logits.sum().backward()
    return (_status("VmHWM") - before) / 1024, time.process_time() - started_at


def _status(name: str) -> int:
    """KiB of memory, as /proc/self/status has it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def ready(model: Model) -> Model:
    """Return a model as the worker runs it."""
    model.eval()
    if supports_packed_linear(torch.device("cpu"), torch.float32):
        pack_linears(model)
    return model


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the CPU seconds of this thread: waiting for a busy CPU does not count."""
    started_at = time.thread_time()
    with torch.inference_mode():
        call()
    return time.thread_time() - started_at
