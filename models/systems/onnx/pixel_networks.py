"""Foreign networks with an answer per pixel, as ONNX graphs run by ONNX Runtime: inpainting (LaMa, MI-GAN or one with their inputs) and
depth (MiDaS, Depth Anything or one with their inputs).

An inpainting graph takes one square at a time: an image (1, 3, S, S) and a mask (1, 1, S, S), both float32 in 0..1 or both uint8 in 0..255,
in either order. Its output is the whole square, float32 or uint8 (1, 3, S, S). Missing pixels are black in the image.

A depth graph takes one input, float32 (1, 3, S, S), normalised. Its first output: float32 (1, S, S) or (1, 1, S, S) up to scale and shift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import ModelProto, TensorProto
from torch import Tensor, nn

from models.bundle import BundleSpec
from models.layers.stepwise import InProgress, InvalidInput, JobState, StepCompletion, Tensors
from models.systems.onnx.session import first_run, open_session
from models.systems.onnx.signature import describe_value, dimensions, graph_inputs, is_depth, is_inpainting, read_graph

TYPES = (TensorProto.FLOAT, TensorProto.UINT8)
CONSUMED_ARRAYS = frozenset({"pixels", "missing", "windows"})
"""Arrays of a job that are used here; all others are returned with the output."""


@dataclass(frozen=True)
class InpaintGraphConfig:
    image_size: int = 512
    mask: Literal["hole", "known"] = "hole"
    """Meaning of 1, or 255, in the mask."""
    answer: Literal["bytes", "unit"] = "bytes"
    """Range of the output: 0..255 or 0..1."""

    def __post_init__(self) -> None:
        if not 16 <= self.image_size <= 4096:
            raise ValueError(f"image_size {self.image_size} is outside 16..4096")


class InpaintGraph(nn.Module):
    """An inpainting network. The session holds its parameters. Any number of threads may call it at once."""

    def __init__(self, config: InpaintGraphConfig, session: onnxruntime.InferenceSession | None = None) -> None:
        super().__init__()
        self.config = config
        self._session = session

    def forward(self, pixels: Tensor, missing: Tensor, options: onnxruntime.RunOptions | None = None) -> Tensor:
        """Fill missing pixels: uint8 (S, S, 3) and bool (S, S) → uint8 (S, S, 3), known pixels unchanged."""
        assert self._session is not None, "open it with `open_inpainting`"
        image = pixels.masked_fill(missing.unsqueeze(-1), 0).permute(2, 0, 1)[None].cpu()
        mask = (missing if self.config.mask == "hole" else ~missing)[None, None].cpu()
        inputs = {}
        for graph_input in self._session.get_inputs():
            value = mask.to(torch.uint8) * 255 if graph_input.shape[1] == 1 else image
            inputs[graph_input.name] = (value if graph_input.type == "tensor(uint8)" else value.float() / 255).contiguous().numpy()
        output = torch.from_numpy(np.asarray(self._session.run(None, inputs, options)[0]))[0].permute(1, 2, 0)
        filled = (output.float() * (255 if self.config.answer == "unit" else 1)).round().clamp(0, 255).to(torch.uint8)
        return torch.where(missing.unsqueeze(-1), filled.to(pixels.device), pixels)


@dataclass(frozen=True)
class OnnxInpaintState:
    pixels: Tensor
    """uint8 (h, w, 3)."""
    missing: Tensor
    """bool (h, w)."""
    windows: tuple[tuple[int, int], ...]
    """Top and left of each window."""
    samples: int
    returned: Tensors
    done: int = 0

    @property
    def total(self) -> int:
        return max(1, len(self.windows))

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + self.missing.nbytes + sum(array.nbytes for array in self.returned.values())

    def outputs(self) -> dict[str, Tensor]:
        return {"filled": self.pixels.expand(self.samples, *self.pixels.shape), **self.returned}


class OnnxInpaintSteps:
    """Stepwise inpainting, one window per step. A job: `pixels` uint8 (h, w, 3), `missing` (h, w), nonzero for missing pixels, and
    `windows` int (W, 2), top and left of each. Its output: `filled` uint8 (n, h, w, 3), all samples identical, and all other arrays of the
    job."""

    unit = "windows"

    def __init__(self, model: InpaintGraph) -> None:
        self.model = model

    def start(self, arrays: Sequence[Tensors], options: Sequence[Mapping[str, Any]]) -> list[JobState]:
        """Start jobs. options: `samples`; samplers and seeds have no effect. Raises InvalidInput for jobs of exemplar-based methods."""
        return [_start_state(job, int(job_options.get("samples", 1))) for job, job_options in zip(arrays, options, strict=True)]

    def step(self, states: Sequence[JobState], previews: Sequence[bool]) -> list[InProgress | StepCompletion]:
        return [self._next(state) for state in states if isinstance(state, OnnxInpaintState)]

    def cost(self, state: JobState) -> float:
        return 1.0

    def _next(self, state: OnnxInpaintState) -> InProgress | StepCompletion:
        if state.done < len(state.windows):
            state = self._fill_window(state, *state.windows[state.done])
        return StepCompletion(state.outputs()) if state.done >= len(state.windows) else InProgress(state)

    def _fill_window(self, state: OnnxInpaintState, top: int, left: int) -> OnnxInpaintState:
        """Return the state with one more window filled; a window beyond the image is padded with the image's border."""
        side = self.model.config.image_size
        rows, columns = slice(top, top + side), slice(left, left + side)
        window, hole = state.pixels[rows, columns], state.missing[rows, columns]
        height, width = hole.shape
        padding = (0, side - width, 0, side - height)
        square = F.pad(window.permute(2, 0, 1)[None].float(), padding, mode="replicate")[0].permute(1, 2, 0).to(torch.uint8)
        filled = self.model(square, F.pad(hole, padding))[:height, :width]
        pixels, missing = state.pixels.clone(), state.missing.clone()
        pixels[rows, columns], missing[rows, columns] = filled, False
        return replace(state, pixels=pixels, missing=missing, done=state.done + 1)


def _start_state(job: Tensors, samples: int) -> OnnxInpaintState:
    if "detail" in job:
        raise InvalidInput("method: this model fills holes by its network alone; ask for `network`")
    windows = tuple((top, left) for top, left in job["windows"].tolist())
    returned = {name: array for name, array in job.items() if name not in CONSUMED_ARRAYS}
    return OnnxInpaintState(job["pixels"], job["missing"] != 0, windows, samples, returned)


def inpaint_steps(model: nn.Module, _spec: BundleSpec, device: torch.device) -> OnnxInpaintSteps:
    assert isinstance(model, InpaintGraph)
    return OnnxInpaintSteps(model)


def open_inpainting(path: Path, config: InpaintGraphConfig, device: torch.device) -> InpaintGraph:
    """Check a graph whose SHA-256 was verified, and open it on a device. Raises ValueError with the problem, and OSError."""
    content, model = read_graph(path)
    check_inpainting(model, config.image_size)
    graph = InpaintGraph(config, open_session(content, device, torch.get_num_threads()))
    side = config.image_size
    hole = torch.zeros(side, side, dtype=torch.bool)
    hole[side // 4 : side // 2, side // 4 : side // 2] = True
    with first_run(f"a black image of {side} × {side} pixels") as options:
        graph(torch.zeros(side, side, 3, dtype=torch.uint8), hole, options)
    return graph


def check_inpainting(model: ModelProto, side: int) -> None:
    """Check a graph's inputs and output. Raises ValueError if they are not those of the module's docstring."""
    inputs, outputs = graph_inputs(model), list(model.graph.output)[:1]
    kinds = {value.type.tensor_type.elem_type for value in inputs}
    is_valid = is_inpainting(model) and len(kinds) == 1 and kinds <= set(TYPES) and all(_is_square(value, side) for value in inputs)
    if not is_valid:
        declared = ", ".join(map(describe_value, inputs)) or "none"
        raise ValueError(f"its inputs are {declared}; float32 or uint8 (1, 3, {side}, {side}) and (1, 1, {side}, {side}) are needed")
    if not outputs or outputs[0].type.tensor_type.elem_type not in TYPES or not _is_square(outputs[0], side, channels=3):
        declared = ", ".join(map(describe_value, outputs)) or "none"
        raise ValueError(f"its outputs are {declared}; the first must be float32 or uint8 (1, 3, {side}, {side})")


def _is_square(value: Any, side: int, channels: int | None = None) -> bool:
    shape = dimensions(value)
    return len(shape) == 4 and shape[0] in (None, 1) and shape[1] in (None, channels or shape[1]) and set(shape[2:]) <= {None, side}


@dataclass(frozen=True)
class DepthGraphConfig:
    image_size: int = 256
    output: Literal["disparity", "depth"] = "disparity"
    """disparity: larger is nearer, as in MiDaS and Depth Anything; depth: larger is farther."""

    def __post_init__(self) -> None:
        if not 16 <= self.image_size <= 4096:
            raise ValueError(f"image_size {self.image_size} is outside 16..4096")


class DepthGraph(nn.Module):
    """A depth network: normalised images (B, 3, S, S) → the graph's output per pixel (B, S, S). The session holds its parameters. Any
    number of threads may call it at once."""

    def __init__(self, config: DepthGraphConfig, session: onnxruntime.InferenceSession | None = None) -> None:
        super().__init__()
        self.config = config
        self._session = session

    def forward(self, images: Tensor, options: onnxruntime.RunOptions | None = None) -> Tensor:
        assert self._session is not None, "open it with `open_depth`"
        name, side = self._session.get_inputs()[0].name, self.config.image_size
        rows = [self._session.run(None, {name: image[None].cpu().contiguous().numpy()}, options)[0] for image in images]
        return torch.from_numpy(np.concatenate(rows)).view(-1, side, side).to(images.device)


def open_depth(path: Path, config: DepthGraphConfig, device: torch.device) -> DepthGraph:
    """Check a graph whose SHA-256 was verified, and open it on a device. Raises ValueError with the problem, and OSError."""
    content, model = read_graph(path)
    check_depth(model, config.image_size)
    graph = DepthGraph(config, open_session(content, device, torch.get_num_threads()))
    with first_run(f"a grey image of {config.image_size} × {config.image_size} pixels") as options:
        depths = graph(torch.zeros(1, 3, config.image_size, config.image_size), options)
    if not depths.isfinite().all():
        raise ValueError("its output for a grey image has infinite values or NaN")
    return graph


def check_depth(model: ModelProto, side: int) -> None:
    """Check a graph's input and output. Raises ValueError if they are not those of the module's docstring."""
    values = [*graph_inputs(model), *list(model.graph.output)[:1]]
    floats = all(value.type.tensor_type.elem_type == TensorProto.FLOAT for value in values)
    if not (is_depth(model) and floats and all(set(dimensions(value)[-2:]) <= {None, side} for value in values)):
        declared = ", ".join(map(describe_value, values)) or "none"
        raise ValueError(f"its input and first output are {declared}; float32 (1, 3, {side}, {side}) and (1, {side}, {side}) are needed")
