"""MCC of photographs without depth: a pipeline of an MCC, `shape`, and of a network that tells depth, `depth`.

A job with `photograph` uint8 (S, S, 3) in place of `pixels` is answered in one step: `told` float32 (S, S), what the member `depth` says
of each pixel, up to scale and shift. All others are those of the member `shape`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.bundle import BundleSpec
from models.bundle_schema import QuerySpace
from models.layers.forward import normalise
from models.layers.loaded_member import LoadedMember
from models.layers.stepwise import Completed, InProgress, JobState, Tensors
from models.registry import architectures, read_config
from models.systems.mcc.model import MCC, MCCConfig
from models.systems.mcc.steps import ReconstructionSteps


@dataclass(frozen=True)
class PhotographMCCConfig(MCCConfig):
    """The fields of the member `shape`, and what gateways need to know of the member `depth`."""

    depth_size: int = 256
    """Side of the square that a photograph is squeezed into."""
    depth_interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    depth_output: Literal["disparity", "depth"] = "disparity"
    """disparity: larger is nearer; depth: larger is farther."""
    depth_background: Literal["kept", "mean"] = "kept"
    """mean: it is shown the object before the object's mean colour."""


class PhotographMCC(nn.Module):
    """Has no weights of its own."""

    def __init__(self, config: PhotographMCCConfig, shape: MCC | None = None, depth: LoadedMember | None = None) -> None:
        super().__init__()
        self.config = config
        self.shape = shape
        self.depth = depth

    def tell(self, photographs: Tensor) -> Tensor:
        """uint8 (B, S, S, 3) → what is told of each pixel, float32 (B, S, S)."""
        assert self.depth is not None, "assemble it from its members"
        told: Tensor = self.depth.model(normalise(photographs, self.depth.spec.pictures, torch.float32))
        return told


@dataclass(frozen=True)
class Telling:
    """A photograph whose depth is told in its only step."""

    photograph: Tensor
    done: int = 0
    total: int = 1

    @property
    def nbytes(self) -> int:
        return self.photograph.nbytes


class PhotographSteps(ReconstructionSteps):
    """Adds jobs with `photograph`."""

    def __init__(self, model: PhotographMCC, device: torch.device) -> None:
        assert model.shape is not None, "assemble it from its members"
        super().__init__(model.shape, device)
        self._pipeline = model

    def start(self, arrays: Sequence[Tensors], options: Sequence[Mapping[str, Any]]) -> list[JobState]:
        others = [(job, asked) for job, asked in zip(arrays, options, strict=True) if "photograph" not in job]
        started = iter(super().start([job for job, _ in others], [asked for _, asked in others]) if others else ())
        return [Telling(job["photograph"]) if "photograph" in job else next(started) for job in arrays]

    def step(self, states: Sequence[JobState], previews: Sequence[bool]) -> list[InProgress | Completed]:
        photographs = [state.photograph for state in states if isinstance(state, Telling)]
        others = [(state, wanted) for state, wanted in zip(states, previews, strict=True) if not isinstance(state, Telling)]
        stepped = iter(super().step([state for state, _ in others], [wanted for _, wanted in others]) if others else ())
        told = iter(self._told(photographs) if photographs else ())
        return [Completed({"told": next(told).clone()}) if isinstance(state, Telling) else next(stepped) for state in states]

    def _told(self, photographs: Sequence[Tensor]) -> Tensor:
        """(B, S, S). Raises ValueError where the network fails."""
        told = self._pipeline.tell(torch.stack(list(photographs)))
        if not told.isfinite().all():
            raise ValueError("depths are told that are no numbers")
        return told

    def cost(self, state: JobState) -> float:
        return 1.0 if isinstance(state, Telling) else super().cost(state)


def photograph_steps(model: nn.Module, _spec: BundleSpec, device: torch.device) -> PhotographSteps:
    assert isinstance(model, PhotographMCC)
    return PhotographSteps(model, device)


def config_of(shape: BundleSpec, depth: BundleSpec) -> dict[str, Any]:
    """The config of the pipeline of two members. Raises ValueError for members that are of other architectures."""
    if shape.architecture != "mcc":
        raise ValueError(f"members.shape: {shape.id} is of architecture {shape.architecture}; mcc is needed")
    return {**shape.config, **_told_by(depth)}


def _told_by(depth: BundleSpec) -> dict[str, Any]:
    """The fields of the config that are the member's. Raises ValueError for one of another task."""
    if depth.task != "depth":
        raise ValueError(f"members.depth: {depth.id} is for task {depth.task}; a bundle for depth is needed")
    own, pictures = read_config(architectures()[depth.architecture].config, depth.config), depth.pictures
    return {
        "depth_size": own.image_size,
        "depth_output": own.output,
        "depth_interpolation": pictures.interpolation,
        "depth_background": getattr(own, "background", "kept"),
    }


def assemble(spec: BundleSpec, config: PhotographMCCConfig, members: Mapping[str, LoadedMember]) -> PhotographMCC:
    """Raises ValueError for members that are missing or do not fit."""
    for role in ("shape", "depth"):
        if role not in members:
            raise ValueError(f"members: a pipeline that makes shapes of photographs needs one for `{role}`")
    shape, depth = members["shape"], members["depth"]
    if not isinstance(shape.model, MCC):
        raise ValueError(f"members.shape: {shape.spec.id} is of architecture {shape.spec.architecture}; mcc is needed")
    if (shape.spec.space or QuerySpace()).region != "cube":
        raise ValueError(f"members.shape: {shape.spec.id} is for scenes; depth of a photograph is told of an object alone")
    if spec.space != shape.spec.space or spec.preprocess != shape.spec.preprocess:
        raise ValueError(f"space and preprocess are not those of its member {shape.spec.id}")
    if any(getattr(config, field.name) != getattr(shape.model.config, field.name) for field in dataclasses.fields(MCCConfig)):
        raise ValueError(f"config: it is not that of its member {shape.spec.id}")
    if any(getattr(config, name) != value for name, value in _told_by(depth.spec).items()):
        raise ValueError(f"config: the fields depth_… are not those of its member {depth.spec.id}")
    return PhotographMCC(config, shape.model, depth)
