"""MCC of photographs without depth: a pipeline of an MCC, `shape`, and of a depth network, `depth`.

A job with `photograph` uint8 (S, S, 3) instead of `pixels` is done in one step: its array `told` float32 (S, S) is the output of the member
`depth` per pixel, up to scale and shift. All other jobs are those of the member `shape`.
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
from models.layers.stepwise import InProgress, JobState, LoadedMember, StepCompletion, Tensors
from models.registry import architectures, read_config
from models.systems.mcc.model import MCC, MCCConfig
from models.systems.mcc.steps import ReconstructionSteps


@dataclass(frozen=True)
class PhotographMCCConfig(MCCConfig):
    """Config of the pipeline: the fields of the member `shape`, and those of the member `depth` that gateways need."""

    depth_size: int = 256
    """Side of the square that a photograph is squeezed into."""
    depth_interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    depth_output: Literal["disparity", "depth"] = "disparity"
    """disparity: larger is nearer; depth: larger is farther."""
    depth_background: Literal["kept", "mean"] = "kept"
    """mean: the network's input is the object on a background of its mean colour."""


class PhotographMCC(nn.Module):
    """A pipeline of two members, without weights of its own."""

    def __init__(self, config: PhotographMCCConfig, shape: MCC | None = None, depth: LoadedMember | None = None) -> None:
        super().__init__()
        self.config = config
        self.shape = shape
        self.depth = depth

    def predict_depth(self, photographs: Tensor) -> Tensor:
        """Predict depth or disparity of each pixel: uint8 (B, S, S, 3) → float32 (B, S, S)."""
        assert self.depth is not None, "assemble it from its members"
        depth: Tensor = self.depth.model(normalise(photographs, self.depth.spec.image_preprocess, torch.float32))
        return depth


@dataclass(frozen=True)
class DepthState:
    """State of a depth job, which has one step."""

    photograph: Tensor
    done: int = 0
    total: int = 1

    @property
    def nbytes(self) -> int:
        return self.photograph.nbytes


class PhotographSteps(ReconstructionSteps):
    """Steps of reconstruction, and of jobs with `photograph`."""

    def __init__(self, model: PhotographMCC, device: torch.device) -> None:
        assert model.shape is not None, "assemble it from its members"
        super().__init__(model.shape, device)
        self._pipeline = model

    def start(self, arrays: Sequence[Tensors], options: Sequence[Mapping[str, Any]]) -> list[JobState]:
        reconstructions = [(job, job_options) for job, job_options in zip(arrays, options, strict=True) if "photograph" not in job]
        started = iter(
            super().start([job for job, _ in reconstructions], [job_options for _, job_options in reconstructions])
            if reconstructions
            else ()
        )
        return [DepthState(job["photograph"]) if "photograph" in job else next(started) for job in arrays]

    def step(self, states: Sequence[JobState], previews: Sequence[bool]) -> list[InProgress | StepCompletion]:
        photographs = [state.photograph for state in states if isinstance(state, DepthState)]
        reconstructions = [(state, preview) for state, preview in zip(states, previews, strict=True) if not isinstance(state, DepthState)]
        stepped = iter(
            super().step([state for state, _ in reconstructions], [preview for _, preview in reconstructions]) if reconstructions else ()
        )
        depths = iter(self._predict_depths(photographs) if photographs else ())
        return [StepCompletion({"told": next(depths).clone()}) if isinstance(state, DepthState) else next(stepped) for state in states]

    def _predict_depths(self, photographs: Sequence[Tensor]) -> Tensor:
        """Predict depth (B, S, S). Raises ValueError if the network fails."""
        depths = self._pipeline.predict_depth(torch.stack(list(photographs)))
        if not depths.isfinite().all():
            raise ValueError("the depth network's output has infinite values or NaN")
        return depths

    def cost(self, state: JobState) -> float:
        return 1.0 if isinstance(state, DepthState) else super().cost(state)


def photograph_steps(model: nn.Module, _spec: BundleSpec, device: torch.device) -> PhotographSteps:
    assert isinstance(model, PhotographMCC)
    return PhotographSteps(model, device)


def pipeline_config(shape: BundleSpec, depth: BundleSpec) -> dict[str, Any]:
    """Return the config of the pipeline of two members. Raises ValueError for members of other architectures."""
    if shape.architecture != "mcc":
        raise ValueError(f"members.shape: {shape.id} is of architecture {shape.architecture}; mcc is needed")
    return {**shape.config, **_depth_fields(depth)}


def _depth_fields(depth: BundleSpec) -> dict[str, Any]:
    """Return the fields of the config that depend on the depth member. Raises ValueError for a member of another task."""
    if depth.task != "depth":
        raise ValueError(f"members.depth: {depth.id} is for task {depth.task}; a bundle for depth is needed")
    config, preprocess = read_config(architectures()[depth.architecture].config, depth.config), depth.image_preprocess
    return {
        "depth_size": config.image_size,
        "depth_output": config.output,
        "depth_interpolation": preprocess.interpolation,
        "depth_background": getattr(config, "background", "kept"),
    }


def assemble(spec: BundleSpec, config: PhotographMCCConfig, members: Mapping[str, LoadedMember]) -> PhotographMCC:
    """Build the pipeline of its members. Raises ValueError for members that are missing or do not fit."""
    for role in ("shape", "depth"):
        if role not in members:
            raise ValueError(f"members: a pipeline that makes shapes of photographs needs one for `{role}`")
    shape, depth = members["shape"], members["depth"]
    if not isinstance(shape.model, MCC):
        raise ValueError(f"members.shape: {shape.spec.id} is of architecture {shape.spec.architecture}; mcc is needed")
    if (shape.spec.space or QuerySpace()).region != "cube":
        raise ValueError(f"members.shape: {shape.spec.id} is for scenes; a photograph's depth is predicted for single objects")
    if spec.space != shape.spec.space or spec.preprocess != shape.spec.preprocess:
        raise ValueError(f"space and preprocess are not those of its member {shape.spec.id}")
    if any(getattr(config, field.name) != getattr(shape.model.config, field.name) for field in dataclasses.fields(MCCConfig)):
        raise ValueError(f"config: it is not that of its member {shape.spec.id}")
    if any(getattr(config, name) != value for name, value in _depth_fields(depth.spec).items()):
        raise ValueError(f"config: the fields depth_… are not those of its member {depth.spec.id}")
    return PhotographMCC(config, shape.model, depth)
