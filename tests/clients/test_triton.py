"""NVIDIA's client, where a model fails on a text. tests/image_text asks it for what succeeds."""

from __future__ import annotations

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.support.fake_vectors import BROKEN
from tests.support.gateway_process import Gateway


def test_an_error_names_the_input_that_was_given(gateway: Gateway) -> None:
    text = triton.InferInput("text", [1, 1], "BYTES").set_data_from_numpy(np.array([[BROKEN.encode()]], object))
    with (
        triton.InferenceServerClient(gateway.url.removeprefix("http://")) as client,
        pytest.raises(InferenceServerException, match="text: the model does not like this text") as failed,
    ):
        client.infer("words", [text])
    assert failed.value.status() == "500"
