"""The codec against the encoder and decoder of NVIDIA's own client: what it writes we read, what we write it reads."""

import gzip
import itertools
import json
import struct
import zlib

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton

from server.gateway.open_inference import compression, datatypes
from server.gateway.open_inference.errors import to_response
from server.gateway.open_inference.tensors import InferRequest, InferTensor, decode_request, encode_response
from server.http.problems import Problem

LIMIT = 1 << 20

SAMPLES = {
    "BOOL": np.array([[True, False, True], [False, False, True]]),
    "UINT8": np.array([[0, 1, 255], [7, 8, 9]], np.uint8),
    "UINT16": np.array([[0, 1, 65535], [7, 8, 9]], np.uint16),
    "UINT32": np.array([[0, 1, 2**32 - 1], [7, 8, 9]], np.uint32),
    "UINT64": np.array([[0, 1, 2**64 - 1], [7, 8, 9]], np.uint64),
    "INT8": np.array([[-128, 1, 127], [7, 8, 9]], np.int8),
    "INT16": np.array([[-(2**15), 1, 2**15 - 1], [7, 8, 9]], np.int16),
    "INT32": np.array([[-(2**31), 1, 2**31 - 1], [7, 8, 9]], np.int32),
    "INT64": np.array([[-(2**63), 1, 2**63 - 1], [7, 8, 9]], np.int64),
    "FP16": np.array([[-65504, 0.1, 1e-7], [7, 8, 9]], np.float16),
    "FP32": np.array([[-3.4e38, 0.1, 1e-40], [7, 8, 9]], np.float32),
    "FP64": np.array([[-1.7e308, 0.1, 5e-324], [7, 8, 9]], np.float64),
    "BF16": np.array([[-3.4e38, 0.1, 1e-39], [7, 8, 9]], ml_dtypes.bfloat16),
    "BYTES": np.array([[b"", "ä €".encode(), b"two words"], [b"7", b"8", b"9"]], object),
}
COMPRESSIONS = (None, "gzip", "deflate")


def inflate(body: bytes, encoding: str | None, limit: int = LIMIT) -> bytes:
    return b"".join(compression.inflate_pieces(body, encoding, limit)) if encoding else body


def as_sent(datatype: str, *, binary: bool) -> triton.InferInput:
    sample = SAMPLES[datatype]
    tensor = triton.InferInput("x", list(sample.shape), datatype)
    return tensor.set_data_from_numpy(sample, binary_data=binary)


def request_body(inputs, outputs=None, compression=None) -> tuple[bytes, str | None]:
    body, json_size = triton.InferenceServerClient.generate_request_body(inputs, outputs=outputs)
    encode = {None: bytes, "gzip": gzip.compress, "deflate": zlib.compress}[compression]
    return encode(body), None if json_size is None else str(json_size)


def as_read(output: InferTensor, encoding: str | None) -> triton.InferResult:
    body, header_length = encode_response("m", "1", "", [output], {})
    packed = body if encoding is None else compression.compress(body, encoding)
    return triton.InferenceServerClient.parse_response_body(packed, header_length=header_length, content_encoding=encoding)


REQUESTED_OUTPUTS = {
    "by default": None,
    "as binary": [triton.InferRequestedOutput("x")],
    "as json": [triton.InferRequestedOutput("x", binary_data=False)],
}


@pytest.mark.parametrize(
    ("datatype", "answer_form"),
    [pair for pair in itertools.product(SAMPLES, REQUESTED_OUTPUTS) if pair != ("BF16", "as json")],  # BF16 has no JSON form
)
def test_every_datatype_survives_the_way_there_and_back(datatype, answer_form):
    for way_in, way_out in itertools.product(COMPRESSIONS, COMPRESSIONS):
        body, header_length = request_body([as_sent(datatype, binary=True)], REQUESTED_OUTPUTS[answer_form], way_in)

        request = decode_request(inflate(body, way_in), header_length, raw_input="image")
        echo = InferTensor("x", datatype, request.inputs[0].array, binary=request.wants_binary("x"))
        result = as_read(echo, way_out)

        assert echo.binary == (answer_form != "as json")
        assert result.as_numpy("x").dtype == SAMPLES[datatype].dtype or datatype == "BYTES"
        np.testing.assert_array_equal(result.as_numpy("x").astype(object), expected_array(datatype, binary=echo.binary))


def expected_array(datatype: str, *, binary: bool) -> np.ndarray:
    sample = SAMPLES[datatype].astype(object)
    return np.vectorize(bytes.decode, otypes=[object])(sample) if datatype == "BYTES" and not binary else sample


@pytest.mark.parametrize("datatype", sorted(set(SAMPLES) - {"BF16", "FP16"}))
@pytest.mark.parametrize("way_in", COMPRESSIONS)
def test_json_tensors_of_the_client_are_read(datatype, way_in):
    body, header_length = request_body([as_sent(datatype, binary=False)], compression=way_in)

    (tensor,) = decode_request(inflate(body, way_in), header_length, raw_input="image").inputs

    assert not tensor.binary
    np.testing.assert_array_equal(tensor.array, SAMPLES[datatype])


def infer(inputs: list[dict], binary: bytes = b"", **fields) -> InferRequest:
    header = json.dumps({"inputs": inputs, **fields}).encode()
    return decode_request(header + binary, str(len(header)), raw_input="image")


def test_binary_tensors_are_split_in_order_skipping_json_ones():
    request = infer(
        [
            {"name": "a", "shape": [2], "datatype": "UINT16", "parameters": {"binary_data_size": 4}},
            {"name": "b", "shape": [1, 2], "datatype": "INT32", "data": [[5, 6]]},
            {"name": "c", "shape": [0, 3], "datatype": "FP32", "parameters": {"binary_data_size": 0}},
            {"name": "d", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 7}},
        ],
        struct.pack("<HHI3s", 1, 2, 3, b"\xff\xd8\xff"),
    )

    assert [(t.name, t.array.tolist(), t.array.shape) for t in request.inputs] == [
        ("a", [1, 2], (2,)),
        ("b", [[5, 6]], (1, 2)),
        ("c", [], (0, 3)),
        ("d", [b"\xff\xd8\xff"], (1,)),
    ]


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [[[1], [2]], [[3], [4]]]], ids=["flat", "half nested", "nested"])
def test_json_data_may_be_flat_or_nested(data):
    (tensor,) = infer([{"name": "x", "shape": [2, 2, 1], "datatype": "FP16", "data": data}]).inputs
    assert tensor.array.tolist() == [[[1], [2]], [[3], [4]]]


def test_unknown_keys_are_ignored_and_the_id_comes_through():
    request = infer([], id="abc", model_name="m", outputs=[{"name": "scores", "later": 1}], parameters={"priority": 1})
    assert (request.id, request.outputs[0].name, request.parameters) == ("abc", "scores", {"priority": 1})


def test_header_length_zero_makes_body_one_image():
    request = decode_request(b"\xff\xd8\xff", "0", raw_input="image")
    assert [(t.name, t.datatype, t.array.tolist()) for t in request.inputs] == [("image", "BYTES", [b"\xff\xd8\xff"])]


@pytest.mark.parametrize(
    ("request_default", "of_the_output", "binary"),
    [(None, None, False), (True, None, True), (True, False, False), (False, True, True), (None, True, True)],
)
def test_binary_data_of_output_overrides_default_of_request(request_default, of_the_output, binary):
    request = infer(
        [],
        parameters={} if request_default is None else {"binary_data_output": request_default},
        outputs=[{"name": "scores", "parameters": {} if of_the_output is None else {"binary_data": of_the_output}}],
    )
    assert request.wants_binary("scores") is binary


X = {"name": "x", "shape": [2], "datatype": "INT8"}


@pytest.mark.parametrize(
    ("tensor", "binary", "message"),
    [
        (X | {"data": [1, 2, 3]}, b"", "3 elements of data, but the shape [2] needs 2"),
        (X | {"data": [1, [2]]}, b"", "mixes lists and values"),
        (X | {"data": [1, 2.5]}, b"", "integers"),
        (X | {"data": [True, False]}, b"", "integers"),
        (X | {"data": [1, 128]}, b"", "range of INT8"),
        (X | {"datatype": "FP16", "data": [1, 1e9]}, b"", "range of FP16"),
        (X | {"datatype": "FP32", "data": [1, 1e39]}, b"", "range of FP32"),
        (X | {"datatype": "UINT64", "data": [1, 2**64]}, b"", "range of UINT64"),
        (X | {"datatype": "FP64", "data": [1, None]}, b"", "numbers"),
        (X | {"datatype": "BYTES", "data": ["a", 1]}, b"", "strings"),
        (X | {"datatype": "BF16", "data": [1, 2]}, b"", "BF16 has no JSON form"),
        (X | {"datatype": "FP8", "data": [1, 2]}, b"", "datatype 'FP8' is not one of"),
        (X | {"shape": [-1], "data": [1]}, b"", "negative"),
        (X | {"shape": [2**62] * 10_000, "data": [1]}, b"", "10000 dimensions; at most 32 are possible"),
        (X | {"shape": [0, 2**70], "data": []}, b"", "not possible"),
        (X, b"", "either as data or"),
        (X | {"data": [1, 2], "parameters": {"binary_data_size": 2}}, b"ab", "either as data or"),
        (X | {"parameters": {"binary_data_size": 3}}, b"abc", "3 bytes of binary data, but 2 elements of INT8 need 2"),
        (X | {"parameters": {"binary_data_size": 2}}, b"abc", "3 bytes follow the request JSON, but binary_data_size adds up to 2"),
        (X | {"parameters": {"binary_data_size": 2}}, b"a", "1 bytes of binary data, but"),
        (X | {"parameters": {"binary_data_size": "2"}}, b"ab", "binary_data_size must be an integer"),
        (X | {"parameters": {"binary_data_size": -2}}, b"ab", "binary_data_size must be an integer"),
        (
            X | {"datatype": "BYTES", "parameters": {"binary_data_size": 9}},
            struct.pack("<IIc", 0, 2, b"a"),
            "element 1 claims 2 bytes; 1 are left",
        ),
        (
            X | {"datatype": "BYTES", "parameters": {"binary_data_size": 9}},
            struct.pack("<IIc", 0, 0, b"a"),
            "1 bytes of binary data are left over",
        ),
        (
            X | {"datatype": "BYTES", "parameters": {"binary_data_size": 9}},
            struct.pack("<I5s", 5, b"abcde"),
            "ends before the length of element 1",
        ),
        (X | {"datatype": "BYTES", "shape": [2**40], "parameters": {"binary_data_size": 4}}, bytes(4), "cannot hold"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_with_the_reason(tensor, binary, message):
    with pytest.raises(Problem) as refused:
        infer([tensor], binary)
    assert to_response(refused.value).status_code == 400
    assert message in refused.value.detail


@pytest.mark.parametrize("header_length", ["-1", "3000", "abc", "1e1", "٣", "9" * 5000])
def test_a_header_length_outside_the_body_is_refused(header_length):
    with pytest.raises(Problem, match="Inference-Header-Content-Length"):
        decode_request(b'{"inputs":[]}', header_length, raw_input="image")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"inputs": 3}', b"\xff\xd8\xff", b'{"inputs":[{"name":"x"}]}', b"[" * 100_000])
def test_what_is_no_request_is_refused(body):
    with pytest.raises(Problem, match="failed to parse the request JSON"):
        decode_request(body, None, raw_input="image")


def test_the_same_input_twice_is_refused():
    with pytest.raises(Problem, match="twice"):
        infer([X | {"data": [1, 2]}, X | {"data": [1, 2]}])


def test_bf16_has_no_json_form():
    with pytest.raises(Problem, match="BF16"):
        datatypes.to_json(np.zeros(1, np.float32), "BF16")


def test_bytes_that_are_no_text_have_no_json_form():
    with pytest.raises(Problem, match="UTF-8"):
        datatypes.to_json(np.array([b"\xff\xd8"], object), "BYTES")


def test_bf16_rounds_as_ml_dtypes_does():
    values = np.concatenate(
        [np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32).view(np.float32), np.float32([np.inf, -np.inf, 3.4e38])]
    )
    ours = np.frombuffer(datatypes.to_binary(values, "BF16"), ml_dtypes.bfloat16)
    with np.errstate(over="ignore", invalid="ignore"):
        theirs = values.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(ours.astype(np.float32), theirs.astype(np.float32))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_inflated_no_further_than_the_limit(encoding):
    bomb = compression.compress(bytes(LIMIT + 1), encoding)
    with pytest.raises(Problem) as refused:
        inflate(bomb, encoding)
    assert to_response(refused.value).status_code == 413
    assert inflate(bomb, encoding, LIMIT + 1) == bytes(LIMIT + 1)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_damaged_stream_is_refused(encoding):
    good = compression.compress(b"something", encoding)
    for damaged in (b"", b"something", good[:-1], good + b"x", bytes([good[0] ^ 255]) + good[1:]):
        with pytest.raises(Problem) as refused:
            inflate(damaged, encoding)
        assert to_response(refused.value).status_code == 400


def test_another_encoding_is_answered_with_those_that_we_know():
    with pytest.raises(Problem) as refused:
        inflate(b"", "br")
    response = to_response(refused.value)
    assert (response.status_code, response.headers["accept-encoding"]) == (501, "gzip, deflate")


@pytest.mark.parametrize(
    ("accept_encoding", "encoding"),
    [(None, None), ("gzip", "gzip"), ("deflate", "deflate"), ("gzip, deflate, br", None), ("br", None), ("identity", None)],
)
def test_only_a_single_named_encoding_requests_compression(accept_encoding, encoding):
    assert compression.requested_encoding(accept_encoding) == encoding
