"""A ViT as one ONNX graph for ONNX Runtime, written node by node: in a fraction of a second, for any batch and any merge schedule.

The schedule is an input, and a block that merges nothing skips the matching. With `int8` the matrices of the blocks are integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from models.bundle_schema import Preprocess
from models.layers.block import TransformerBlock
from models.systems.vit.model import Pool, Stem, ViT

OPSET = 20
IR_VERSION = 10
RUNTIME_DOMAIN = "com.microsoft"
MAX_WEIGHT_BYTES = 2**31 - 2**24
"""Maximum size of weights: a serialised graph is smaller than 2 GiB."""
INT8_MAX = 63
"""Maximum absolute value of int8 weights: CPUs without VNNI add pairs of products in 16 bits, which larger weights could overflow."""


def classifier_graph(model: nn.Module, preprocess: Preprocess, *, int8: bool = False) -> bytes:
    """Write the graph of a classifier. Raises ValueError for a model that has no such graph.

    Inputs: pixels uint8 (B, H, W, channels); merge int64 (depth,), number of tokens that merge in each block, at most those that can.
    Output: logits float32 (B, classes).
    """
    if (
        not isinstance(model, ViT)
        or model.config.reversible
        or model.config.pool is Pool.ATTENTION
        or model.config.stem is not Stem.PATCHES
    ):
        raise ValueError("only vision transformers of plain patches, with one residual stream and a pool of means or tokens, have a graph")
    if sum(parameter.nbytes for parameter in model.parameters()) > MAX_WEIGHT_BYTES:
        raise ValueError("a graph holds less than 2 GiB")
    graph = _Graph(int8)
    x = _embed(graph, model, preprocess)
    size = graph.add("Expand", graph.constant(np.float32(1)), _token_shape(graph, x, 1))  # (B, N, 1)
    merges = graph.add("Split", "merge", outputs=model.config.depth, axis=0, num_outputs=model.config.depth)
    for block, r in zip(model.blocks, merges, strict=True):
        assert isinstance(block, TransformerBlock)
        x, size = _block(graph, block, x, size, r, model)
    logits = _classify(graph, model, _pool(graph, model, x, size))
    height, width = model.config.image_shape
    inputs = [
        helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", height, width, model.config.channels]),
        helper.make_tensor_value_info("merge", TensorProto.INT64, [model.config.depth]),
    ]
    graph.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", model.config.classes])]
    main_graph = helper.make_graph(graph.nodes, "vit", inputs, outputs, graph.constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(RUNTIME_DOMAIN, 1)]
    content: bytes = helper.make_model(main_graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
    return content


class _Graph:
    """Nodes in order of execution. Values are named by numbers; those of a branch may use values of the outer graph."""

    def __init__(self, int8: bool = False, outer: _Graph | None = None) -> None:
        self.int8 = int8
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = outer.constants if outer else []
        self._numbers: count[int] = outer._numbers if outer else count()

    def branch(self) -> _Graph:
        return _Graph(self.int8, self)

    def new_name(self) -> str:
        return f"v{next(self._numbers)}"

    def add(self, op: str, *inputs: str, outputs: int = 0, domain: str = "", **attributes: Any) -> Any:
        """Add a node and return the name of its output; with `outputs` a list of that many names."""
        names = [self.new_name() for _ in range(outputs or 1)]
        self.nodes.append(helper.make_node(op, list(inputs), names, domain=domain, **attributes))
        return names if outputs else names[0]

    def constant(self, value: Any) -> str:
        name = self.new_name()
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value), name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def slice(self, x: str, axis: int, start: int | str, end: int | str = 2**62, step: int = 1) -> str:
        bounds = [bound if isinstance(bound, str) else self.integers(bound) for bound in (start, end)]
        sliced: str = self.add("Slice", x, *bounds, self.integers(axis), self.integers(step))
        return sliced

    def linear(self, x: str, layer: nn.Linear) -> str:
        """Apply a linear layer: (..., C_in) → (..., C_out)."""
        weight = _numpy(layer.weight).T
        bias = np.zeros(weight.shape[1], np.float32) if layer.bias is None else _numpy(layer.bias)
        if not self.int8:
            return str(self.add("Add", self.add("MatMul", x, self.constant(weight)), self.constant(bias)))
        scale = np.abs(weight).max(axis=0) / INT8_MAX  # a scale for each output channel
        scale[scale == 0] = 1
        quantised = np.rint(weight / scale).astype(np.int8)
        zero = np.zeros(len(scale), np.int8)
        inputs = (self.constant(value) for value in (quantised, scale.astype(np.float32), zero, bias))
        return str(self.add("DynamicQuantizeMatMul", x, *inputs, domain=RUNTIME_DOMAIN))

    def norm(self, x: str, layer: nn.Module) -> str:
        if isinstance(layer, nn.Identity):
            return x
        assert isinstance(layer, nn.LayerNorm)
        weight, bias = self.constant(_numpy(layer.weight)), self.constant(_numpy(layer.bias))
        return str(self.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=layer.eps))


def _embed(graph: _Graph, model: ViT, preprocess: Preprocess) -> str:
    """Embed pixels → (B, N, C). The normalisation is part of the projection's weights, which are never integers."""
    config, projection = model.config, model.patch_embed.proj
    (rows, columns), (height, width) = config.grid, config.patch_shape
    weight = _numpy(projection.weight).astype(np.float64).transpose(2, 3, 1, 0)  # (p, p, channels, C)
    mean, std = (np.array(values)[:, None] for values in (preprocess.mean, preprocess.std))
    bias = -(weight * (mean / std)).sum(axis=(0, 1, 2)) + (0 if projection.bias is None else _numpy(projection.bias))
    scaled = (weight / (255 * std)).reshape(-1, config.width).astype(np.float32)
    grid = graph.add("Reshape", "pixels", graph.integers(-1, rows, height, columns, width, config.channels))
    patches = graph.add("Transpose", grid, perm=[0, 1, 3, 2, 4, 5])  # (B, h, w, p, p, channels)
    flat = graph.add("Reshape", patches, graph.integers(-1, rows * columns, height * width * config.channels))
    x = graph.add("MatMul", graph.add("Cast", flat, to=TensorProto.FLOAT), graph.constant(scaled))
    special = config.special_tokens
    positions = _numpy(model.pos_embed)
    x = graph.add("Add", x, graph.constant((positions[:, special:] + bias).astype(np.float32)))
    if not special:
        return graph.norm(x, model.norm_pre)
    front = np.concatenate([_numpy(token) for token in (model.cls_token, model.dist_token) if token is not None], axis=1)
    if config.class_position:
        front = front + positions[:, :special]
    batch = graph.slice(graph.add("Shape", x), 0, 0, 1)
    shape = graph.add("Concat", batch, graph.integers(special, config.width), axis=0)
    return graph.norm(graph.add("Concat", graph.add("Expand", graph.constant(front), shape), x, axis=1), model.norm_pre)


def _block(graph: _Graph, block: TransformerBlock, x: str, size: str, r: str, model: ViT) -> tuple[str, str]:
    attended, keys = _attend(graph, block, graph.norm(x, block.norm1), size, model.config.proportional_attention)
    x = graph.add("Add", x, attended)
    merged, unmerged = graph.branch(), graph.branch()
    names = (graph.new_name(), graph.new_name())
    then_branch = _branch(merged, "merge", names, _merge(merged, x, size, keys, r, model.config.special_tokens))
    names = (graph.new_name(), graph.new_name())
    else_branch = _branch(unmerged, "keep", names, (x, size))
    has_merges = graph.add("Greater", graph.add("Squeeze", r, graph.integers(0)), graph.constant(np.int64(0)))
    x, size = graph.add("If", has_merges, outputs=2, then_branch=then_branch, else_branch=else_branch)
    hidden = graph.linear(graph.norm(x, block.norm2), block.mlp.fc1)
    hidden = _quick_gelu(graph, hidden) if block.mlp.quick else graph.add("Gelu", hidden, approximate=block.mlp.gelu)
    return graph.add("Add", x, graph.linear(hidden, block.mlp.fc2)), size


def _quick_gelu(graph: _Graph, x: str) -> str:
    scaled = graph.add("Mul", x, graph.constant(np.float32(1.702)))
    return str(graph.add("Mul", x, graph.add("Sigmoid", scaled)))


def _attend(graph: _Graph, block: TransformerBlock, x: str, size: str, proportional: bool) -> tuple[str, str]:
    """Attend among tokens → (B, N, C) and keys (B, H, N, D)."""
    attention = block.attn
    projected = graph.linear(x, attention.qkv)  # (B, N, 3 C)
    heads = graph.add("Reshape", projected, graph.integers(0, 0, 3, attention.heads, -1))
    heads = graph.add("Transpose", heads, perm=[2, 0, 3, 1, 4])  # (3, B, H, N, D)
    q, k, v = (graph.add("Gather", heads, graph.constant(np.int64(index)), axis=0) for index in range(3))
    inner = attention.qkv.out_features // 3
    q = graph.add("Mul", q, graph.constant(np.float32((inner // attention.heads) ** -0.5)))
    logits = graph.add("MatMul", q, graph.add("Transpose", k, perm=[0, 1, 3, 2]))  # (B, H, N, N)
    if proportional:
        sizes = graph.add("Unsqueeze", graph.add("Transpose", size, perm=[0, 2, 1]), graph.integers(1))  # (B, 1, 1, N)
        logits = graph.add("Add", logits, graph.add("Log", sizes))
    attended = graph.add("MatMul", graph.add("Softmax", logits, axis=-1), v)
    joined = graph.add("Reshape", graph.add("Transpose", attended, perm=[0, 2, 1, 3]), graph.integers(0, 0, inner))
    return graph.linear(joined, attention.proj), k


def _merge(graph: _Graph, x: str, size: str, keys: str, r: str, protected: int) -> tuple[str, str]:
    """Merge tokens as `kernels.reference.bipartite_match` and `merge`, in which sources are even tokens and destinations odd ones."""
    first = int(protected == 2)  # the distillation token is the first odd one, and not a destination
    metric = graph.add("ReduceSum", keys, graph.integers(1), keepdims=0)  # (B, N, D)
    metric = graph.add("Div", metric, graph.add("ReduceL2", metric, graph.integers(2), keepdims=1))
    odd_metric = graph.slice(metric, 1, 1 + 2 * first, step=2)
    scores = graph.add("MatMul", graph.slice(metric, 1, 0, step=2), graph.add("Transpose", odd_metric, perm=[0, 2, 1]))  # (B, A, O)
    best = graph.add("ReduceMax", scores, graph.integers(2), keepdims=0)  # (B, A)
    if protected:  # the class token is never a source
        rest = graph.slice(best, 1, 1)
        batch = graph.slice(graph.add("Shape", best), 0, 0, 1)
        shape = graph.add("Concat", batch, graph.integers(1), axis=0)
        best = graph.add("Concat", graph.add("Expand", graph.constant(np.float32(-np.inf)), shape), rest, axis=1)
    evens = graph.slice(graph.add("Shape", best), 0, 1, 2)
    _, order = graph.add("TopK", best, evens, outputs=2, axis=1, largest=1, sorted=1)  # equal ones by position
    sources, even = graph.slice(order, 1, 0, r), graph.slice(order, 1, r)  # (B, r), (B, A - r)
    if protected:
        even, _ = graph.add("TopK", even, graph.add("Sub", evens, r), outputs=2, axis=1, largest=0, sorted=1)
    destinations = graph.add("GatherElements", graph.add("ArgMax", scores, axis=2, keepdims=0), sources, axis=1)
    if first:
        destinations = graph.add("Add", destinations, graph.integers(1))
    parts = {}
    for name, value in (("x", x), ("size", size)):
        evens_of, odds_of = graph.slice(value, 1, 0, step=2), graph.slice(value, 1, 1, step=2)
        parts[name] = (_gather_tokens(graph, evens_of, even), _gather_tokens(graph, evens_of, sources), odds_of)
    (unmerged, moved, odd), (unmerged_size, moved_size, odd_size) = parts["x"], parts["size"]
    odds = graph.slice(graph.add("Shape", odd), 0, 1, 2)
    one_hot = graph.add("OneHot", destinations, odds, graph.constant(np.array([0, 1], np.float32)), axis=1)  # (B, O, r)
    added = graph.add("MatMul", one_hot, moved_size)  # (B, O, 1)
    total = graph.add("Add", odd_size, added)
    # rows that receive nothing keep their bits
    change = graph.add("Sub", graph.add("MatMul", one_hot, graph.add("Mul", moved, moved_size)), graph.add("Mul", odd, added))
    odd = graph.add("Add", odd, graph.add("Div", change, total))
    if first:
        return _concat_special_first(graph, unmerged, odd), _concat_special_first(graph, unmerged_size, total)
    return graph.add("Concat", unmerged, odd, axis=1), graph.add("Concat", unmerged_size, total, axis=1)


def _concat_special_first(graph: _Graph, even: str, odd: str) -> str:
    """Concatenate even and odd tokens, the first of each (class and distillation token) before all others."""
    parts = (graph.slice(even, 1, 0, 1), graph.slice(odd, 1, 0, 1), graph.slice(even, 1, 1), graph.slice(odd, 1, 1))
    return str(graph.add("Concat", *parts, axis=1))


def _pool(graph: _Graph, model: ViT, x: str, size: str) -> Sequence[str]:
    """Pool features (B, C); two for a distilled model, of both its tokens."""
    config = model.config
    if config.pool is Pool.TOKEN:
        front = graph.norm(graph.slice(x, 1, 0, config.special_tokens), model.norm)
        return [graph.add("Gather", front, graph.constant(np.int64(index)), axis=1) for index in range(config.special_tokens)]
    first = 0 if config.pool is Pool.NORM_MEAN_ALL else config.special_tokens
    x = graph.norm(x, model.norm)
    weighted = graph.add("Mul", graph.slice(x, 1, first), graph.slice(size, 1, first))
    total = graph.add("ReduceSum", weighted, graph.integers(1), keepdims=0)
    count_before = config.patches + config.special_tokens - first
    mean = graph.norm(graph.add("Div", total, graph.constant(np.float32(count_before))), model.fc_norm)
    if config.pool is Pool.TOKEN_MEAN:
        token = graph.add("Gather", x, graph.constant(np.int64(0)), axis=1)
        return [graph.add("Concat", token, mean, axis=1)]
    return [mean, mean]


def _classify(graph: _Graph, model: ViT, features: Sequence[str]) -> str:
    head_graph = graph.branch()
    head_graph.int8, head_graph.nodes = False, graph.nodes  # the heads stay in float32
    if isinstance(model.head, nn.Identity):
        raise ValueError("a model without a head has no graph")
    if model.projection is not None:
        projected = head_graph.linear(features[0], model.projection)
        norm = head_graph.add("ReduceL2", projected, head_graph.integers(1), keepdims=1)
        length = head_graph.add("Max", norm, head_graph.constant(np.float32(1e-12)))
        return head_graph.linear(head_graph.add("Div", projected, length), model.head)
    logits = head_graph.linear(features[0], model.head)
    if model.head_dist is None:
        return logits
    logit_sum = head_graph.add("Add", logits, head_graph.linear(features[1], model.head_dist))
    return str(head_graph.add("Div", logit_sum, head_graph.constant(np.float32(2))))


def _branch(graph: _Graph, name: str, names: tuple[str, str], values: tuple[str, str]) -> onnx.GraphProto:
    """Return one of the two graphs of an `If`, whose outputs are x and sizes."""
    graph.nodes += [helper.make_node("Identity", [value], [output]) for value, output in zip(values, names, strict=True)]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in names]
    return helper.make_graph(graph.nodes, name, [], outputs)


def _token_shape(graph: _Graph, x: str, width: int) -> str:
    """Return the shape (B, N, width) for x (B, N, C)."""
    return str(graph.add("Concat", graph.slice(graph.add("Shape", x), 0, 0, 2), graph.integers(width), axis=0))


def _gather_tokens(graph: _Graph, x: str, index: str) -> str:
    """Gather tokens: (B, N, C), (B, S) → (B, S, C)."""
    return str(graph.add("GatherND", x, graph.add("Unsqueeze", index, graph.integers(2)), batch_dims=1))


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().float().cpu().numpy()
