"""ONNX files of image classifiers and encoders as users have them, some of them hostile."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, OUTPUTS = 16, 4
FLOAT, FLOAT16, UINT8, INT64, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT64, TensorProto.BOOL
VALUES = SIDE * SIDE * 3
WEIGHT = (np.random.default_rng(0).normal(size=(VALUES, OUTPUTS)) / 8).astype(np.float32)


@dataclass(frozen=True)
class ImageGraph:
    """Each pixel times a weight of its own, so that an image that is turned, cropped elsewhere or of other colours answers otherwise."""

    kind: int = FLOAT
    channels_last: bool = False
    batch: int | str = "batch"
    baked: int | None = None
    """Batch size of a constant in the graph, as tracing leaves them, whatever `batch` says."""
    side: int | str = SIDE
    channels: int = 3
    outputs: int = OUTPUTS
    opset: int = 18
    ir: int = 10
    after: Sequence[onnx.NodeProto] = ()
    """Nodes from `plain` to `scores`. Without: `plain` is `scores`."""
    weights: Sequence[onnx.TensorProto] = ()
    """Further ones."""
    more_inputs: Sequence[onnx.ValueInfoProto] = ()
    more_outputs: Sequence[onnx.ValueInfoProto] = ()
    shape: Sequence[int | str] | None = None
    """Shape of the scores."""
    domains: Sequence[str] = ()
    """Domains that the graph imports in addition to the standard one."""
    weights_are_inputs: bool = False
    """Files before IR version 4 list them so."""

    def model(self) -> onnx.ModelProto:
        sides = [self.side if isinstance(self.side, int) else name for name in ("height", "width")]
        shape = [self.batch, *sides, self.channels] if self.channels_last else [self.batch, self.channels, *sides]
        reserved = [numpy_helper.from_array(WEIGHT[:, : self.outputs], "weight"), *self.weights]
        reserved.append(numpy_helper.from_array(np.array([self.baked or 0, VALUES if self.baked else -1]), "flat"))
        listed = [value(tensor.name, tensor.data_type, tensor.dims) for tensor in reserved] if self.weights_are_inputs else []
        graph = helper.make_graph(
            [*self._to_plain(), *(self.after or [helper.make_node("Identity", ["plain"], ["scores"])])],
            "classifier",
            [value("image", self.kind, shape), *self.more_inputs, *listed],
            [value("scores", FLOAT, self.shape or [self.batch, self.outputs]), *self.more_outputs],
            reserved,
        )
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in self.domains)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=self.ir)

    def _to_plain(self) -> list[onnx.NodeProto]:
        nodes, name = [], "image"
        if self.kind != FLOAT:
            nodes.append(helper.make_node("Cast", [name], ["floats"], to=FLOAT))
            name = "floats"
        if self.channels_last:
            nodes.append(helper.make_node("Transpose", [name], ["first"], perm=[0, 3, 1, 2]))
            name = "first"
        if self.channels == 1:
            nodes.append(helper.make_node("Concat", [name] * 3, ["three"], axis=1))
            name = "three"
        if self.side != SIDE:
            nodes.append(helper.make_node("AveragePool", [name], ["small"], kernel_shape=[2, 2], strides=[2, 2]))
            name = "small"
        nodes.append(helper.make_node("Reshape", [name, "flat"], ["values"]))
        return [*nodes, helper.make_node("MatMul", ["values", "weight"], ["plain"])]

    def write(self, file: Path) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(self.model().SerializeToString())
        return file


def constant(name: str, value: Any, kind: Any = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, kind), name)


def value(name: str, kind: int, shape: Sequence[int | str] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


# fates of a whole graph


def externally(file: Path, location: str, *, offset: int = 0, length: int | None = None) -> Path:
    """Write the classifier with its weight in another file."""
    model = ImageGraph().model()
    [weight] = [tensor for tensor in model.graph.initializer if tensor.name == "weight"]
    content = weight.raw_data
    keys = {"location": location, "offset": str(offset), "length": str(len(content) if length is None else length)}
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, text in keys.items():
        weight.external_data.add(key=key, value=text)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(model.SerializeToString())
    return file


def weight_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(WEIGHT.tobytes())
    return path


def absolute_path(folder: Path) -> Path:
    return externally(folder / "model.onnx", str(weight_file(folder.parent / "secret.bin")))


def above_the_folder(folder: Path) -> Path:
    weight_file(folder.parent / "secret.bin")
    return externally(folder / "model.onnx", "../secret.bin")


def through_a_link(folder: Path) -> Path:
    file = externally(folder / "model.onnx", "weights.bin")
    (folder / "weights.bin").symlink_to(weight_file(folder.parent / "secret.bin"))
    return file


def through_a_linked_folder(folder: Path) -> Path:
    weight_file(folder.parent / "elsewhere" / "weights.bin")
    file = externally(folder / "model.onnx", "inside/weights.bin")
    (folder / "inside").symlink_to(folder.parent / "elsewhere")
    return file


def from_a_pipe(folder: Path) -> Path:
    file = externally(folder / "model.onnx", "weights.bin")
    os.mkfifo(folder / "weights.bin")
    return file


def beyond_the_end(folder: Path) -> Path:
    weight_file(folder / "weights.bin")
    return externally(folder / "model.onnx", "weights.bin", offset=4096)


def without_its_data(folder: Path) -> Path:
    return externally(folder / "model.onnx", "weights.bin")


def external_in_branch(folder: Path) -> Path:
    """Write a constant whose data is in another file, to a branch that never runs."""
    weight_file(folder.parent / "secret.bin")
    tensor = TensorProto(name="hidden", data_type=FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret.bin")
    inner = helper.make_graph([helper.make_node("Constant", [], ["hidden"], value=tensor)], "branch", [], [value("hidden", FLOAT, None)])
    branch = helper.make_node("If", ["never"], ["unused"], then_branch=inner, else_branch=inner)
    plain = helper.make_node("Identity", ["plain"], ["scores"])
    return ImageGraph(after=[plain, branch], weights=[constant("never", False, np.bool_)]).write(folder / "model.onnx")


def three_gigabytes(folder: Path) -> Path:
    """Write a weight of 3 GB of zeros, which take no space on the disk."""
    rows, columns = VALUES, 1_000_000
    model = ImageGraph(after=[helper.make_node("MatMul", ["values", "large"], ["wide"]), *_sum_of("wide")]).model()
    large = TensorProto(name="large", data_type=FLOAT, dims=[rows, columns], data_location=TensorProto.EXTERNAL)
    large.external_data.add(key="location", value="weights.bin")
    model.graph.initializer.append(large)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "weights.bin").open("wb") as file:
        file.truncate(4 * rows * columns)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def _sum_of(name: str) -> list[onnx.NodeProto]:
    """Add the mean over everything to the scores."""
    return [
        helper.make_node("ReduceMean", [name], ["one"], keepdims=0),
        helper.make_node("Add", ["plain", "one"], ["scores"]),
    ]


def custom_operator(folder: Path) -> Path:
    node = helper.make_node("Gelu", ["plain"], ["scores"], domain="own.ops")
    return ImageGraph(after=[node], domains=["own.ops"]).write(folder / "model.onnx")


def other_program(folder: Path) -> Path:
    """Write a node of ONNX Runtime's own domain that loads compiled code from a file."""
    node = helper.make_node("EPContext", ["plain"], ["scores"], domain="com.microsoft", ep_cache_context="../secret.bin", embed_mode=0)
    return ImageGraph(after=[node], domains=["com.microsoft"]).write(folder / "model.onnx")


def unknown_operator(folder: Path) -> Path:
    return ImageGraph(after=[helper.make_node("Clairvoyance", ["plain"], ["scores"])]).write(folder / "model.onnx")


def own_functions(folder: Path) -> Path:
    model = ImageGraph(after=[helper.make_node("f", ["plain"], ["scores"], domain="own")], domains=["own"]).model()
    body = [helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(helper.make_function("own", "f", ["a"], ["b"], body, [helper.make_opsetid("", 18)]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def _loop(turns: int, body: list[onnx.NodeProto], extra: Sequence[onnx.ValueInfoProto] = ()) -> ImageGraph:
    inside = helper.make_graph(
        [*body, helper.make_node("Identity", ["on"], ["still"])],
        "body",
        [value("turn", INT64, []), value("on", BOOL, []), value("sum", FLOAT, None)],
        [value("still", BOOL, []), value("added", FLOAT, None), *extra],
    )
    outputs = ["scores", *(["scanned"] if extra else [])]
    return ImageGraph(after=[helper.make_node("Loop", ["turns", "", "plain"], outputs, body=inside)], weights=[constant("turns", turns)])


def long_loop(folder: Path) -> Path:
    """Write a loop that adds the scores to themselves, less themselves, 10^9 times."""
    body = [helper.make_node("Identity", ["sum"], ["added"])]
    return _loop(10**9, body).write(folder / "model.onnx")


def growing_loop(folder: Path) -> Path:
    """Write a loop that keeps another megabyte in each of a million turns."""
    body = [
        helper.make_node("Identity", ["sum"], ["added"]),
        helper.make_node("ConstantOfShape", ["megabyte"], ["kept"]),
    ]
    graph = _loop(10**6, body, [value("kept", FLOAT, [250_000])])
    return ImageGraph(after=graph.after, weights=[*graph.weights, constant("megabyte", [250_000])]).write(folder / "model.onnx")


def hundred_gigabytes(folder: Path) -> Path:
    """Write a tensor of 25 billion numbers."""
    after = [helper.make_node("ConstantOfShape", ["size"], ["huge"]), *_sum_of("huge")]
    return ImageGraph(after=after, weights=[constant("size", [25_000, 1_000_000])]).write(folder / "model.onnx")


def hundred_gigabytes_at_run_time(folder: Path) -> Path:
    """Write a tensor of 25 billion numbers whose size is known only at run time."""
    after = [
        helper.make_node("Shape", ["plain"], ["two"]),
        helper.make_node("Gather", ["two", "zero"], ["rows"]),
        helper.make_node("Min", ["rows", "one_row"], ["one"]),
        helper.make_node("Mul", ["size", "one"], ["wanted"]),
        helper.make_node("ConstantOfShape", ["wanted"], ["huge"]),
        helper.make_node("ReduceMean", ["huge"], ["mean"], keepdims=0),
        helper.make_node("Add", ["plain", "mean"], ["scores"]),
    ]
    weights = [constant("size", [25_000, 1_000_000]), constant("zero", [0]), constant("one_row", [1])]
    return ImageGraph(after=after, weights=weights).write(folder / "model.onnx")


def nan_scores(folder: Path) -> Path:
    """0 ÷ 0."""
    nothing = [helper.make_node("Sub", ["plain", "plain"], ["zero"]), helper.make_node("Div", ["zero", "zero"], ["scores"])]
    return ImageGraph(after=nothing).write(folder / "model.onnx")


def nan_scores_for_some_images(folder: Path) -> Path:
    """Square roots of what is often negative."""
    return ImageGraph(after=[helper.make_node("Sqrt", ["plain"], ["scores"])]).write(folder / "model.onnx")


def zero_scores(folder: Path) -> Path:
    """Vectors without a direction."""
    return ImageGraph(after=[helper.make_node("Sub", ["plain", "plain"], ["scores"])]).write(folder / "model.onnx")


def two_inputs(folder: Path) -> Path:
    after = [helper.make_node("Add", ["plain", "prior"], ["scores"])]
    return ImageGraph(after=after, more_inputs=[value("prior", FLOAT, ["batch", OUTPUTS])]).write(folder / "model.onnx")


def map_output(folder: Path) -> Path:
    """Answers (batch, 1, 2, 2): no logits."""
    after = [helper.make_node("Reshape", ["plain", "map"], ["scores"])]
    return ImageGraph(after=after, weights=[constant("map", [-1, 1, 2, 2])], shape=["batch", 1, 2, 2]).write(folder / "model.onnx")


def other_input_kind(folder: Path) -> Path:
    return ImageGraph(kind=TensorProto.STRING).write(folder / "model.onnx")


def traced_batch(folder: Path) -> Path:
    """Any number of images, it says; a constant in it is the two that it was traced with."""
    return ImageGraph(baked=2).write(folder / "model.onnx")


def batch_dependent(folder: Path) -> Path:
    """Write a graph each of whose scores is a share of the sum over the batch."""
    return ImageGraph(after=[helper.make_node("Softmax", ["plain"], ["scores"], axis=0)]).write(folder / "model.onnx")


def long_name(folder: Path) -> Path:
    node = helper.make_node("Gelu", ["plain"], ["scores"], name="N" * 100_000, domain="own.ops")
    return ImageGraph(after=[node], domains=["own.ops"]).write(folder / "model.onnx")


def one_channel(folder: Path) -> Path:
    return ImageGraph(channels=1).write(folder / "model.onnx")


def future_opset(folder: Path) -> Path:
    return ImageGraph(opset=99).write(folder / "model.onnx")


def future_ir(folder: Path) -> Path:
    return ImageGraph(ir=99).write(folder / "model.onnx")


def truncate(folder: Path) -> Path:
    file = ImageGraph().write(folder / "model.onnx")
    file.write_bytes(file.read_bytes()[:-1000])
    return file


def text_file(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1\nsize 46804510\n")
    return folder / "model.onnx"


def empty(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(b"")
    return folder / "model.onnx"


Make = Callable[[Path], Path]
"""Folder → the file in it."""
