"""A foreign classifier or encoder, as an ONNX graph run by ONNX Runtime.

The graph takes one image, NCHW or NHWC, normalised in float32 or float16, or uint8 as it is. One of its outputs has a row of logits, of
probabilities or of a vector per image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import bundle
from models.bundle_schema import Preprocess
from models.layers.forward import classification_arrays, image_vectors, normalise_to_planes
from models.systems.onnx.session import first_run, open_session
from models.systems.onnx.signature import ImageInput, image_input, read_graph

MIN_PROBABILITY = 1e-30
"""Minimum probability: smaller ones are raised to it, so that their logarithm is finite."""


@dataclass(frozen=True)
class OnnxGraphConfig:
    """Config of a foreign graph, of what it does not declare itself. It declares layout, type and batch of its input."""

    image_size: int = 224
    classes: int = 1000
    """Number of classes; 0: an encoder."""
    width: int = 0
    """Length of an encoder's vectors."""
    output: str = ""
    """Name of the output to use; empty: the first."""
    probabilities: bool = False
    """Whether a classifier's output is after a softmax."""
    tokens: int = 0
    """Reported as tokens in and out; 0 for networks without tokens."""

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= 4096:
            raise ValueError(f"image_size {self.image_size} is outside 1..4096")
        if not 0 <= self.classes <= 1_000_000:
            raise ValueError(f"classes {self.classes} is outside 0..1000000")
        if not (self.width == 0 if self.classes else 1 <= self.width <= 1_000_000):
            raise ValueError(f"width {self.width} must be the length of the vectors of an encoder, and 0 with classes")

    @property
    def numbers(self) -> int:
        """Length of the output row of one image."""
        return self.classes or self.width


class OnnxGraph(nn.Module):
    """A foreign graph: images → rows of the output. The session holds its parameters. Any number of threads may call it at once."""

    def __init__(
        self, config: OnnxGraphConfig, session: onnxruntime.InferenceSession | None = None, image_input: ImageInput | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self._session = session
        self._input = image_input

    def forward(self, pixels: Tensor, preprocess: Preprocess, options: onnxruntime.RunOptions | None = None) -> Tensor:
        """Run the graph: uint8 (B, S, S, 3) → float32 (B, classes or width), logits or features."""
        assert self._session is not None and self._input is not None, "open it with `open_graph`"
        images = self._prepare(pixels, preprocess)
        output = self.config.output or self._session.get_outputs()[0].name
        rows = [self._session.run([output], {self._input.name: part.numpy()}, options)[0] for part in self._batches(images)]
        outputs = torch.from_numpy(np.concatenate(rows)).float().to(pixels.device)
        outputs = outputs.flatten(1)[: len(pixels)] if outputs.dim() > 1 else outputs
        return outputs.clamp_min(MIN_PROBABILITY).log() if self.config.probabilities else outputs

    def _prepare(self, pixels: Tensor, preprocess: Preprocess) -> Tensor:
        assert self._input is not None
        if self._input.type == "uint8":
            images = pixels.permute(0, 3, 1, 2)
        else:
            images = normalise_to_planes(pixels, preprocess).to(torch.float16 if self._input.type == "float16" else torch.float32)
        return (images if self._input.layout == "nchw" else images.permute(0, 2, 3, 1)).cpu().contiguous()

    def _batches(self, images: Tensor) -> Sequence[Tensor]:
        """Return all images at once, or in batches of the graph's size, the last one padded with black images."""
        assert self._input is not None
        if self._input.batch is None:
            return (images,)
        absent = -len(images) % self._input.batch
        return torch.split(F.pad(images, (0, 0, 0, 0, 0, 0, 0, absent)), self._input.batch)


def classify(model: nn.Module, arrays: Mapping[str, Tensor], options: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Tensor]:
    """Classify pixels: uint8 (B, S, S, 3) → logits and token counts. Tokens do not merge: the option `merge` has no effect."""
    assert isinstance(model, OnnxGraph)
    return classification_arrays(model(arrays["pixels"], preprocess), model.config.tokens, model.config.tokens)


def embed(model: nn.Module, arrays: Mapping[str, Tensor], options: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Tensor]:
    """Embed pixels: uint8 (B, S, S, 3) → vectors of unit length and token counts."""
    assert isinstance(model, OnnxGraph)
    return image_vectors(model(arrays["pixels"], preprocess), model.config.tokens, model.config.tokens)


def open_graph(path: Path, config: OnnxGraphConfig, device: torch.device) -> OnnxGraph:
    """Check a graph whose SHA-256 was verified, and open it on a device. Raises ValueError with the problem, and OSError."""
    try:
        content, model = read_graph(path, bundle.read(path.parent).spec.files)
    except bundle.BundleError as error:
        raise ValueError(str(error)) from error
    graph_input, side = image_input(model), config.image_size
    if graph_input.side not in (None, side):
        raise ValueError(f"it takes images of {graph_input.side} × {graph_input.side} pixels, not of {side} × {side}")
    outputs = [value.name for value in model.graph.output]
    if not outputs or (config.output and config.output not in outputs):
        raise ValueError(f"its outputs are {', '.join(outputs) or 'none'}; {config.output or 'one'} is needed")
    del model
    graph = OnnxGraph(config, open_session(content, device, torch.get_num_threads(), path.parent), graph_input)
    black = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    with first_run("a batch of two") as options:
        rows = graph(black, Preprocess(image_size=side, short_side=side, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)), options)
    if rows.shape != (2, config.numbers):
        raise ValueError(f"a batch of two gives {tuple(rows.shape)} where (2, {config.numbers}) is needed")
    return graph
