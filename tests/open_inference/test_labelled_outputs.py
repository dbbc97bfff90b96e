"""The outputs of bundles that no running service of these tests has: few classes, equal scores."""

from __future__ import annotations

import numpy as np
import pytest

from models.bundle import BundleSpec
from server.gateway.open_inference import protocol_model
from server.gateway.open_inference.protocol_model import model_config, model_metadata
from server.gateway.open_inference.task_tensors import write_outputs
from server.gateway.open_inference.tensors import InferRequest, InferTensor, RequestedOutput
from tests.support.fake_worker import make_spec

LOGITS = np.log(np.array([[0.2, 0.5, 0.3], [0.25, 0.5, 0.25]], np.float32))


@pytest.fixture
def spec() -> BundleSpec:
    return make_spec().model_copy(update={"labels": ["cat", "dog", "fox: red"]})


def answer(spec: BundleSpec, *outputs: RequestedOutput) -> list[InferTensor]:
    offered = protocol_model.protocol_model(spec)
    replies = [{"logits": logits, "tokens": np.array([17, 17], np.int32)} for logits in LOGITS]
    arrays, _ = offered.task.to_tensors(replies, offered.task.plan(offered.task.options(), spec), spec)
    return write_outputs(InferRequest("", {}, (), outputs), offered.outputs, arrays)


def test_label_count_is_class_count_below_five_classes(spec):
    _, labels = answer(spec)
    assert labels.array.tolist() == [[b"dog", b"fox: red", b"cat"], [b"dog", b"cat", b"fox: red"]]
    assert model_metadata(spec, ["1"])["outputs"][1]["shape"] == [-1, 3]
    assert model_config(spec, 8)["output"][1]["dims"] == [3]


def test_the_note_is_in_the_configuration_alone(spec):
    assert model_config(spec, 8)["parameters"] == {"note": {"string_value": "For tests."}}
    assert set(model_metadata(spec, ["1"])) == {"name", "versions", "platform", "inputs", "outputs"}
    assert model_config(spec.model_copy(update={"note": ""}), 8)["parameters"] == {}


@pytest.mark.parametrize("count", [2, 3, 100])
def test_classification_gives_score_index_and_label_of_the_best(spec, count):
    (best,) = answer(spec, RequestedOutput("scores", {"classification": count}))
    assert best.datatype == "BYTES"
    assert best.array.tolist() == [
        [b"0.500000:1:dog", b"0.300000:2:fox: red", b"0.200000:0:cat"][:count],
        [b"0.500000:1:dog", b"0.250000:0:cat", b"0.250000:2:fox: red"][:count],
    ]
