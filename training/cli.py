"""The command behind `opsin train` and `python -P -m opsin.engine training`: a recipe's phases one after another, then its bundle."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from training import estimate, phase_runner, recipe, release_check
from training.distributed import is_main, process_group
from training.errors import TrainingError, disk_is_full
from training.loop import RunOutcome, flush_denormals
from training.options import TrainOptions
from training.phase_runner import RunContext
from training.recipe import Recipe
from training.shipped_files import warn_if_moved

STOPPED_BY = 128
"""Plus a signal's number: the exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        return run(_parse(arguments))
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 2


def run(options: TrainOptions) -> int:
    """Run in this process, which torchrun may have started, and return the exit code. Raises TrainingError."""
    try:
        with process_group() as device:
            return make(options, device)
    except TrainingError:
        raise
    except Exception as error:
        if not disk_is_full(error):
            raise
        folders = f"--runs {options.runs}, --cache {options.cache} or --bundles {options.bundles}"
        again = "make room and start the same command again, which goes on from the last checkpoint"
        raise TrainingError(f"disk full, there is no room in {folders}: {again}") from error


def _parse(arguments: Sequence[str] | None) -> TrainOptions:
    parser = argparse.ArgumentParser(prog="opsin train", description="Train a recipe and write its bundle. A run that was killed goes on.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("changes", nargs="*", metavar="FIELD=VALUE", help="overrides, such as phases.0.loop.batch_size=8")
    parser.add_argument("--runs", type=Path, default=TrainOptions.runs, help="checkpoints, logs and reports (default: %(default)s)")
    parser.add_argument("--bundles", type=Path, default=TrainOptions.bundles, help="where the bundle goes (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=TrainOptions.cache, help="downloaded and decoded data (default: %(default)s)")
    parser.add_argument("--phase", help="train this phase alone, and write no bundle")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what it takes: parameters, memory, FLOPs, samples per second; train nothing"
    )
    parser.add_argument("--no-tensorboard", dest="tensorboard", action="store_false", help="write log.jsonl alone")
    parsed = parser.parse_intermixed_args(arguments)
    return TrainOptions(**{**vars(parsed), "changes": tuple(parsed.changes)})


def make(options: TrainOptions, device: torch.device) -> int:
    """Train the phases and write the bundle, or stop earlier with a checkpoint. Return the exit code.

    A signal gives 128 plus its number, as in shells, so that scripts do not take the run for finished. Raises TrainingError.
    """
    plan = recipe.read(options.recipe, options.changes)
    if is_main():
        warn_if_moved(options.recipe)
    context = RunContext(options.runs / f"{plan.name}-{plan.version}", options.cache, device, options.tensorboard)
    chosen = [phase for phase in plan.phases if options.phase in (None, phase.name)]
    if not chosen:
        raise TrainingError(f"--phase: unknown phase {options.phase}; the phases are {', '.join(phase.name for phase in plan.phases)}")
    if not options.dry_run and options.phase is None:
        release_check.check(plan, options.cache)
    estimates: list[estimate.Estimate] = []
    for phase in chosen:
        torch.set_num_threads(_threads(phase.loop.workers))
        with flush_denormals():
            torch.zeros(2**20).add_(1)  # starts torch's threads
        if options.dry_run:
            estimates.append(estimate.estimate(plan, phase, context))
            if is_main():
                print(estimates[-1].text, flush=True)
            continue
        report = phase_runner.run(phase_runner.prepare(plan, phase, context))
        if report.ended is RunOutcome.STOPPED:
            if is_main():
                print(f"stopped in step {report.step} of phase {phase.name}; the same command goes on", file=sys.stderr)
            return STOPPED_BY + report.signal if report.signal is not None else 0
    if len(estimates) > 1 and is_main():
        print(estimate.total(estimates))
    if not options.dry_run and options.phase is None and is_main():
        _release(plan, options, context)
    return 0


def _release(plan: Recipe, options: TrainOptions, context: RunContext) -> None:
    if plan.release is None:
        print(f"trained; the weights lie in {context.runs / plan.phases[-1].name / phase_runner.WEIGHTS}")
        return
    from training import release  # scikit-learn takes seconds

    written = release.release(plan, options.recipe, context, options.bundles)
    print((written.path / "README.md").read_text(encoding="utf-8"))
    print(f"written to {written.path}")
    if rung := written.spec.rung(written.spec.default_rung or ""):
        print(f"it merges tokens by default: rung {rung.name}, {rung.throughput:.2f} times as fast as merging off")
        print("a request with merge=off merges none; the same command with release.merge=off makes a bundle that merges only on request")


def _threads(workers: int) -> int:
    """Return the number of threads of torch: the cores that data workers and other processes of the run leave."""
    set_by_hand = os.environ.get("OMP_NUM_THREADS")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(set_by_hand) if set_by_hand else max(1, len(os.sched_getaffinity(0)) // local - workers)
