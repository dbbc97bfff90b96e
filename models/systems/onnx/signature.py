"""Checks of ONNX files before they run, and the inputs and outputs that a graph declares. Imports no torch.

A graph is data: it names operators and has weights, in its file or in files of its folder. Graphs that would read other files or need code
from elsewhere are refused before ONNX Runtime opens them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

MAX_BYTES = 2**31 - 1
"""Maximum size of a file, that of protocol buffers. Larger weights are in files of the same folder."""
MAX_NODES = 20_000
MAX_CONSTANT = 2**30
"""Maximum number of elements that one tensor in the file may declare."""
MAX_BATCH = 64
"""Maximum number of images of a fixed batch."""
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Domains of operators that every build of ONNX Runtime has: ONNX's own, those of classical learning, and ONNX Runtime's, which its
optimiser and quantisers write."""
REFUSED_OPERATORS = frozenset({"EPContext"})
"""Operators of these domains that read files or run compiled code."""
TYPES = {number: name.lower() for name, number in TensorProto.DataType.items()} | {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
}
IMAGE_TYPES = ("float32", "float16", "uint8")
PACK_HINT = "`onnx.save_model(onnx.load(FILE), PACKED, save_as_external_data=True, location='weights.data')` packs a graph"
SIZE_HINT = "it takes images of several sizes: set one, as in --set image_size=224"
Layout = Literal["nchw", "nhwc"]


@dataclass(frozen=True)
class ImageInput:
    """The only input of an image network."""

    name: str
    type: str
    """One of IMAGE_TYPES. uint8: pixels as they are; otherwise normalised."""
    layout: Layout
    side: int | None
    """Height and width; None: the graph takes several sizes."""
    batch: int | None
    """Number of images per call; None: any number."""

    def shape(self, batch: int, side: int) -> tuple[int, ...]:
        return (batch, 3, side, side) if self.layout == "nchw" else (batch, side, side, 3)


def read_graph(path: Path, files: Collection[str] = ()) -> tuple[bytes, ModelProto]:
    """Read a file's content and its graph. files: names in its folder that may have its weights. Raises ValueError and OSError."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes are above the limit of {MAX_BYTES} of ONNX files; {PACK_HINT}")
    content = path.read_bytes()
    return content, check_graph(content, files)


def check_graph(content: bytes, files: Collection[str] = ()) -> ModelProto:
    """Parse and check a graph. Raises ValueError if it is damaged or depends on anything but `files`."""
    model = parse_graph(content)
    for name in external_files(model):
        if name not in files:
            raise ValueError(f"its weights are in {name!r}, which is not a file of the bundle")
    return model


def parse_graph(content: bytes) -> ModelProto:
    """Parse a graph and check its operators, but not its `external_files`. Raises ValueError."""
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ValueError("not an ONNX file, or a damaged one") from error
    if not model.graph.node:
        raise ValueError("not an ONNX file, or one without a node")
    if model.functions or model.training_info:
        raise ValueError(
            "it defines functions or training of its own; only the inference graph may be there (`onnx.inliner.inline_local_functions`"
            " resolves functions)"
        )
    for count, node in enumerate(_nodes(model.graph), start=1):
        if count > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES} nodes")
        if node.domain not in DOMAINS or node.op_type in REFUSED_OPERATORS:
            raise ValueError(
                f"node {node.name or node.op_type}: operator {node.op_type} of {node.domain or 'ai.onnx'} is not run here; accepted are "
                f"those of {', '.join(sorted(DOMAINS - {''}))} that ONNX Runtime carries"
            )
    for tensor in _tensors(model.graph):
        if int(np.prod(tensor.dims, dtype=object)) > MAX_CONSTANT:
            raise ValueError(f"tensor {tensor.name}: {list(tensor.dims)} has more than {MAX_CONSTANT} elements")
    return model


def external_files(model: ModelProto) -> list[str]:
    """Return the names of the files with weights. Raises ValueError for a path that is not a plain name in the graph's folder."""
    names = []
    for tensor in _tensors(model.graph):
        if tensor.data_location != TensorProto.EXTERNAL and not tensor.external_data:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        if location != Path(location).name or not location or "\\" in location:
            raise ValueError(
                f"tensor {tensor.name}: its data is in {location!r}, which is not a file in the folder of the graph; {PACK_HINT}"
            )
        names.append(location)
    return list(dict.fromkeys(names))


def image_input(model: ModelProto) -> ImageInput:
    """Return a graph's image input. Raises ValueError if it takes anything but one image of three channels."""
    inputs = graph_inputs(model)
    if len(inputs) != 1:
        declared = ", ".join(map(describe_value, inputs)) or "none"
        raise ValueError(f"its inputs are {declared}; one image is needed, (batch, 3, S, S) or (batch, S, S, 3)")
    value, shape = inputs[0], dimensions(inputs[0])
    kind = TYPES.get(value.type.tensor_type.elem_type, "unknown")
    if len(shape) != 4 or kind not in IMAGE_TYPES:
        raise ValueError(
            f"its input is {describe_value(value)}; an image is needed, (batch, 3, S, S) or (batch, S, S, 3) of "
            f"{', '.join(IMAGE_TYPES[:-1])} or uint8"
        )
    layout: Layout = "nhwc" if shape[1] != 3 and shape[3] == 3 else "nchw"
    channels, sides = (shape[1], shape[2:]) if layout == "nchw" else (shape[3], shape[1:3])
    if channels not in (None, 3):
        raise ValueError(f"its input is {describe_value(value)}; images have three channels, red, green and blue")
    declared_sides = {side for side in sides if side is not None}
    if len(declared_sides) > 1:
        raise ValueError(f"its input is {describe_value(value)}; only squares are taken")
    if shape[0] is not None and shape[0] > MAX_BATCH:
        raise ValueError(f"its input is {describe_value(value)}; a fixed batch holds at most {MAX_BATCH} images")
    return ImageInput(value.name, kind, layout, declared_sides.pop() if declared_sides else None, shape[0])


def is_inpainting(model: ModelProto) -> bool:
    """Return True if a graph takes an image and a mask."""
    return sorted(dimensions(value)[1:2] for value in graph_inputs(model)) == [[1], [3]]


def is_depth(model: ModelProto) -> bool:
    """Return True if a graph's output is one channel, or none, of the same sides as its image."""
    inputs, outputs = ([dimensions(value) for value in values] for values in (graph_inputs(model), model.graph.output))
    of_image = len(inputs) == 1 and len(inputs[0]) == 4 and inputs[0][1] == 3
    is_plane = bool(outputs) and (len(outputs[0]) == 3 or (len(outputs[0]) == 4 and outputs[0][1] == 1))
    return of_image and is_plane and len({*inputs[0][2:], *outputs[0][-2:]} - {None}) <= 1


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield the nodes of the graph and of its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _nodes(inner)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Yield weights and constants of the graph and of its subgraphs."""
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


def fits_shape(value: ValueInfoProto, expected: list[int | None]) -> bool:
    """Return True if a declared shape fits the expected one, in which None stands for a dimension that must be open."""
    shape = value.type.tensor_type.shape.dim
    return len(shape) == len(expected) and all(
        not dim.HasField("dim_value") if size is None else not dim.HasField("dim_value") or dim.dim_value == size
        for dim, size in zip(shape, expected, strict=True)
    )


def graph_inputs(model: ModelProto) -> list[ValueInfoProto]:
    """Return the inputs without weights as their default."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def dimensions(value: ValueInfoProto) -> list[int | None]:
    """Return a declared shape; None for a dimension that is open."""
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]


def _format_shape(value: ValueInfoProto) -> str:
    dims = value.type.tensor_type.shape.dim
    return f"({', '.join(str(dim.dim_value) if dim.HasField('dim_value') else dim.dim_param or '?' for dim in dims)})"


def describe_value(value: ValueInfoProto) -> str:
    """Return type, name and shape, for messages."""
    return f"{TYPES.get(value.type.tensor_type.elem_type, 'unknown')} {value.name} {_format_shape(value)}"
