"""Export of models as ONNX graphs: a ViT with a fixed merge schedule, the denoising step of DiffMAE, and the query decoder of MCC.

Every graph takes any batch, and is compared with the model on the given input before it is written.
"""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxscript import opset18 as op
from torch import Tensor, nn

from models.bundle import GRAPH_FILE, Bundle, BundleSpec
from models.flops import RandomInputMaker
from models.layers.block import KVCache
from models.layers.forward import normalise
from models.loading import load
from models.merge_schedule import MergeSchedule
from models.systems.diffmae.decoder import DecoderContext
from models.systems.diffmae.masks import PatchSplit
from models.systems.diffmae.model import DiffMAE
from models.systems.mcc.model import MCC, SceneCache
from models.systems.mcc.queries import QUERIES, random_scene_inputs
from models.systems.mcc.query_geometry import Projection, SceneGeometry
from models.systems.vit.model import ViT

OPSET = 18
TOLERANCE = 1e-4
"""Maximum absolute difference from the model's own output, relative to outputs above 1."""
EXAMPLE_ROWS = 3
"""Number of rows of the inputs that a graph is traced with."""


class ExportError(Exception):
    """Error of a bundle that cannot become a graph; the message says why."""


@dataclass(frozen=True)
class ExportGraph:
    """A network to export, and an input to trace and check it with. The first dimension of every input is the batch."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    dynamic_dimensions: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """Input → dimension → name, of further dimensions of any length."""
    batch_dimensions: Mapping[str, int] = field(default_factory=dict)
    """Input → its batch dimension, if that is not the first."""


@dataclass(frozen=True)
class ExportReport:
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: tuple[str, ...]
    nodes: int
    bytes: int
    difference: float
    """Maximum difference, relative to max(1, |output|)."""


class MergingClassifier(nn.Module):
    """A classifier with a fixed merge schedule: normalised images (B, channels, H, W) → logits (B, classes)."""

    def __init__(self, model: ViT, merge: MergeSchedule) -> None:
        super().__init__()
        self.model, self.merge = model, merge

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(pixels, merge=self.merge).logits
        return logits


class DenoisingStep(nn.Module):
    """Denoising step: noisy patches (B, M, P), times (B,) and the encoder's output of the visible patches → clean patches, or noise."""

    def __init__(self, model: DiffMAE) -> None:
        super().__init__()
        self.model = model


class CrossAttentionStep(DenoisingStep):
    def forward(self, noisy: Tensor, times: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Predict with keys and values of cross-attention, (layers, B, H, 1 + V, D) each."""
        kv_caches = tuple(KVCache(key, value) for key, value in zip(keys, values, strict=True))
        return self.model.predict(noisy, times, DecoderContext(positions, None, kv_caches)).patches


class JointStep(DenoisingStep):
    def forward(self, noisy: Tensor, times: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Predict with tokens of visible patches, (B, 1 + V, C)."""
        return self.model.predict(noisy, times, DecoderContext(positions, None, visible=visible)).patches


class QueryDecoder(nn.Module):
    """Decoder of queries: a cached scene, (layers, B, H, 1 + N + 1, D + 8) twice, and points (B, Q, 3) → (B, Q, outputs)."""

    def __init__(self, model: MCC) -> None:
        super().__init__()
        self.model = model

    def forward(self, keys: Tensor, values: Tensor, queries: Tensor) -> Tensor:
        return self.model.predict_outputs(self.model.decode_queries(SceneCache(keys, values), queries))


class GeometryQueryDecoder(QueryDecoder):
    """Decoder of queries with geometry features (`models.systems.mcc.query_geometry.SceneGeometry`): camera (B, 7), middle (B, 3), maps
    (B, n², 13) and tokens (B, C, side, side)."""

    def forward(  # type: ignore[override]
        self, keys: Tensor, values: Tensor, queries: Tensor, camera: Tensor, middle: Tensor, maps: Tensor, tokens: Tensor
    ) -> Tensor:
        scene = SceneCache(keys, values, geometry=SceneGeometry(Projection(camera, middle), maps, tokens))
        return self.model.predict_outputs(self.model.decode_queries(scene, queries))


def classifier_graph(model: nn.Module, spec: BundleSpec, schedule: MergeSchedule, pixels: Sequence[np.ndarray]) -> ExportGraph:
    """Return the graph of a classifier. pixels: uint8 (S, S, 3) of real images, at the bundle's size."""
    assert isinstance(model, ViT)
    images = normalise(torch.from_numpy(np.stack(pixels)), spec.image_preprocess, torch.float32).contiguous()
    return ExportGraph(MergingClassifier(model, schedule), {"pixels": images}, ("logits",))


def denoising_graph(model: nn.Module) -> ExportGraph:
    assert isinstance(model, DiffMAE)
    config, make = model.config, RandomInputMaker(EXAMPLE_ROWS, torch.float32, torch.device("cpu"))
    split = PatchSplit.from_noise(make.uniform(config.patches), 0.75)
    frames = () if config.frames is None else (config.frames,)
    context = model.encode(make.normal(config.channels, *frames, *config.image_size), split)
    noisy = make.normal(split.masked.shape[1], config.patch_values)
    times = torch.full((EXAMPLE_ROWS,), config.schedule.steps // 2)
    inputs = {"noisy": noisy, "times": times, "positions": context.positions}
    dynamic = {"noisy": {1: "masked"}, "positions": {1: "masked"}}
    if context.visible is not None:
        return ExportGraph(JointStep(model), inputs | {"visible": context.visible}, ("patches",), dynamic | {"visible": {1: "visible"}})
    keys, values = (torch.stack([getattr(kv_cache, part) for kv_cache in context.memories]) for part in ("keys", "values"))
    dynamic |= {"keys": {3: "visible"}, "values": {3: "visible"}}
    return ExportGraph(
        CrossAttentionStep(model), inputs | {"keys": keys, "values": values}, ("patches",), dynamic, {"keys": 1, "values": 1}
    )


def query_decoder_graph(model: nn.Module) -> ExportGraph:
    assert isinstance(model, MCC)
    make = RandomInputMaker(EXAMPLE_ROWS, torch.float32, torch.device("cpu"))
    scene = model.cache_scene(model.encode(*random_scene_inputs(model.config, make)))
    inputs = {"keys": scene.keys, "values": scene.values, "queries": make.normal(min(QUERIES, 64), 3)}
    dynamic, batch_dimensions = {"queries": {1: "points"}}, {"keys": 1, "values": 1}
    if scene.geometry is None:
        return ExportGraph(QueryDecoder(model), inputs, ("predicted",), dynamic, batch_dimensions)
    camera = scene.geometry.projection
    inputs |= {"camera": camera.coefficients, "middle": camera.centre, "maps": scene.geometry.maps, "tokens": scene.geometry.tokens}
    return ExportGraph(GeometryQueryDecoder(model), inputs, ("predicted",), dynamic, batch_dimensions)


PART_EXPORTERS: Mapping[str, Callable[[nn.Module], ExportGraph]] = {"diffmae": denoising_graph, "mcc": query_decoder_graph}
"""Exporter by architecture of which one part is exported, checked on random input: its input is not an image."""


def check_exportable(bundle: Bundle) -> None:
    """Raise ExportError for a bundle that has no graph, whatever the other arguments."""
    spec = bundle.spec
    if spec.architecture == "vit" or spec.architecture in PART_EXPORTERS:
        return
    if spec.weights_file == GRAPH_FILE:
        raise ExportError(f"{spec.id}: nothing to export, its weights are an ONNX graph: {bundle.weights_path}")
    exportable = ", ".join(("vit", *PART_EXPORTERS))
    takes = " and ".join(name for name, section in (("clips", spec.clip), ("sound", spec.sound)) if section is not None)
    reason = f", which takes {takes}," if takes else ""
    raise ExportError(f"{spec.id}: architecture {spec.architecture}{reason} cannot be exported as ONNX; those that can are {exportable}")


def export(bundle: Bundle, target: Path, *, schedule: MergeSchedule | None = None, pixels: Sequence[np.ndarray] = ()) -> ExportReport:
    """Write a bundle's graph. Raises BundleError, ExportError and OSError; then nothing is written.

    schedule: of a ViT, None for its default rung; pixels: uint8 (S, S, 3) images that a ViT is checked on.
    """
    spec = bundle.spec
    check_exportable(bundle)
    if target.exists() and not target.is_file():
        raise ExportError(f"{target}: is not an ordinary file")
    target = target.resolve()  # replaces the target of a link, not the link
    model = load(bundle).model
    with torch.inference_mode(False), torch.no_grad():
        if spec.architecture in PART_EXPORTERS:
            graph = PART_EXPORTERS[spec.architecture](model)
        elif not pixels:
            raise ExportError(f"{spec.id}: a classifier is checked on real images; give at least one (--image)")
        else:
            graph = classifier_graph(model, spec, schedule or default_schedule(spec), pixels)
        proto = trace(graph)
        difference = compare(graph, proto)
    if difference > TOLERANCE:
        raise ExportError(
            f"{spec.id}: the graph's output differs by {difference:.1e}, more than {TOLERANCE:.0e}, from the model's; not written"
        )
    content = proto.SerializeToString()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".exporting-") as folder:
        (Path(folder) / target.name).write_bytes(content)
        (Path(folder) / target.name).replace(target)  # readers see all of it or nothing
    shapes = {value.name: tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim) for value in proto.graph.input}
    return ExportReport(shapes, graph.outputs, len(proto.graph.node), len(content), difference)


def default_schedule(spec: BundleSpec) -> MergeSchedule:
    rung = spec.rung(spec.default_rung) if spec.default_rung else None
    return MergeSchedule.off() if rung is None else rung.merge


def trace(graph: ExportGraph) -> onnx.ModelProto:
    """Trace a graph as ONNX, without the exporter's metadata about this machine's files."""
    names = list(graph.inputs)
    shapes = [_dynamic(graph, name) for name in names]
    inputs = tuple(graph.inputs[name] for name in names)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own use of deprecated parts of PyTorch
        program = torch.onnx.export(
            graph.module.eval(),
            inputs,
            dynamo=True,
            dynamic_shapes=tuple(shapes),
            input_names=names,
            output_names=list(graph.outputs),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
        )
    assert program is not None
    proto = program.model_proto
    _strip_metadata(proto)
    return proto


def compare(graph: ExportGraph, proto: onnx.ModelProto) -> float:
    """Return the maximum difference of ONNX Runtime's output from the model's, relative to max(1, |output|), for all rows and for one
    alone.

    Infinite if an output is NaN.
    """
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    max_difference = 0.0
    for rows in (slice(None), slice(0, 1)):
        inputs = {name: value[(slice(None),) * graph.batch_dimensions.get(name, 0) + (rows,)] for name, value in graph.inputs.items()}
        expected = graph.module(*inputs.values())
        (output,) = session.run(None, {name: value.contiguous().numpy() for name, value in inputs.items()})
        scale = expected.abs().clamp(min=1.0)
        difference = float(((torch.from_numpy(output) - expected).abs() / scale).max())
        max_difference = max(max_difference, math.inf if math.isnan(difference) else difference)
    return max_difference


def _dynamic(graph: ExportGraph, name: str) -> dict[int, Any]:
    sizes = {dimension: torch.export.Dim(label, min=1) for dimension, label in graph.dynamic_dimensions.get(name, {}).items()}
    return {graph.batch_dimensions.get(name, 0): torch.export.Dim("batch", min=1), **sizes}


def _stable_sort(x: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """Translate a stable sort: ONNX has none, but its TopK orders equal values by index, as a stable sort does."""
    count: Any = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))  # type: ignore[type-var]
    return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)


def _strip_metadata(proto: onnx.ModelProto) -> None:
    del proto.metadata_props[:]
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
