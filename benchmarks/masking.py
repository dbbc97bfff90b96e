"""Time that hidden patches save in training: `python -m benchmarks.masking`.

A step of FLIP's ViT-B/16 (arXiv 2212.00794) with half of the patches hidden and with all of them, and a step of MAE-ST's ViT-B
pre-training (arXiv 2205.09113) with 90 % hidden and with one patch hidden, on random input, by turns. Each by its CPU seconds on one
thread: waiting for a busy CPU does not count. The FLOPs of both are counted; their ratio is what the arithmetic promises.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from benchmarks import machine
from models.registry import architectures
from training import costs, recipe
from training.loop import attention_of
from training.objectives.protocols import ObjectiveContext, parameter_groups
from training.recipe import Recipe

PUBLISHED = Path(__file__).parent.parent / "training" / "recipes" / "published"
WORDS = 30_000
"""Size of the vocabulary: any will do."""


@dataclass(frozen=True)
class MaskingCase:
    name: str
    recipe: str
    hides: Sequence[str]
    """Changes of the recipe for what the paper does."""
    shows: Sequence[str]
    """Changes of the recipe that show all patches."""
    samples: int
    """Samples of a step."""


@dataclass(frozen=True)
class MaskingGain:
    name: str
    faster: list[float]
    """CPU seconds with all patches over those with hidden ones, of each round."""
    arithmetic: float
    """FLOPs with all patches over those with hidden ones."""

    @property
    def share(self) -> float:
        """Share of what the arithmetic promises."""
        return statistics.median(self.faster) / self.arithmetic


CASES: Sequence[MaskingCase] = (
    MaskingCase(
        "FLIP ViT-B/16, 50 % hidden",
        "flip",
        ("model.size=flip_base16",),
        ("model.size=flip_base16", "phases.0.objective.masked=false"),
        8,
    ),
    MaskingCase(
        "MAE-ST ViT-B pre-training, 90 % hidden",
        "mae_st",
        ("phases.0.model.size=mae_video_vit_base_patch16",),
        ("phases.0.model.size=mae_video_vit_base_patch16", "phases.0.model.config.mask_ratio=0.0006"),
        1,
    ),
)


def step_of(plan: Recipe, samples: int) -> Callable[[], None]:
    """Return a training step of the first phase on random input, in float32."""
    torch.manual_seed(0)
    phase = plan.phases[0]
    model = plan.model_of(phase)
    objective = phase.objective.build(architectures()[model.architecture].build(model.resolve(0)), ObjectiveContext())
    optimiser = torch.optim.AdamW(parameter_groups(objective, phase.optimiser), lr=1e-5, fused=True)
    batch = random_batch(plan, samples)

    def step() -> None:
        with attention_of(torch.device("cpu")):
            loss: Tensor = objective(batch)["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()

    objective.train()
    return step


def random_batch(plan: Recipe, samples: int) -> Mapping[str, Tensor]:
    assert plan.preprocess is not None
    side = plan.preprocess.image_size
    batch = {"draw": torch.arange(samples)}
    if plan.clip:
        return batch | {"clip": torch.randn(samples, 3, plan.clip.frames, side, side)}
    assert isinstance(plan.words, int)
    return batch | {"pixels": torch.randn(samples, 3, side, side), "words": torch.randint(1, WORDS, (samples, plan.words))}


def measure(case: MaskingCase, rounds: int) -> MaskingGain:
    plans = [recipe.read(PUBLISHED / f"{case.recipe}.yaml", changes) for changes in (case.hides, case.shows)]
    hidden, full = (costs.count(plan, plan.phases[0], 0).flops for plan in plans)
    steps = [step_of(plan, case.samples) for plan in plans]
    for step in steps:
        step()
    faster = []
    for _ in range(rounds):
        fast, slow = (cpu_seconds(step) for step in steps)
        faster.append(slow / fast)
    return MaskingGain(case.name, faster, full / hidden)


def cpu_seconds(step: Callable[[], None]) -> float:
    started_at = time.process_time()
    step()
    return time.process_time() - started_at


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.masking", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = machine.show()
    found = [measure(case, options.rounds) for case in CASES]
    table = Table("", "samples/s, hidden ÷ all", "arithmetic", "share of it", box=None)
    for saved in found:
        low, high = min(saved.faster), max(saved.faster)
        rates = f"{statistics.median(saved.faster):.2f} ({low:.2f}–{high:.2f})"
        table.add_row(saved.name, rates, f"{saved.arithmetic:.2f}", f"{saved.share:.2f}")
    console.print(table)
    machine.write_result(parser.prog, {"masking": [asdict(saved) | {"share": saved.share} for saved in found]})


if __name__ == "__main__":
    main()
