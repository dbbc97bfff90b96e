"""A network that fills holes, as an ONNX graph run by ONNX Runtime: LaMa, MI-GAN, or one with their inputs.

The graph sees one square at a time: an image (1, 3, S, S) and a mask (1, 1, S, S), both float32 in 0..1 or both uint8 in 0..255, in either
order. It answers the whole square, float32 or uint8 (1, 3, S, S). What is missing is black in the image.
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
from models.layers.stepwise import Completed, InProgress, InvalidInput, JobState, Tensors
from models.systems.onnx.session import LONGEST, ended_after, first_line, open_session
from models.systems.onnx.signature import described, dimensions, inputs_of, is_inpainting, read_graph

TYPES = (TensorProto.FLOAT, TensorProto.UINT8)
WORKED_ON = frozenset({"pixels", "missing", "windows"})
"""Arrays of a job that are read here; all others are given back with the answer."""


@dataclass(frozen=True)
class InpaintGraphConfig:
    image_size: int = 512
    mask: Literal["hole", "known"] = "hole"
    """The meaning of 1, or 255, in the mask."""
    answer: Literal["bytes", "unit"] = "bytes"
    """Range of the answer: 0..255 or 0..1."""

    def __post_init__(self) -> None:
        if not 16 <= self.image_size <= 4096:
            raise ValueError(f"image_size {self.image_size} is outside 16..4096")


class InpaintGraph(nn.Module):
    """It has no parameters of its own: the session holds them. Any number of threads may call it at once."""

    def __init__(self, config: InpaintGraphConfig, session: onnxruntime.InferenceSession | None = None) -> None:
        super().__init__()
        self.config = config
        self._session = session

    def forward(self, pixels: Tensor, missing: Tensor, options: onnxruntime.RunOptions | None = None) -> Tensor:
        """uint8 (S, S, 3) and bool (S, S) → uint8 (S, S, 3), known pixels as they were."""
        assert self._session is not None, "open it with `open_inpainting`"
        image = pixels.masked_fill(missing.unsqueeze(-1), 0).permute(2, 0, 1)[None].cpu()
        mask = (missing if self.config.mask == "hole" else ~missing)[None, None].cpu()
        given = {}
        for found in self._session.get_inputs():
            value = mask.to(torch.uint8) * 255 if found.shape[1] == 1 else image
            given[found.name] = (value if found.type == "tensor(uint8)" else value.float() / 255).contiguous().numpy()
        answer = torch.from_numpy(np.asarray(self._session.run(None, given, options)[0]))[0].permute(1, 2, 0)
        made = (answer.float() * (255 if self.config.answer == "unit" else 1)).round().clamp(0, 255).to(torch.uint8)
        return torch.where(missing.unsqueeze(-1), made.to(pixels.device), pixels)


@dataclass(frozen=True)
class Painting:
    """How far one job has come."""

    pixels: Tensor
    """uint8 (h, w, 3)."""
    missing: Tensor
    """bool (h, w)."""
    windows: tuple[tuple[int, int], ...]
    """Top and left of each."""
    samples: int
    returned: Tensors
    done: int = 0

    @property
    def total(self) -> int:
        return max(1, len(self.windows))

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + self.missing.nbytes + sum(array.nbytes for array in self.returned.values())

    def answer(self) -> dict[str, Tensor]:
        return {"filled": self.pixels.expand(self.samples, *self.pixels.shape), **self.returned}


class PaintingSteps:
    """A job: `pixels` uint8 (h, w, 3), `missing` (h, w), nonzero where pixels are to be made, and `windows` int (W, 2), top and left of
    each. Its answer: `filled` uint8 (n, h, w, 3), all samples alike, and all other arrays that came with it. A step fills a window."""

    unit = "windows"

    def __init__(self, model: InpaintGraph) -> None:
        self.model = model

    def start(self, arrays: Sequence[Tensors], options: Sequence[Mapping[str, Any]]) -> list[JobState]:
        """options: `samples`; samplers and seeds have no influence. Raises UnusableInput for jobs that want patches copied."""
        return [_painting(job, int(asked.get("samples", 1))) for job, asked in zip(arrays, options, strict=True)]

    def step(self, states: Sequence[JobState], previews: Sequence[bool]) -> list[InProgress | Completed]:
        return [self._next(state) for state in states if isinstance(state, Painting)]

    def cost(self, state: JobState) -> float:
        return 1.0

    def _next(self, painting: Painting) -> InProgress | Completed:
        if painting.done < len(painting.windows):
            painting = self._filled(painting, *painting.windows[painting.done])
        return Completed(painting.answer()) if painting.done >= len(painting.windows) else InProgress(painting)

    def _filled(self, painting: Painting, top: int, left: int) -> Painting:
        """With one more window filled, which may reach beyond the image: its border is repeated there."""
        side = self.model.config.image_size
        rows, columns = slice(top, top + side), slice(left, left + side)
        seen, hole = painting.pixels[rows, columns], painting.missing[rows, columns]
        height, width = hole.shape
        beyond = (0, side - width, 0, side - height)
        square = F.pad(seen.permute(2, 0, 1)[None].float(), beyond, mode="replicate")[0].permute(1, 2, 0).to(torch.uint8)
        made = self.model(square, F.pad(hole, beyond))[:height, :width]
        pixels, missing = painting.pixels.clone(), painting.missing.clone()
        pixels[rows, columns], missing[rows, columns] = made, False
        return replace(painting, pixels=pixels, missing=missing, done=painting.done + 1)


def _painting(job: Tensors, samples: int) -> Painting:
    if "detail" in job:
        raise InvalidInput("method: this model fills holes by its network alone; ask for `network`")
    windows = tuple((top, left) for top, left in job["windows"].tolist())
    returned = {name: array for name, array in job.items() if name not in WORKED_ON}
    return Painting(job["pixels"], job["missing"] != 0, windows, samples, returned)


def painting_steps(model: nn.Module, _spec: BundleSpec, device: torch.device) -> PaintingSteps:
    assert isinstance(model, InpaintGraph)
    return PaintingSteps(model)


def open_inpainting(path: Path, config: InpaintGraphConfig, device: torch.device) -> InpaintGraph:
    """Check a graph whose SHA-256 was verified, and open it on a device. Raises ValueError with what is wrong and OSError."""
    content, model = read_graph(path)
    check_inpainting(model, config.image_size)
    graph = InpaintGraph(config, open_session(content, device, torch.get_num_threads()))
    side = config.image_size
    hole = torch.zeros(side, side, dtype=torch.bool)
    hole[side // 4 : side // 2, side // 4 : side // 2] = True
    try:
        with ended_after(LONGEST) as options:
            graph(torch.zeros(side, side, 3, dtype=torch.uint8), hole, options)
    except Exception as error:  # ONNX Runtime's own exceptions derive from Exception alone
        raise ValueError(f"it fails on a black image of {side} × {side} pixels: {first_line(error)}") from error
    return graph


def check_inpainting(model: ModelProto, side: int) -> None:
    """Raises ValueError for a graph that does not take and give what is said above."""
    inputs, outputs = inputs_of(model), list(model.graph.output)[:1]
    kinds = {value.type.tensor_type.elem_type for value in inputs}
    right = is_inpainting(model) and len(kinds) == 1 and kinds <= set(TYPES) and all(_is_square(value, side) for value in inputs)
    if not right:
        found = ", ".join(map(described, inputs)) or "none"
        raise ValueError(f"its inputs are {found}; float32 or uint8 (1, 3, {side}, {side}) and (1, 1, {side}, {side}) are needed")
    if not outputs or outputs[0].type.tensor_type.elem_type not in TYPES or not _is_square(outputs[0], side, channels=3):
        found = ", ".join(map(described, outputs)) or "none"
        raise ValueError(f"its outputs are {found}; the first must be float32 or uint8 (1, 3, {side}, {side})")


def _is_square(value: Any, side: int, channels: int | None = None) -> bool:
    shape = dimensions(value)
    return len(shape) == 4 and shape[0] in (None, 1) and shape[1] in (None, channels or shape[1]) and set(shape[2:]) <= {None, side}
