"""Pairs in the Open Inference Protocol, asked by NVIDIA's client: texts as BYTES, labels as a JSON array in a string."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.support.task_clients import PICTURES, Speaker, cosines

TEXTS = ["a dog", "the red car of the house", "naïve 🙂", "eat " * 60]
LABELS = ["dog", "red car", 'a "quoted" cat']
SAME = 0.99999


@pytest.fixture
def client(speaker: Speaker) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(speaker.service.address) as client:
        yield client


def texts(values: Sequence[str | bytes], binary: bool = True) -> triton.InferInput:
    encoded = [text if isinstance(text, bytes) else text.encode() for text in values]
    array = np.array(encoded, object).reshape(-1, 1)
    return triton.InferInput("text", list(array.shape), "BYTES").set_data_from_numpy(array, binary_data=binary)


def images(values: Sequence[bytes] = PICTURES) -> triton.InferInput:
    array = np.array(values, object).reshape(-1, 1)
    return triton.InferInput("image", list(array.shape), "BYTES").set_data_from_numpy(array)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("pair", ["cit", "maws", "flip"])
def test_texts_have_vectors(speaker: Speaker, client: triton.InferenceServerClient, pair: str, binary: bool) -> None:
    result = client.infer(pair, [texts(TEXTS, binary)])
    found = result.as_numpy("embedding")
    assert (found.shape, found.dtype) == ((len(TEXTS), 24), np.float32)
    assert cosines(found, speaker.vectors_of_texts(pair, TEXTS)).min() >= SAME
    assert [output["name"] for output in result.get_response()["outputs"]] == ["embedding"]
    assert result.get_response()["parameters"] == {"truncated": 1}


def test_256_texts_come_at_once(speaker: Speaker, client: triton.InferenceServerClient) -> None:
    many = [f"a {number}" for number in range(256)]
    found = client.infer("cit", [texts(many)]).as_numpy("embedding")
    assert cosines(found[[0, 77, 255]], speaker.vectors_of_texts("cit", ["a 0", "a 77", "a 255"])).min() >= SAME


def test_images_have_vectors_where_no_labels_are_given(speaker: Speaker, client: triton.InferenceServerClient) -> None:
    result = client.infer("cit", [images()], parameters={"merge": "2"})
    assert cosines(result.as_numpy("embedding"), speaker.vectors_of_images("cit", PICTURES, merge=[2, 2])).min() >= SAME
    assert [output["name"] for output in result.get_response()["outputs"]] == ["embedding"]
    assert cosines(client.infer("mute", [images()]).as_numpy("embedding"), np.eye(4, 24)).shape == (4,)


def scores_of(answer: dict[str, Any]) -> np.ndarray:
    """Return the scores of an answer of `/v1/zero-shot`: (images, labels)."""
    rows = [sorted(result["predictions"], key=lambda one: one["index"]) for result in answer["results"]]
    return np.array([[one["score"] for one in row] for row in rows], np.float32)


def test_images_have_scores_of_the_labels_that_are_given(speaker: Speaker, client: triton.InferenceServerClient) -> None:
    for parameters, options in (
        ({"labels": json.dumps(LABELS)}, {}),
        ({"labels": json.dumps(LABELS), "templates": '["{}", "a photo of the {}"]'}, {"template": ["{}", "a photo of the {}"]}),
    ):
        result = client.infer("cit", [images()], parameters=parameters)
        expected = scores_of(speaker.run("zero-shot", PICTURES, model="cit", label=LABELS, **options))
        assert result.as_numpy("scores").shape == (len(PICTURES), len(LABELS))
        np.testing.assert_allclose(result.as_numpy("scores"), expected, atol=1e-5)
        assert cosines(result.as_numpy("embedding"), speaker.vectors_of_images("cit", PICTURES)).min() >= SAME
        assert result.get_response()["parameters"] == {"truncated": 0}


def test_labels_may_be_a_plain_json_list(speaker: Speaker) -> None:
    """Parameters are scalars in the protocol, but custom clients may send lists."""
    request = {
        "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(PICTURES[0]).decode()]}],
        "parameters": {"labels": LABELS},
        "outputs": [{"name": "scores"}],
    }
    response = speaker.gateway.http.post("/v2/models/cit/infer", json=request).raise_for_status().json()
    expected = scores_of(speaker.run("zero-shot", PICTURES[:1], model="cit", label=LABELS))
    np.testing.assert_allclose(response["outputs"][0]["data"], expected.ravel(), atol=1e-5)


def test_the_documents_name_both_inputs_and_outputs(client: triton.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("cit")
    assert metadata["inputs"] == [{"name": name, "datatype": "BYTES", "shape": [-1, 1]} for name in ("image", "text")]
    assert metadata["outputs"] == [
        {"name": "embedding", "datatype": "FP32", "shape": [-1, 24]},
        {"name": "scores", "datatype": "FP32", "shape": [-1, -1]},
    ]
    assert [tensor["dims"] for tensor in client.get_model_config("cit")["output"]] == [[24], [-1]]


def test_pair_without_tokenizer_documents_images_and_vectors(client: triton.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("mute")
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["image"]
    assert [tensor["name"] for tensor in metadata["outputs"]] == ["embedding"]


@pytest.mark.parametrize(
    ("model", "inputs", "parameters", "status", "words"),
    [
        ("cit", [texts([b"caf\xe9"])], {}, "400", "input 'text': element 0 is not UTF-8"),
        ("cit", [texts(["a", " "])], {}, "400", "text[1]: empty"),
        ("cit", [texts(["a", "x" * 2049])], {}, "413", "text[1]: 2049 characters"),
        ("cit", [texts(["a"] * 257)], {}, "413", "batch-size must be <= 256 for 'cit'"),
        ("cit", [images(), texts(["a"] * 4)], {}, "400", "one input at a time, got image and text"),
        ("cit", [texts(["a"])], {"labels": '["a"]'}, "400", "the parameter 'labels' goes with image, and 'text' was sent"),
        ("cit", [images()], {"labels": "a dog"}, "400", 'labels: \'a dog\' must be a JSON array in a string, such as ["a dog", "a cat"]'),
        ("cit", [images()], {"labels": "{}"}, "400", "must be a JSON array in a string"),
        ("cit", [images()], {"labels": "[" * 5000}, "400", "must be a JSON array in a string"),
        ("cit", [images()], {"labels": "[1, 2]"}, "400", "label"),
        ("cit", [images()], {"labels": "[]"}, "400", "label: missing"),
        ("cit", [images()], {"labels": '["a", " a"]'}, "400", "label[1]: "),
        ("cit", [images()], {"labels": '["\\ud800"]'}, "400", "must be a JSON array in a string"),
        ("cit", [images()], {"labels": '["a"]', "templates": '["x"]'}, "400", "template[0]: 'x' must contain `{}` once"),
        ("mute", [texts(["a"])], {}, "400", "opsin bundles tokenizer mute FILE"),
        ("mute", [images()], {"labels": '["a"]'}, "400", "opsin bundles tokenizer mute FILE"),
        ("cit", [images([b"no image"])], {}, "400", "image: not an image"),
    ],
)
def test_bad_input_is_refused_by_name(
    client: triton.InferenceServerClient,
    model: str,
    inputs: list[triton.InferInput],
    parameters: dict[str, str],
    status: str,
    words: str,
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        client.infer(model, inputs, parameters=parameters)
    assert refused.value.status() == status
    assert words in refused.value.message()


def test_scores_without_labels_are_refused_with_what_is_missing(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as refused:
        client.infer("cit", [images()], outputs=[triton.InferRequestedOutput("scores")])
    assert refused.value.status() == "400"
    assert "labels" in refused.value.message()
