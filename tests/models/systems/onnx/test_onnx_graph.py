"""Bundles whose weights are a foreign ONNX graph: what is served, and what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from models.bundle import BundleError
from models.loading import load
from models.systems.onnx.session import open_session, providers
from tests.fake_cuda.device import GIB, FakeCuda
from tests.support.bundles.onnx import SIZE, WEIGHT, colours, write_graph


def test_a_graph_answers_like_its_arithmetic(tmp_path: Path) -> None:
    bundle = write_graph(tmp_path, colours())
    assert bundle.weights_path.name == "model.onnx"
    pixels = np.random.default_rng(1).integers(0, 256, (5, SIZE, SIZE, 3)).astype(np.uint8)
    answer = load(bundle).forward({"pixels": pixels}, {"merge": []})
    expected = ((pixels / 255 - 0.5) / 0.5).mean(axis=(1, 2)) @ WEIGHT
    np.testing.assert_allclose(answer["logits"], expected, rtol=0, atol=1e-5)
    assert answer["tokens"].tolist() == [[0, 0]] * 5


def external(place: str = "../../../../etc/passwd") -> onnx.ModelProto:
    """Build a graph whose weights are in a file of the machine."""
    model = colours()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    return model


def external_inside() -> onnx.ModelProto:
    """Build a graph with such weights in a constant of a branch that may never run."""
    tensor = external().graph.initializer[0]
    tensor.name = "hidden"
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["hidden"], value=tensor)], "branch", [], [helper.make_tensor_value_info("hidden", 1, None)]
    )
    model = colours()
    model.graph.node.add().CopyFrom(helper.make_node("If", ["condition"], ["unused"], then_branch=inner, else_branch=inner))
    return model


def foreign_operator(domain: str, kind: str = "Flatten") -> onnx.ModelProto:
    model = colours()
    model.graph.node[1].domain, model.graph.node[1].op_type = domain, kind
    return model


def enormous() -> onnx.ModelProto:
    model = colours()
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([2**31, 2**31])
    return model


def with_functions() -> onnx.ModelProto:
    model = colours()
    function = helper.make_function("own", "f", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 18)])
    model.functions.append(function)
    return model


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (external(), r"tensor weight: its data is in '../../../../etc/passwd', which is not a file in the folder of the graph"),
        (external_inside(), r"tensor hidden: its data is in '../../../../etc/passwd'"),
        (external("passwords"), "its weights are in 'passwords', which is not a file of the bundle"),
        (foreign_operator("own"), "operator Flatten of own is not run here; accepted are those of ai.onnx, ai.onnx.ml, com.microsoft"),
        (foreign_operator("com.microsoft"), "ONNX Runtime does not accept it"),
        (foreign_operator("com.microsoft", "EPContext"), "operator EPContext of com.microsoft is not run here"),
        (enormous(), "tensor weight: .* has more than"),
        (with_functions(), "defines functions"),
        (
            colours(shape=["batch", 3, 32, 32]),
            "it takes images of 32 × 32 pixels, not of 16 × 16",
        ),
        (colours(dtype=TensorProto.DOUBLE), r"its input is float64 images \(batch, 3, 16, 16\); an image is needed"),
        (colours(weight=np.zeros((3, 5), np.float32), classes=5), r"a batch of two gives \(2, 5\) where \(2, 4\) is needed"),
        (colours(weight=WEIGHT[:2]), "ONNX Runtime does not accept it|it fails on a batch of two"),
        (b"not a graph", "not an ONNX file"),
    ],
)
def test_what_is_no_plain_graph_is_refused(model: onnx.ModelProto | bytes, sentence: str, tmp_path: Path) -> None:
    bundle = write_graph(tmp_path, model)
    with pytest.raises(BundleError, match=rf"model\.onnx: .*({sentence})"):
        load(bundle)


def endless() -> onnx.ModelProto:
    """Build a graph that adds the weight to itself 2^62 times."""
    scalar = {
        name: helper.make_tensor_value_info(name, kind, []) for name, kind in {"turn": TensorProto.INT64, "on": TensorProto.BOOL}.items()
    }
    body = helper.make_graph(
        [helper.make_node("Add", ["sum", "scores"], ["more"]), helper.make_node("Identity", ["on"], ["still"])],
        "body",
        [*scalar.values(), helper.make_tensor_value_info("sum", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []), helper.make_tensor_value_info("more", TensorProto.FLOAT, None)],
    )
    model = colours()
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**62), "turns"))
    model.graph.node.append(helper.make_node("Loop", ["turns", "", "scores"], ["total"], body=body))
    model.graph.output[0].name = "total"
    return model


def test_a_graph_that_comes_to_no_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.systems.onnx.session.FIRST_RUN_S", 0.5)
    with pytest.raises(BundleError, match=r"model\.onnx: it fails on a batch of two: it has not ended after"):
        load(write_graph(tmp_path, endless()))


def test_a_changed_graph_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    bundle = write_graph(tmp_path, colours())
    content = bytearray(bundle.weights_path.read_bytes())
    content[-1] ^= 1
    bundle.weights_path.write_bytes(content)
    with pytest.raises(BundleError, match="its SHA-256 is not the one"):
        load(bundle)


def test_a_gpu_that_onnx_runtime_cannot_use_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.warns(UserWarning, match="has no CUDA, so graphs run on the CPU"):
        assert providers(torch.device("cuda")) == ["CPUExecutionProvider"]


def test_a_gpu_runs_graphs_exactly_and_within_a_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    FakeCuda(count=2, total_memory=80 * GIB).install(monkeypatch, tmp_path)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    preloaded: list[bool] = []
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: preloaded.append(True))
    cuda = {"device_id": 1, "gpu_mem_limit": 20 * GIB, "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": 0}
    assert providers(torch.device("cuda:1")) == [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]
    assert preloaded


def test_graphs_that_fall_back_to_the_cpu_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ONNX Runtime does so silently, as when it was built for another CUDA."""
    FakeCuda().install(monkeypatch, tmp_path)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.warns(UserWarning, match="could not start CUDA, so the graph runs on the CPU"):
        session = open_session(colours().SerializeToString(), torch.device("cuda"), 1)
    assert session.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("started", [["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]])
def test_the_device_of_a_graph_is_read_from_its_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, started: list[str]) -> None:
    """The providers of the build do not say whether CUDA has started."""
    FakeCuda().install(monkeypatch, tmp_path)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_args, **_named: SimpleNamespace(get_providers=lambda: started))
    with warnings.catch_warnings(record=True, action="always") as caught:
        open_session(b"a graph", torch.device("cuda"), 1)
    assert bool(caught) == ("CUDAExecutionProvider" not in started)
