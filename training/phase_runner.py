"""The phases of a recipe: which network, data and objective make one, and what it starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models import bundle
from models.bundle_files import file_digest
from models.registry import architectures
from training import bundle_spec, start_weights
from training.checkpoint import Checkpoints, replacing
from training.data.packages import PyPIPackage
from training.data.source import SamplePreparation, SampleSource
from training.distributed import barrier, gather_full, is_main
from training.efficientnet_lite0 import convert, published_weights
from training.errors import RecipeError, TrainingError
from training.fingerprint import FREE, flatten, sha256_of_weights
from training.loop import RunOutcome, RunReport, RunSetup, TrainingPlan, train
from training.objectives.protocols import ObjectiveContext, released_network
from training.recipe import Initial, Phase, Recipe
from training.shipped_files import locate

WEIGHTS = bundle.WEIGHTS_FILE
"""File of a finished phase's network. With `bundle.json` the phase's folder is a bundle."""


@dataclass(frozen=True)
class RunContext:
    """Folders and device of all phases of a run."""

    runs: Path
    """`runs/NAME-VERSION`, with a folder for each phase."""
    cache: Path
    device: torch.device
    tensorboard: bool = False


@dataclass(frozen=True)
class PreparedPhase:
    """A phase before its first step."""

    recipe: Recipe
    phase: Phase
    objective: nn.Module
    source: SampleSource
    plan: TrainingPlan
    run: RunSetup


def preparation(recipe: Recipe, phase: Phase | None, cache: Path) -> SamplePreparation:
    """How samples of a phase are prepared; None: those that are measured, which are not augmented."""
    preprocess = (phase.preprocess if phase else None) or recipe.preprocess
    augment = recipe.augment.model_copy(update={"crop_scale": None}) if phase is None else phase.augment or recipe.augment
    return SamplePreparation(preprocess, recipe.clip, recipe.sound, augment, recipe.words, cache)


def source_of(recipe: Recipe, phase: Phase, cache: Path) -> SampleSource:
    """Open the data of a phase. Raises DataError."""
    return (phase.data or recipe.data).open(preparation(recipe, phase, cache))


def prepare(recipe: Recipe, phase: Phase, context: RunContext) -> PreparedPhase:
    """Open the data and build the objective of a phase. Raises TrainingError."""
    source = source_of(recipe, phase, context.cache)
    network = starting_network(recipe, phase, source.labels, context)
    bundle_spec.build_phase_spec(recipe, phase, network.config, source.labels)
    ready = preparation(recipe, phase, context.cache)
    try:
        objective = phase.objective.build(network, ObjectiveContext(source.labels, ready.preprocess, ready.clip, ready.sound, ready.cache))
    except ValueError as error:
        raise RecipeError(f"{recipe.field_of(phase)}.objective: {error}") from error
    fingerprint = flatten(
        {
            "seed": recipe.seed,
            "model": settings_of(network),
            "starting weights (SHA-256)": sha256_of_weights(objective.state_dict()),
            "objective": phase.objective.model_dump(mode="json"),
            "optimiser": phase.optimiser.model_dump(mode="json"),
            "schedule": phase.schedule.model_dump(mode="json"),
            "loop": phase.loop.model_dump(mode="json", exclude=set(FREE)),
            "data": (phase.data or recipe.data).model_dump(mode="json", exclude={"path"}),
            "content of the data": dict(source.identity()),
            "samples": len(source),
            "labels": list(source.labels),
            "augment": ready.augment.model_dump(mode="json"),
            **{name: None if value is None else value.model_dump(mode="json") for name, value in _inputs(ready).items()},
        }
    )
    plan = TrainingPlan(phase.optimiser, phase.schedule, phase.loop, recipe.seed)
    run = RunSetup(context.runs / phase.name, context.device, fingerprint, context.tensorboard)
    return PreparedPhase(recipe, phase, objective, source, plan, run)


def settings_of(network: nn.Module) -> dict[str, Any]:
    """Return the fields of a network's config."""
    config: Any = network.config
    return dataclasses.asdict(config)


def _inputs(ready: SamplePreparation) -> dict[str, Any]:
    return {"preprocess": ready.preprocess, "clip": ready.clip, "sound": ready.sound}


def run(ready: PreparedPhase) -> RunReport:
    """Train a phase; at its end `WEIGHTS` lie in its folder, and `ready.objective` is trained. Raises TrainingError."""
    if Checkpoints(ready.run.folder, ready.run.fingerprint).latest() is None:
        start_weights.fit_to_data(ready.objective, ready.source, ready.plan.seed, ready.phase.initial)
    try:
        report = train(ready.objective, ready.source, ready.plan, ready.run)
    except TrainingError as error:
        if not str(error).startswith("loop."):
            raise
        raise RecipeError(f"{ready.recipe.field_of(ready.phase)}.{error}") from error
    if report.ended is RunOutcome.DONE:
        weights = {
            name: gather_full(value).detach().cpu().contiguous() for name, value in released_network(ready.objective).state_dict().items()
        }
        if is_main():
            _give_away(ready, weights)
        barrier()
    return report


def _give_away(ready: PreparedPhase, weights: Mapping[str, Tensor]) -> None:
    """Write the network as a bundle that later phases start from and learn from; nothing of it is measured."""
    recipe, phase, folder = ready.recipe, ready.phase, ready.run.folder
    described = bundle_spec.build_phase_spec(recipe, phase, released_network(ready.objective).config, ready.source.labels)
    with replacing(folder / WEIGHTS) as partial:
        save_file(dict(weights), partial)
        described = described.model_copy(update={"weights": file_digest(partial)})
    (folder / bundle.SPEC_FILE).write_bytes(described.to_bytes())


def starting_network(recipe: Recipe, phase: Phase, labels: tuple[str, ...], context: RunContext) -> nn.Module:
    """Build the network of a phase before its first step, the same in every process and every time. Raises TrainingError."""
    settings = recipe.model_of(phase)
    torch.manual_seed(recipe.seed)
    try:
        network = architectures()[settings.architecture].build(settings.resolve(len(labels)))
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise RecipeError(f"phase {phase.name}: model: no network can be made of this config ({error})") from error
    if phase.initial is not Initial.RANDOM:
        start_weights.apply_initial(network, phase.initial)
    if phase.start:
        start_weights.load_start_weights(network, _weights(recipe, phase.start, labels, context), phase.start)
    for name, source in phase.parts.items():
        try:
            part = network.get_submodule(name)
        except AttributeError as error:
            children = ", ".join(child for child, _ in network.named_children())
            raise RecipeError(f"phase {phase.name}: parts.{name}: the network has no such part; it has {children}") from error
        if isinstance(source, PyPIPackage):
            start_weights.load_start_weights(part, convert(published_weights(source, context.cache)), source.name)
        else:
            weights = _weights(recipe, source, labels, context)
            start_weights.load_start_weights(part, start_weights.part_of(weights, name) or weights, source)
    return network


def _weights(recipe: Recipe, start: str, labels: tuple[str, ...], context: RunContext) -> Mapping[str, Tensor]:
    phases = {phase.name: phase for phase in recipe.phases}
    name = start.removesuffix("@0")
    if name not in phases:
        return start_weights.read_weights(locate(Path(start)))
    if start != name:
        state = torch.get_rng_state()
        weights = starting_network(recipe, phases[name], labels, context).state_dict()
        torch.set_rng_state(state)
        return weights
    return load_phase_weights(context, name)


def load_phase_weights(context: RunContext, name: str) -> dict[str, Tensor]:
    """Load the weights of a finished phase. Raises TrainingError."""
    file = context.runs / name / WEIGHTS
    if not file.is_file():
        raise TrainingError(f"{file}: phase {name} has not been trained to its end yet; train it first")
    return start_weights.read_weights(file)


def load_phase_network(recipe: Recipe, name: str, labels: tuple[str, ...], context: RunContext) -> nn.Module:
    """Load the network of a finished phase, in evaluation mode. Raises TrainingError."""
    [phase] = [phase for phase in recipe.phases if phase.name == name]
    settings = recipe.model_of(phase)
    network = architectures()[settings.architecture].build(settings.resolve(len(labels)))
    network.load_state_dict(load_phase_weights(context, name))
    return network.eval()
