"""Classifiers and encoders of others that `opsin import FILE.onnx` makes bundles of: what is decided, and from where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from models.bundle import GRAPH_FILE, SPEC_FILE, WEIGHTS_FILE, Bundle, BundleError, read, write
from models.bundle_schema import Preprocess
from models.checkpoints.checkpoint_file import CheckpointError
from models.layers.forward import normalise, normalise_to_planes
from models.loading import load
from models.systems.onnx.import_graph import import_graph
from tests.support.bundles.onnx import CLASSES, SIZE, WEIGHT, colours

PIXELS = np.random.default_rng(1).integers(0, 256, (5, SIZE, SIZE, 3)).astype(np.uint8)
COLOURS = (PIXELS / 255).mean(axis=(1, 2))
"""Mean colour of each image, from 0 to 1."""
PLAIN = {"mean": "0,0,0", "std": "1,1,1", "short_side": str(SIZE), "interpolation": "bilinear"}


def import_file(folder: Path, model: onnx.ModelProto | bytes, purpose: Any = "classify", labels: Any = None, **settings: str) -> Bundle:
    folder.mkdir(exist_ok=True)
    file = folder / "foreign.onnx"
    file.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    spec, files = import_graph(file, overrides=settings, name="foreign", version="1", license=None, purpose=purpose, labels=labels)
    return read(write(folder / "bundles", spec, file, files=files).path)


def answer(bundle: Bundle) -> np.ndarray:
    arrays = load(bundle).forward({"pixels": PIXELS}, {})
    return arrays["logits" if bundle.spec.task == "classify" else "embedding"]


def notes(bundle: Bundle) -> str:
    return "; ".join(bundle.spec.provenance.get("notes", []))


def with_bytes(*, last: bool) -> onnx.ModelProto:
    """uint8, channels first or last."""
    shape = ["batch", SIZE, SIZE, 3] if last else ["batch", 3, SIZE, SIZE]
    first = [helper.make_node("Cast", ["images"], ["cast"], to=TensorProto.FLOAT)]
    first.append(helper.make_node("Transpose", ["cast"], ["planes"], perm=[0, 3, 1, 2] if last else [0, 1, 2, 3]))
    return after(first, "planes", dtype=TensorProto.UINT8, shape=shape)


def after(first: list[onnx.NodeProto], name: str, **changes: Any) -> onnx.ModelProto:
    """`colours` of what the first nodes call `name`."""
    model = colours(**changes)
    model.graph.node[0].input[0] = name
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*first, *rest])
    return model


def build_softmax() -> onnx.ModelProto:
    model = colours()
    model.graph.node.append(helper.make_node("Softmax", ["scores"], ["likely"]))
    model.graph.output[0].name = "likely"
    return model


def build_two_outputs() -> onnx.ModelProto:
    """Build a graph with the outputs `scores` and `colour`."""
    model = colours()
    model.graph.output.append(helper.make_tensor_value_info("colour", TensorProto.FLOAT, ["batch", 3]))
    return model


@pytest.mark.parametrize("last", [False, True])
def test_bytes_are_given_as_they_are_in_either_layout(last: bool, tmp_path: Path) -> None:
    bundle = import_file(tmp_path, with_bytes(last=last), short_side="16")
    np.testing.assert_allclose(answer(bundle), 255 * COLOURS @ WEIGHT, rtol=1e-5, atol=1e-3)
    assert "takes bytes" in notes(bundle)


def test_floats_of_channels_last_are_normalised(tmp_path: Path) -> None:
    first = [helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2])]
    bundle = import_file(tmp_path, after(first, "planes", shape=["batch", SIZE, SIZE, 3]), mean="0.5,0.5,0.5", std="0.5,0.5,0.5")
    np.testing.assert_allclose(answer(bundle), (2 * COLOURS - 1) @ WEIGHT, rtol=0, atol=1e-5)


def test_half_floats_are_answered_in_float32(tmp_path: Path) -> None:
    first = [helper.make_node("Cast", ["images"], ["wide"], to=TensorProto.FLOAT)]
    found = answer(import_file(tmp_path, after(first, "wide", dtype=TensorProto.FLOAT16), **PLAIN))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, COLOURS @ WEIGHT, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("ends", "low", "high"), [("0,255", 0, 255), ("-1,1", -1, 1)])
def test_a_range_of_input_stands_for_mean_and_std(ends: str, low: int, high: int, tmp_path: Path) -> None:
    bundle = import_file(tmp_path, colours(), range=ends)
    np.testing.assert_allclose(answer(bundle), (low + COLOURS * (high - low)) @ WEIGHT, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("batch", "message"), [(1, "batches of 1, one image after the other"), (3, "batches of 3, the last one filled up")]
)
def test_a_fixed_batch_is_served_whatever_comes(batch: int, message: str, tmp_path: Path) -> None:
    bundle = import_file(tmp_path, colours(shape=[batch, 3, SIZE, SIZE]), **PLAIN)
    np.testing.assert_allclose(answer(bundle), COLOURS @ WEIGHT, rtol=0, atol=1e-5)
    assert message in notes(bundle)


def test_an_encoder_gives_unit_vectors(tmp_path: Path) -> None:
    bundle = import_file(tmp_path, colours(), "embed", **PLAIN)
    assert (bundle.spec.task, bundle.spec.embedding_dim, bundle.spec.labels) == ("embed", CLASSES, [])
    expected = COLOURS @ WEIGHT
    np.testing.assert_allclose(answer(bundle), expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=0, atol=1e-5)


def test_probabilities_stay_what_they_are(tmp_path: Path) -> None:
    bundle = import_file(tmp_path, build_softmax(), None, **PLAIN)
    found = np.exp(answer(bundle))
    expected = np.exp(COLOURS @ WEIGHT)
    np.testing.assert_allclose(found / found.sum(1, keepdims=True), expected / expected.sum(1, keepdims=True), rtol=0, atol=1e-5)
    assert "taken for task classify, since its numbers are probabilities" in notes(bundle)


def test_one_of_several_outputs_is_chosen_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"each image are scores, colour; --set output=NAME chooses one"):
        import_file(tmp_path, build_two_outputs())
    bundle = import_file(tmp_path, build_two_outputs(), "embed", output="colour", **PLAIN)
    np.testing.assert_allclose(answer(bundle), COLOURS / np.linalg.norm(COLOURS, axis=1, keepdims=True), rtol=0, atol=1e-5)


def test_weights_in_a_file_of_the_folder_come_along(tmp_path: Path) -> None:
    outside = tmp_path / "foreign.onnx"
    onnx.save_model(colours(), outside, save_as_external_data=True, location="foreign.onnx.data", size_threshold=0)
    bundle = import_file(tmp_path, outside.read_bytes(), **PLAIN)
    (tmp_path / "foreign.onnx.data").unlink()
    np.testing.assert_allclose(answer(bundle), COLOURS @ WEIGHT, rtol=0, atol=1e-5)
    assert list(bundle.spec.files) == ["foreign.onnx.data"] and bundle.spec.size > WEIGHT.nbytes
    (bundle.path / "foreign.onnx.data").write_bytes(bytes(WEIGHT.nbytes))
    with pytest.raises(BundleError, match=r"foreign\.onnx\.data: .*"):
        load(bundle)


def test_files_of_transformers_give_preparation_labels_and_task(tmp_path: Path) -> None:
    named = {str(index): name for index, name in enumerate(("red", "green", "blue", "grey"))}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet", "id2label": named}))
    prepared = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 16}, "crop_pct": 0.8, "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(prepared))
    spec = import_file(tmp_path, colours(shape=["batch", 3, "height", "width"]), None).spec
    assert (spec.task, spec.labels) == ("classify", ["red", "green", "blue", "grey"])
    assert spec.image_preprocess.model_dump() == {
        "image_size": 16,
        "image_width": None,
        "short_side": 20,
        "fit": "crop",
        "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }
    assert spec.provenance["transform"] == "read from preprocessor_config.json"


def test_the_config_of_timm_gives_preparation_and_task(tmp_path: Path) -> None:
    cfg = {"crop_pct": 0.5, "interpolation": "bilinear", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 16, 16]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 0, "pretrained_cfg": cfg}))
    spec = import_file(tmp_path, colours(shape=["batch", 3, "height", "width"]), None).spec
    assert (spec.task, spec.image_preprocess.short_side, spec.image_preprocess.mean) == ("embed", 32, (0.1, 0.2, 0.3))
    assert spec.provenance["transform"] == "read from config.json"


def write_json(folder: Path, name: str, content: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


PROCESSOR = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 16}, "crop_pct": 0.8, "resample": 2}


def test_files_above_a_folder_called_onnx_count(tmp_path: Path) -> None:
    write_json(tmp_path, "config.json", {"model_type": "resnet", "id2label": dict(enumerate(("red", "green", "blue", "grey")))})
    write_json(tmp_path, "preprocessor_config.json", PROCESSOR)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    spec = import_file(tmp_path / "onnx", colours(), None).spec
    assert (spec.image_preprocess.short_side, spec.labels[0], spec.license) == (20, "red", "MIT")
    assert spec.provenance["transform"] == "read from ../preprocessor_config.json"
    assert "labels are those of ../config.json" in spec.provenance["notes"]


def test_the_folder_of_the_graph_comes_before_the_one_above(tmp_path: Path) -> None:
    write_json(tmp_path, "preprocessor_config.json", PROCESSOR)
    write_json(tmp_path / "onnx", "preprocessor_config.json", PROCESSOR | {"crop_pct": 0.5})
    spec = import_file(tmp_path / "onnx", colours()).spec
    assert (spec.image_preprocess.short_side, spec.provenance["transform"]) == (32, "read from preprocessor_config.json")


def test_timms_config_above_a_folder_called_onnx_counts(tmp_path: Path) -> None:
    write_json(tmp_path, "config.json", {"architecture": "resnet18", "num_classes": 4, "pretrained_cfg": {"crop_pct": 0.5}})
    spec = import_file(tmp_path / "onnx", colours(), None).spec
    assert (spec.image_preprocess.short_side, spec.provenance["transform"]) == (32, "read from ../config.json")
    assert "taken for task classify, since ../config.json says so" in spec.provenance["notes"][0]


def test_files_above_another_folder_do_not_count(tmp_path: Path) -> None:
    write_json(tmp_path, "preprocessor_config.json", PROCESSOR)
    assert "the transform is assumed" in import_file(tmp_path / "graphs", colours()).spec.provenance["transform"]


OTHER = "config.json is of a model with 1000 classes, not 4: not read"
TIMM = {"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": {"crop_pct": 0.5, "input_size": [3, 16, 16]}}
HUB = {"architectures": ["ResNetForImageClassification"], "id2label": {str(index): f"thing {index}" for index in range(1000)}}


@pytest.mark.parametrize("config", [TIMM, HUB])
def test_a_config_of_other_classes_counts_for_nothing(config: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path, "config.json", config)
    model = colours()
    model.graph.node[-1].output[0] = model.graph.output[0].name = "linear"
    with pytest.raises(CheckpointError) as refused:
        import_file(tmp_path, model, None)
    question = "foreign.onnx: are its 4 numbers an image's logits or a vector? Say --as classify (or --labels FILE) or --as embed"
    assert str(refused.value) == f"{question} ({OTHER})"
    spec = import_file(tmp_path, model, "classify").spec
    assert spec.labels[0] == "class 0" and spec.image_preprocess.short_side == 18
    assert OTHER in str(spec.provenance) and ("next to the file" in spec.provenance["transform"]) is (config is HUB)


def test_the_size_of_a_config_of_other_classes_is_not_taken(tmp_path: Path) -> None:
    write_json(tmp_path, "config.json", TIMM)
    open_size = colours(shape=["batch", 3, "height", "width"])
    with pytest.raises(CheckpointError, match=rf"{OTHER}; it takes images of several sizes: set one"):
        import_file(tmp_path, open_size)
    assert import_file(tmp_path, open_size, image_size="16").spec.image_preprocess.image_size == 16


def with_more(*others: tuple[str, int, list[Any], np.ndarray], name: str = "scores") -> onnx.ModelProto:
    """Further outputs, each filled with a constant by batch: name, type, shape without the batch, values."""
    model = colours()
    model.graph.node[-1].output[0] = model.graph.output[0].name = name
    for other, kind, shape, value in others:
        model.graph.initializer.append(numpy_helper.from_array(value, f"{other} of all"))
        expected = helper.make_node("Concat", ["batch size", f"{other} shape"], [f"{other} whole"], axis=0)
        model.graph.initializer.append(numpy_helper.from_array(np.array(shape), f"{other} shape"))
        model.graph.node.extend([expected, helper.make_node("Expand", [f"{other} of all", f"{other} whole"], [other])])
        model.graph.output.append(helper.make_tensor_value_info(other, kind, ["batch", *shape]))
    model.graph.node.insert(0, helper.make_node("Shape", ["images"], ["batch size"], start=0, end=1))
    return model


BOXES = ("boxes", TensorProto.FLOAT, [CLASSES, 4], np.ones((1, CLASSES, 4), np.float32))
INDICES = ("classes", TensorProto.INT64, [CLASSES], np.ones((1, CLASSES), np.int64))


@pytest.mark.parametrize("settings", [{}, {"output": "scores"}])
@pytest.mark.parametrize("others", [(BOXES,), (BOXES, INDICES)])
def test_a_detector_is_no_classifier(others: Any, settings: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="its output scores holds a score for each of the 4 boxes of boxes: a detector's"):
        import_file(tmp_path, with_more(*others), **settings)


def test_rows_of_integers_next_to_scores_need_a_choice(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="for each image are scores; --set output=NAME chooses one"):
        import_file(tmp_path, with_more(INDICES))
    assert import_file(tmp_path, with_more(INDICES), output="scores").spec.config["output"] == "scores"


def test_an_output_called_logits_needs_no_choice(tmp_path: Path) -> None:
    hidden = ("hidden", TensorProto.FLOAT, [3], np.ones((1, 3), np.float32))
    assert import_file(tmp_path, with_more(hidden, name="logits"), None).spec.config["output"] == "logits"


def test_missing_settings_are_assumed_and_reported(tmp_path: Path) -> None:
    spec = import_file(tmp_path, colours(), short_side="20").spec
    message = spec.provenance["transform"]
    assert "the transform is assumed" in message and "--set mean=0.485,0.456,0.406" in message and "short_side" not in message
    assert spec.labels == ["class 0", "class 1", "class 2", "class 3"]


def hungry() -> onnx.ModelProto:
    """Fill 1.2 GB with zeros."""
    model = colours()
    model.graph.initializer.append(numpy_helper.from_array(np.array([3 * 10**8]), "huge"))
    nodes = [helper.make_node("ConstantOfShape", ["huge"], ["zeros"]), helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0)]
    model.graph.node.extend([*nodes, helper.make_node("Add", ["scores", "zero"], ["total"])])
    model.graph.output[0].name = "total"
    return model


def build_masked() -> onnx.ModelProto:
    model = colours()
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE]))
    return model


REFUSED: dict[str, tuple[onnx.ModelProto | bytes, dict[str, Any], str]] = {
    "two inputs": (build_masked(), {}, r"its inputs are float32 images .*, float32 mask .*; one image is needed"),
    "no image": (colours(shape=["batch", 3]), {}, r"its input is float32 images \(batch, 3\); an image is needed"),
    "grey images": (colours(shape=["batch", 1, 16, 16]), {}, "images have three channels"),
    "an oblong": (colours(shape=["batch", 3, 16, 32]), {}, "only squares are taken"),
    "no size": (colours(shape=["batch", 3, "h", "w"]), {}, r"several sizes: set one, as in --set image_size=224"),
    "another size": (colours(), {"image_size": "32"}, "image_size 32: it takes images of 16 × 16 pixels alone"),
    "no output of that name": (colours(), {"output": "logits"}, "output logits: is not an output; its outputs are float32 scores"),
    "no such setting": (colours(), {"heads": "4"}, "heads: cannot be set; what can be is "),
    "mean of bytes": (with_bytes(last=True), {"mean": "0,0,0"}, "mean: the graph takes bytes"),
    "range and mean": (colours(), {"mean": "0,0,0", "range": "0,1"}, "range: mean and std say the same"),
    "labels": (colours(), {"labels": ["cat"]}, "has 4 classes, but 1 label"),
    "no task": (
        build_two_outputs(),
        {"purpose": None, "output": "colour"},
        "foreign.onnx: are its 3 numbers an image's logits or a vector",
    ),
    "memory": (hungry(), {}, "needs more than the 1024 MiB"),
    "text": (b"cats and dogs", {}, "not an ONNX file, or a damaged one"),
    "nothing": (b"", {}, "not an ONNX file"),
    "half of a file": (colours().SerializeToString()[:-40], {}, "not an ONNX file, or a damaged one"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    model, settings, sentence = REFUSED[name]
    with pytest.raises(CheckpointError, match=sentence) as refused:
        import_file(tmp_path, model, **settings)
    assert "\n" not in str(refused.value)


def test_weights_in_a_link_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere.onnx"
    onnx.save_model(colours(), outside, save_as_external_data=True, location="weights.data", size_threshold=0)
    (tmp_path / "weights.data").rename(tmp_path / "other.data")
    (tmp_path / "weights.data").symlink_to(tmp_path / "other.data")
    with pytest.raises(CheckpointError, match=r"its weights are in weights\.data, which is missing in the graph's folder, or a link"):
        import_file(tmp_path, outside.read_bytes())


@pytest.mark.parametrize("name", [SPEC_FILE, WEIGHTS_FILE, GRAPH_FILE, "w .data"])
def test_weights_under_a_name_of_the_bundle_are_refused(name: str, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere.onnx"
    onnx.save_model(colours(), outside, save_as_external_data=True, location=name, size_threshold=0)
    with pytest.raises(CheckpointError, match=rf"its weights are in '{name}', whose name a bundle cannot keep"):
        import_file(tmp_path, outside.read_bytes())


def test_planes_hold_the_numbers_of_normalise() -> None:
    pixels = torch.arange(2 * 8 * 8 * 3).view(2, 8, 8, 3).remainder(256).to(torch.uint8)
    preprocess = Preprocess(image_size=8, short_side=8, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    planes = normalise_to_planes(pixels, preprocess)
    assert planes.is_contiguous() and torch.equal(planes, normalise(pixels, preprocess, torch.float32))
