"""ONNX files as people have them, imported by the command and served: they answer what ONNX Runtime answers to the same pixels."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper
from PIL import Image

from tests.support.bundles import onnx_classifiers
from tests.support.bundles.onnx_classifiers import FLOAT, FLOAT16, INT64, OUTPUTS, SIDE, UINT8, ImageGraph, value
from tests.support.images import encode, noise
from tests.support.live_service import Service, running
from tests.support.processes import opsin

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PHOTO = noise(20, 30, seed=7).resize((60, 40), Image.Resampling.BICUBIC)
"""Neither square nor of the network's size; sides differ from the resized ones' centre by an even number of pixels."""
NORMALISED = ("--set", "mean=0.485,0.456,0.406", "--set", "std=0.229,0.224,0.225")
CLOSE = 1e-5

Pixels = NDArray[np.uint8]
Prepare = Callable[[Image.Image], Pixels]


def crop(image: Image.Image, short: int = 20, side: int = SIDE, mode: Any = Image.Resampling.BICUBIC) -> Pixels:
    """Resize the short side to `short`, then crop the centre, by Pillow."""
    ratio = short / min(image.size)
    resized = image.resize((int(image.width * ratio), int(image.height * ratio)), mode)
    left, top = (resized.width - side) // 2, (resized.height - side) // 2
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def squeeze(image: Image.Image) -> Pixels:
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def to_floats(pixels: Pixels) -> NDArray[np.float32]:
    """Convert (H, W, 3) to (3, H, W)."""
    return ((pixels / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32).transpose(2, 0, 1)


@dataclass(frozen=True)
class Case:
    graph: ImageGraph
    options: tuple[str, ...] = ()
    prepare: Prepare = crop
    feed: Callable[[Pixels], NDArray[Any]] = to_floats
    adjacent: tuple[str, dict[str, Any]] | None = None
    """A file next to the graph: its name and content."""
    output: str = "scores"
    task: str = "classify"


CROP = ("--set", "short_side=20", *NORMALISED)
TWO_OUTPUTS = [helper.make_node("Identity", ["plain"], ["scores"]), helper.make_node("Neg", ["plain"], ["against"])]
CASES = {
    "plain": Case(ImageGraph(), CROP),
    "bytes": Case(ImageGraph(kind=UINT8, channels_last=True), ("--set", "short_side=20"), feed=lambda pixels: pixels),
    "last": Case(ImageGraph(channels_last=True), CROP, feed=lambda pixels: to_floats(pixels).transpose(1, 2, 0)),
    "single": Case(ImageGraph(batch=1, baked=1), CROP),
    "fours": Case(ImageGraph(batch=4, baked=4), CROP),
    "open": Case(
        ImageGraph(side="any"),
        ("--set", "image_size=32", "--set", "short_side=40", *NORMALISED),
        prepare=lambda image: crop(image, 40, 32),
    ),
    "squeezed": Case(ImageGraph(), ("--set", "fit=squeeze", "--set", "interpolation=bilinear", *NORMALISED), prepare=squeeze),
    "chosen": Case(
        ImageGraph(after=TWO_OUTPUTS, more_outputs=[value("against", FLOAT, ["batch", OUTPUTS])]),
        (*CROP, "--set", "output=against"),
        output="against",
    ),
    "old": Case(ImageGraph(opset=9, ir=3, weights_are_inputs=True), CROP),
    "hugging": Case(
        ImageGraph(),
        adjacent=(
            "preprocessor_config.json",
            {
                "image_processor_type": "ViTImageProcessor",
                "size": {"height": SIDE, "width": SIDE},
                "resample": 2,
                "image_mean": MEAN,
                "image_std": STD,
            },
        ),
        prepare=squeeze,
    ),
    "timm": Case(
        ImageGraph(),
        adjacent=(
            "config.json",
            {
                "architecture": "resnet18",
                "num_classes": OUTPUTS,
                "pretrained_cfg": {
                    "input_size": [3, SIDE, SIDE],
                    "crop_pct": 0.8,
                    "interpolation": "bilinear",
                    "mean": MEAN,
                    "std": STD,
                },
            },
        ),
        prepare=lambda image: crop(image, mode=Image.Resampling.BILINEAR),
    ),
    "encoder": Case(ImageGraph(), CROP, task="embed"),
    "single-encoder": Case(ImageGraph(batch=1, baked=1), CROP, task="embed"),
}


@dataclass(frozen=True)
class ImportedGraphs:
    service: Service
    files: Path
    printed: dict[str, str]

    def expect(self, name: str, image: Image.Image) -> NDArray[np.float32]:
        """Return the graph's answer by ONNX Runtime alone."""
        case = CASES[name]
        session = onnxruntime.InferenceSession(self.files / name / "model.onnx", providers=["CPUExecutionProvider"])
        batch = np.stack([case.feed(case.prepare(image))] * (case.graph.baked or 1))
        answer: NDArray[np.float32] = session.run([case.output], {"image": batch})[0][0]
        return answer

    def ask(self, route: str, name: str, *images: Image.Image, **query: Any) -> httpx2.Response:
        files = [("image", encode(image)) for image in images]
        return httpx2.post(f"{self.service.url}{route}", files=files, params={"model": name, **query}, timeout=60)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImportedGraphs]:
    folder = tmp_path_factory.mktemp("onnx")
    printed = {}
    for name, case in CASES.items():
        file = case.graph.write(folder / "files" / name / "model.onnx")
        if case.adjacent is not None:
            (file.parent / case.adjacent[0]).write_text(json.dumps(case.adjacent[1]))
        ended = opsin("import", file, "-o", folder / "bundles" / name, "--as", case.task, "--license", "CC0-1.0", *case.options)
        assert ended.returncode == 0, (name, ended.stderr)
        printed[name] = ended.stdout + ended.stderr
    with running(folder / "bundles", max_images=8) as service:
        yield ImportedGraphs(service, folder / "files", printed)


def scores_of(result: dict[str, Any]) -> list[float]:
    found = {prediction["index"]: prediction["score"] for prediction in result["predictions"]}
    return [found[index] for index in range(OUTPUTS)]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def images(count: int) -> list[Image.Image]:
    return [PHOTO, *(noise(40, 60, seed=seed) for seed in range(count - 1))]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.task == "classify"])
def test_a_file_answers_what_onnx_runtime_does(imported: ImportedGraphs, name: str) -> None:
    requested = images(3)
    answer = imported.ask("/v1/classify", name, *requested, top_k=OUTPUTS)
    assert answer.status_code == 200, answer.text
    found = np.array([scores_of(result) for result in answer.json()["results"]])
    expected = np.array([softmax(imported.expect(name, image)) for image in requested])
    assert np.ptp(expected, axis=0).max() > 0.05  # the images differ
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE)
    assert [result["merging"] for result in answer.json()["results"]] == [None] * 3


@pytest.mark.parametrize("name", ["encoder", "single-encoder"])
def test_vectors_are_those_of_onnx_runtime(imported: ImportedGraphs, name: str) -> None:
    requested = images(5)
    answer = imported.ask("/v1/embed", name, *requested)
    assert answer.status_code == 200, answer.text
    expected = np.array([imported.expect(name, image) for image in requested])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    body = answer.json()
    assert (body["kind"], body["dim"], body["normalized"]) == ("image", OUTPUTS, True)
    np.testing.assert_allclose(body["embeddings"], expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize(("name", "batch"), [("single", 1), ("fours", 4)])
def test_a_fixed_batch_is_reported(imported: ImportedGraphs, name: str, batch: int) -> None:
    message = f"a fixed batch of {batch}: it is served with batches of {batch}"
    assert message in " ".join(imported.printed[name].split())
    assert "fixed batch" not in imported.printed["plain"]


@pytest.mark.parametrize(("option", "inputs"), [("merge", "8"), ("merge", "auto"), ("trace", "true")])
@pytest.mark.parametrize("name", ["plain", "bytes"])
def test_there_is_nothing_to_merge_or_trace(imported: ImportedGraphs, name: str, option: str, inputs: str) -> None:
    refused = imported.ask("/v1/classify", name, PHOTO, **{option: inputs})
    assert refused.status_code == 422, refused.text
    assert refused.json()["field"] == option and name in refused.json()["detail"]


@pytest.mark.parametrize("query", [{"merge": "4"}, {"output": "tokens"}])
def test_an_encoder_has_no_tokens(imported: ImportedGraphs, query: dict[str, str]) -> None:
    refused = imported.ask("/v1/embed", "encoder", PHOTO, **query)
    assert refused.status_code == 422, refused.text
    assert "encoder" in refused.json()["detail"]


def test_tasks_are_not_mixed(imported: ImportedGraphs) -> None:
    for route, name in (("/v1/classify", "encoder"), ("/v1/embed", "plain")):
        assert imported.ask(route, name, PHOTO).status_code in (404, 422)


@pytest.mark.parametrize("name", ["bytes", "single"])
def test_open_inference_describes_and_answers(imported: ImportedGraphs, name: str) -> None:
    http = httpx2.Client(base_url=imported.service.url, timeout=60)
    described = http.get(f"/v2/models/{name}").raise_for_status().json()
    assert described["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}]
    assert [(output["name"], output["shape"]) for output in described["outputs"]] == [("scores", [-1, OUTPUTS]), ("labels", [-1, OUTPUTS])]
    assert http.get(f"/v2/models/{name}/ready").status_code == 200
    requested = images(3)
    data = [base64.b64encode(encode(image)).decode() for image in requested]
    body = {"inputs": [{"name": "image", "shape": [3, 1], "datatype": "BYTES", "data": data}]}
    [scores] = [
        one for one in http.post(f"/v2/models/{name}/infer", json=body).raise_for_status().json()["outputs"] if one["name"] == "scores"
    ]
    expected = [softmax(imported.expect(name, image)) for image in requested]
    np.testing.assert_allclose(np.array(scores["data"]).reshape(scores["shape"]), expected, rtol=0, atol=CLOSE)


def test_models_say_what_they_are(imported: ImportedGraphs) -> None:
    listed = {model["name"]: model for model in httpx2.get(f"{imported.service.url}/v1/models", timeout=60).json()["models"]}
    assert listed.keys() == CASES.keys()
    assert {name: model["task"] for name, model in listed.items()} == {name: case.task for name, case in CASES.items()}


def test_the_same_image_has_the_same_scores_in_any_batch(imported: ImportedGraphs) -> None:
    for name in ("plain", "fours"):
        alone = imported.ask("/v1/classify", name, PHOTO, top_k=OUTPUTS).raise_for_status().json()["results"][0]
        among = imported.ask("/v1/classify", name, *images(8)[1:], PHOTO, top_k=OUTPUTS).raise_for_status().json()["results"][-1]
        np.testing.assert_allclose(scores_of(alone), scores_of(among), rtol=0, atol=1e-6)


def test_scores_that_the_graph_has_made_are_not_made_again(tmp_path: Path) -> None:
    """Many published graphs end in a softmax: another one would make all labels alike."""
    file = ImageGraph(after=[helper.make_node("Softmax", ["plain"], ["scores"], axis=1)]).write(tmp_path / "model.onnx")
    ended = opsin("import", file, "-o", tmp_path / "bundles/soft", "--as", "classify", "--license", "CC0-1.0", *CROP)
    assert ended.returncode == 0, ended.stderr
    expected = onnxruntime.InferenceSession(file).run(None, {"image": to_floats(crop(PHOTO))[None]})[0][0]
    with running(tmp_path / "bundles") as service:
        query = {"model": "soft", "top_k": OUTPUTS}
        answer = httpx2.post(f"{service.url}/v1/classify", params=query, content=encode(PHOTO), timeout=60)
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(scores_of(answer.json()["results"][0]), expected, rtol=0, atol=CLOSE)


def test_a_producer_called_like_another_format_is_read(tmp_path: Path) -> None:
    """ONNX Runtime takes a file for its own format, which is not checked, if the bytes from the fifth on are `ORTM`."""
    model = ImageGraph().model()
    model.producer_name = "ORTMaker"
    file = tmp_path / "model.onnx"
    file.write_bytes(model.SerializeToString())
    assert file.read_bytes()[4:8] == b"ORTM"
    ended = opsin("import", file, "-o", tmp_path / "bundles/made", "--as", "classify", "--license", "CC0-1.0", *CROP)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("taken", ["scores", "\x1b]0;title\x07"])
def test_names_in_a_file_do_not_steer_a_terminal(taken: str, tmp_path: Path) -> None:
    other = "scores" if taken != "scores" else "\x1b]0;title\x07"
    after = [helper.make_node("Identity", ["plain"], [taken]), helper.make_node("Shape", ["plain"], [other])]
    model = ImageGraph(after=after).model()
    del model.graph.output[:]
    model.graph.output.extend([value(taken, FLOAT, ["batch", OUTPUTS]), value(other, INT64, [2])])
    file = tmp_path / "model.onnx"
    file.write_bytes(model.SerializeToString())
    ended = opsin("import", file, "-o", tmp_path / "bundles/named", "--as", "classify", "--license", "CC0-1.0", *CROP)
    assert ended.returncode == 0, ended.stderr
    assert r"\u001b]0;title\u0007" in ended.stdout and "\x1b" not in ended.stdout


def test_labels_next_to_a_file_are_read(tmp_path: Path) -> None:
    """transformers' config.json, as exporters copy it."""
    labels = {str(index): label for index, label in enumerate(("cat", "dog", "fox", "owl"))}
    file = ImageGraph().write(tmp_path / "given/model.onnx")
    (file.parent / "config.json").write_text(json.dumps({"model_type": "resnet", "image_size": SIDE, "id2label": labels}))
    name, content = CASES["hugging"].adjacent or ("", {})
    (file.parent / name).write_text(json.dumps(content))
    ended = opsin("import", file, "-o", tmp_path / "bundles/animals", "--license", "CC0-1.0")
    assert ended.returncode == 0, ended.stderr
    spec = json.loads((tmp_path / "bundles/animals/1/bundle.json").read_text())
    assert (spec["task"], spec["labels"]) == ("classify", list(labels.values()))


def test_labels_of_a_file_are_served(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\nfox\nowl\n")
    file = ImageGraph().write(tmp_path / "model.onnx")
    ended = opsin("import", file, "-o", tmp_path / "bundles/animals", "--labels", labels, "--license", "CC0-1.0", *CROP)
    assert ended.returncode == 0, ended.stderr
    spec = json.loads((tmp_path / "bundles/animals/1/bundle.json").read_text())
    assert (spec["task"], spec["labels"]) == ("classify", ["cat", "dog", "fox", "owl"])


def test_data_inside_the_folder_goes_into_the_bundle(tmp_path: Path) -> None:
    file = onnx_classifiers.externally(tmp_path / "given/model.onnx", "weights.bin")
    onnx_classifiers.weight_file(tmp_path / "given/weights.bin")
    ended = opsin("import", file, "-o", tmp_path / "bundles/split", "--as", "classify", "--license", "CC0-1.0", *CROP)
    assert ended.returncode == 0, ended.stderr
    session = onnxruntime.InferenceSession(file)
    expected = softmax(session.run(None, {"image": to_floats(crop(PHOTO))[None]})[0][0])
    for inputs in (tmp_path / "given").iterdir():
        inputs.unlink()
    with running(tmp_path / "bundles") as service:
        query = {"model": "split", "top_k": OUTPUTS}
        answer = httpx2.post(f"{service.url}/v1/classify", params=query, content=encode(PHOTO), timeout=60)
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(scores_of(answer.json()["results"][0]), expected, rtol=0, atol=CLOSE)


def test_a_half_precision_input_is_served(tmp_path: Path) -> None:
    file = ImageGraph(kind=FLOAT16).write(tmp_path / "model.onnx")
    ended = opsin("import", file, "-o", tmp_path / "bundles/half", "--as", "classify", "--license", "CC0-1.0", *CROP)
    assert ended.returncode == 0, ended.stderr
    halves = to_floats(crop(PHOTO)).astype(np.float16)[None]
    expected = softmax(onnxruntime.InferenceSession(file).run(None, {"image": halves})[0][0])
    with running(tmp_path / "bundles") as service:
        query = {"model": "half", "top_k": OUTPUTS}
        answer = httpx2.post(f"{service.url}/v1/classify", params=query, content=encode(PHOTO), timeout=60)
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(scores_of(answer.json()["results"][0]), expected, rtol=0, atol=1e-3)
