"""Inpainting through the Open Inference Protocol: files in BYTES, options as parameters of the request."""

from __future__ import annotations

import base64
import json
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import pytest
import tritonclient.http as triton

from tests.support.images import box_mask, decode, encode, noise, outside
from tests.support.task_clients import Painter

HOLE = (20, 10, 40, 26)
IMAGE = noise(40, 60)
FILE, MASK = encode(IMAGE), box_mask(40, 60, HOLE)


def tensor(name: str, *files: bytes) -> dict[str, Any]:
    return {"name": name, "shape": [len(files), 1], "datatype": "BYTES", "data": [base64.b64encode(file).decode() for file in files]}


def infer(painter: Painter, *inputs: dict[str, Any], **parameters: Any) -> Any:
    answer = painter.gateway.http.post("/v2/models/painter/infer", json={"inputs": list(inputs), "parameters": {"steps": 2, **parameters}})
    return answer.status_code, answer.json()


def test_inputs_and_outputs_are_named_as_the_parts(painter: Painter) -> None:
    described = painter.gateway.http.get("/v2/models/painter").json()
    assert [(one["name"], one["datatype"], one["shape"]) for one in described["inputs"]] == [
        ("image", "BYTES", [-1, 1]),
        ("mask", "BYTES", [-1, 1]),
    ]
    assert [(one["name"], one["datatype"]) for one in described["outputs"]] == [("image", "BYTES"), ("seed", "INT64")]


def test_a_filled_image_comes_back_in_base64(painter: Painter) -> None:
    status, answer = infer(painter, tensor("image", FILE), tensor("mask", MASK), seed=5, deterministic=True)
    assert status == 200, answer
    assert answer["parameters"] == {"steps": 2, "sampler": "ddim", "method": "network"}
    image, seed = answer["outputs"]
    assert (image["shape"], seed["shape"], seed["data"]) == ([1, 1], [1, 1], [5])
    assert base64.b64decode(image["data"][0]) == painter.fill(FILE, MASK, seed=5, deterministic=True).content


def test_several_images_with_several_samples_each(painter: Painter) -> None:
    status, answer = infer(painter, tensor("image", FILE, FILE), samples=3, seed=1, mask="box:20,10,20,16")
    assert status == 200, answer
    image, seed = answer["outputs"]
    assert image["shape"] == [2, 3] and seed["data"] == [1, 2, 3] * 2
    outer = outside(40, 60, HOLE)
    for file in image["data"]:
        assert np.array_equal(decode(base64.b64decode(file))[outer], np.asarray(IMAGE)[outer])


def test_binary_tensors(painter: Painter) -> None:
    client = triton.InferenceServerClient(painter.service.address)
    inputs = []
    for name, file in (("image", FILE), ("mask", MASK)):
        part = triton.InferInput(name, [1, 1], "BYTES")
        part.set_data_from_numpy(np.array([[file]], object), binary_data=True)
        inputs.append(part)
    output = triton.InferRequestedOutput("image", binary_data=True)
    answer = client.infer("painter", inputs, outputs=[output], parameters={"steps": 2, "seed": 5, "deterministic": True})
    client.close()
    assert answer.as_numpy("image")[0, 0] == painter.fill(FILE, MASK, seed=5, deterministic=True).content


@pytest.mark.parametrize(
    ("parameters", "status", "reason"),
    [
        ({"steps": 0}, 422, "steps: 0 must be an integer from 1 to 1000"),
        ({"steps": 1000, "samples": 8}, 413, "at most 4000 steps in one request"),
        ({"mask": "box:0,0,99,99"}, 422, "mask: the box from 0,0 to 99,99 leaves the image"),
    ],
)
def test_bad_parameters_are_named(painter: Painter, parameters: dict[str, Any], status: int, reason: str) -> None:
    got, answer = infer(painter, tensor("image", FILE), **parameters)
    assert reason in answer["error"] and got in (status, 400)


def test_compressing_a_large_answer_delays_no_other_request(painter: Painter) -> None:
    file = encode(noise(1000, 1000), "JPEG", quality=15)
    content = struct.pack("<I", len(file)) + file
    image = {"name": "image", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 2 * len(content)}}
    head = json.dumps({"inputs": [image], "parameters": {"steps": 1, "mask": "box:0,0,20,16", "seed": 1}}).encode()

    def ask(encoding: str) -> httpx2.Response:
        headers = {"Inference-Header-Content-Length": str(len(head)), "Accept-Encoding": encoding}
        return painter.gateway.http.post("/v2/models/painter/infer", content=head + 2 * content, headers=headers)

    plain = ask("identity")
    assert plain.status_code == 200, plain.text
    started = time.perf_counter()
    zlib.compress(plain.content, 1)
    compressing = time.perf_counter() - started

    def slowest_health_check() -> float:
        waits = []
        with ThreadPoolExecutor(1) as threads:
            future = threads.submit(ask, "gzip")
            while not future.done():
                started = time.perf_counter()
                assert painter.gateway.http.get("/health/live").status_code == 200
                waits.append(time.perf_counter() - started)
            assert future.result().content == plain.content
        return max(waits)

    assert any(slowest_health_check() < compressing / 2 for _ in range(4)), "each answer would be waited for, not one by chance"
