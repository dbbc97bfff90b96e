"""A classifier that somebody else trained, as an ONNX graph run by ONNX Runtime.

A graph is data: it names operators of the ONNX standard and holds its own weights. Whatever would read other files or need code from
elsewhere is refused before ONNX Runtime sees it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto
from torch import Tensor, nn

from models.layers.forward import normalise, with_tokens
from models.onnx.session import ended_after, first_line, open_session
from models.spec import Preprocess

MAX_BYTES = 512 * 2**20
MAX_NODES = 20_000
MAX_CONSTANT = 2**28
"""Elements that one tensor in the file may declare."""
LONGEST = 30.0
"""Seconds that a graph may take for the first batch, which is one of two: the other bundles wait to be loaded meanwhile."""
STANDARD = frozenset({"", "ai.onnx"})
"""Names of the domain of ONNX's own operators."""
TYPES = {number: name.lower() for name, number in TensorProto.DataType.items()} | {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
}
"""Types of tensors, as NumPy calls them."""


@dataclass(frozen=True)
class OnnxGraphConfig:
    """The graph takes one input, float32 (batch, 3, image_size, image_size), normalised; its first output is float32 (batch, classes)."""

    image_size: int = 224
    classes: int = 1000
    tokens: int = 0
    """Reported as tokens in and out; 0 for networks without tokens."""

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= 4096:
            raise ValueError(f"image_size {self.image_size} is outside 1..4096")
        if not 1 <= self.classes <= 1_000_000:
            raise ValueError(f"classes {self.classes} is outside 1..1000000")


class OnnxGraph(nn.Module):
    """Normalised images (B, 3, S, S) → logits (B, classes). It has no parameters of its own: the session holds them."""

    def __init__(self, config: OnnxGraphConfig, session: onnxruntime.InferenceSession | None = None) -> None:
        super().__init__()
        self.config = config
        self._session = session

    def forward(self, images: Tensor, options: onnxruntime.RunOptions | None = None) -> Tensor:
        assert self._session is not None, "open it with `open_graph`"
        given = self._session.get_inputs()[0].name
        logits = self._session.run(None, {given: images.cpu().contiguous().numpy()}, options)[0]
        return torch.from_numpy(logits).to(images.device)


def classify(model: nn.Module, arrays: Mapping[str, Tensor], options: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Tensor]:
    """pixels uint8 (B, S, S, 3) → logits and numbers of tokens. Tokens do not merge: the option `merge` has no influence."""
    assert isinstance(model, OnnxGraph)
    logits = model(normalise(arrays["pixels"], preprocess, torch.float32))
    return with_tokens(logits, model.config.tokens, model.config.tokens)


def open_graph(path: Path, config: OnnxGraphConfig, device: torch.device) -> OnnxGraph:
    """Check a graph whose SHA-256 was verified, and open it on a device. Raises ValueError with what is wrong and OSError."""
    content, model = read_graph(path)
    _check_signature(model, config)
    graph = OnnxGraph(config, open_session(content, device, torch.get_num_threads()))
    try:
        with ended_after(LONGEST) as options:
            logits = graph(torch.zeros(2, 3, config.image_size, config.image_size), options)
    except Exception as error:  # ONNX Runtime's own exceptions derive from Exception alone
        raise ValueError(f"it fails on a batch of two: {first_line(error)}") from error
    if logits.dtype is not torch.float32 or logits.shape != (2, config.classes):
        raise ValueError(f"a batch of two gives {logits.dtype} {tuple(logits.shape)} where float32 (2, {config.classes}) is needed")
    return graph


def read_graph(path: Path) -> tuple[bytes, ModelProto]:
    """A file's content and its graph, which reaches nothing outside of itself. Raises ValueError and OSError."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes are above the limit of {MAX_BYTES}")
    content = path.read_bytes()
    return content, check(content)


def check(content: bytes) -> ModelProto:
    """Raises ValueError for a graph that is damaged or reaches outside of itself."""
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ValueError("no ONNX file") from error
    if model.functions or model.training_info:
        raise ValueError("it defines functions or training of its own; only the inference graph may be there")
    foreign = {entry.domain for entry in model.opset_import} - STANDARD
    if foreign:
        raise ValueError(f"it imports operators of {', '.join(sorted(foreign))}; only those of the ONNX standard are run")
    for count, node in enumerate(_nodes(model.graph), start=1):
        if count > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES} nodes")
        if node.domain not in STANDARD:
            raise ValueError(f"node {node.name or node.op_type}: operator {node.op_type} of {node.domain} is not of the ONNX standard")
    for tensor in _tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise ValueError(
                f"tensor {tensor.name}: its data is in another file; only graphs that hold their weights are opened"
                " (`torch.onnx.export` writes one with external_data=False)"
            )
        if int(np.prod(tensor.dims, dtype=object)) > MAX_CONSTANT:
            raise ValueError(f"tensor {tensor.name}: {list(tensor.dims)} has more than {MAX_CONSTANT} elements")
    return model


def _check_signature(model: ModelProto, config: OnnxGraphConfig) -> None:
    """Raises ValueError for a graph that does not take and give what the config says."""
    inputs = inputs_of(model)
    wanted = [None, 3, config.image_size, config.image_size]
    if len(inputs) != 1 or not _is_float(inputs[0]) or not fits(inputs[0], wanted):
        found = ", ".join(map(described, inputs)) or "none"
        raise ValueError(f"its inputs are {found}; one of float32 (batch, 3, {config.image_size}, {config.image_size}) is needed")
    if not model.graph.output:
        raise ValueError("it has no output")
    first = model.graph.output[0]
    if not _is_float(first) or not fits(first, [None, config.classes]):
        raise ValueError(f"its first output is {described(first)}; float32 (batch, {config.classes}) is needed")


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Nodes of the graph and of the graphs inside of them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _nodes(inner)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Weights and constants of the graph and of the graphs inside of it."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from ([attribute.t] if attribute.HasField("t") else []) + list(attribute.tensors)
            for sparse in ([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []) + list(attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _tensors(inner)


def _is_float(value: ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.FLOAT)


def fits(value: ValueInfoProto, wanted: list[int | None]) -> bool:
    """Whether a declared shape may be the wanted one: None stands for a dimension that must be open."""
    shape = value.type.tensor_type.shape.dim
    return len(shape) == len(wanted) and all(
        not dim.HasField("dim_value") if size is None else not dim.HasField("dim_value") or dim.dim_value == size
        for dim, size in zip(shape, wanted, strict=True)
    )


def inputs_of(model: ModelProto) -> list[ValueInfoProto]:
    """Without those that have weights as their default."""
    held = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in held]


def dimensions(value: ValueInfoProto) -> list[int | None]:
    """A declared shape; None for a dimension that is open."""
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]


def _shape_of(value: ValueInfoProto) -> str:
    dims = value.type.tensor_type.shape.dim
    return f"({', '.join(str(dim.dim_value) if dim.HasField('dim_value') else dim.dim_param or '?' for dim in dims)})"


def described(value: ValueInfoProto) -> str:
    """Type, name and shape, for messages."""
    return f"{TYPES.get(value.type.tensor_type.elem_type, 'unknown')} {value.name} {_shape_of(value)}"
