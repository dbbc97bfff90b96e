"""Videos and tracks in the Open Inference Protocol: parts are inputs, options are parameters."""

from __future__ import annotations

import base64
import json
from typing import Any

from tests.actions.test_route import ANSWER, FILM, ask
from tests.support.gateway_process import Gateway

INFER = "/v2/models/watcher/infer"


def infer(gateway: Gateway, name: str, *files: bytes, **parameters: Any) -> dict[str, Any]:
    data = [base64.b64encode(file).decode() for file in files]
    body = {"inputs": [{"name": name, "datatype": "BYTES", "shape": [len(data)], "data": data}], "parameters": parameters}
    answer = gateway.http.post(INFER, json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return {output["name"]: output for output in answer.json()["outputs"]}


def test_a_model_s_tensors_are_named_like_its_parts(gateway: Gateway) -> None:
    metadata = gateway.http.get("/v2/models/watcher").json()
    assert [(one["name"], one["datatype"]) for one in metadata["inputs"]] == [("video", "BYTES"), ("tracks", "BYTES")]
    assert [(one["name"], one["datatype"], one["shape"]) for one in metadata["outputs"]] == [
        ("people", "BYTES", [-1, 1]),
        ("info", "FP64", [-1, 5]),
    ]


def test_info_has_size_rate_and_length_of_each_video(gateway: Gateway) -> None:
    outputs = infer(gateway, "video", FILM, FILM)
    assert outputs["people"]["shape"] == [2, 1] and outputs["people"]["data"] == ["[]", "[]"]
    assert outputs["info"]["data"] == [64, 48, 10, 6, 0.6] * 2


def test_tracks_are_labelled_as_over_the_other_route(gateway: Gateway) -> None:
    expected = ask(gateway, tracks=ANSWER, top_k=1, end_s=2.0).raise_for_status().json()["people"]
    outputs = infer(gateway, "tracks", json.dumps(ANSWER).encode(), top_k=1, end_s=2.0)
    assert json.loads(outputs["people"]["data"][0]) == expected
    assert [len(person["actions"]) for person in expected] == [2, 2]


def test_errors_have_the_form_of_the_protocol(gateway: Gateway) -> None:
    data = base64.b64encode(b"no video").decode()
    body = {"inputs": [{"name": "video", "datatype": "BYTES", "shape": [1], "data": [data]}]}
    answer = gateway.http.post(INFER, json=body, timeout=120)
    assert answer.status_code == 415 and "not a video" in answer.json()["error"]
