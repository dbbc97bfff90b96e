"""The client and the command against the real service."""

from __future__ import annotations

import asyncio
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.bundle import read
from opsin import AsyncClient, Client, Refused
from tests.support.bundles.vit import TINY, expected_scores
from tests.support.images import picture
from tests.support.processes import opsin
from tests.support.serve_process import Service

TOKENS = TINY.patches + TINY.special_tokens


def test_every_kind_of_picture_gets_the_answer_of_its_pixels(service: Service, bundles: Path, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(picture(seed=3))
    with Image.open(BytesIO(picture(seed=3))) as image, Client(service.url) as client:
        found = client.classify([file, str(file), file.read_bytes(), BytesIO(file.read_bytes()), np.asarray(image), image])
    [scores] = expected_scores(read(bundles / "tiny/1"), range(3, 4))
    assert [one.predictions[0].index for one in found] == [scores.argmax()] * 6


def test_scores_are_those_of_the_model(service: Service, bundles: Path) -> None:
    [expected] = expected_scores(read(bundles / "tiny/1"), range(5, 6))
    with Client(service.url) as client:
        found = client.classify(picture(seed=5), merge="off", top_k=TINY.classes)
    scores = np.empty(TINY.classes)
    for prediction in found.predictions:
        scores[prediction.index] = prediction.score
    np.testing.assert_allclose(scores, expected, atol=1e-3)


async def test_a_hundred_pictures_at_once_each_get_their_own_answer(service: Service) -> None:
    async with AsyncClient(service.url) as client:
        alone = [await client.classify(picture(seed)) for seed in range(10)]
        answers = await asyncio.gather(*(client.classify(picture(seed % 10)) for seed in range(100)))
    assert [one.label for one in answers] == [alone[seed % 10].label for seed in range(100)]


def test_a_rung_and_a_number_say_how_many_tokens_are_left(service: Service) -> None:
    with Client(service.url) as client:
        off, fast, two = (client.classify(picture(seed=1), merge=merge).merging for merge in ("off", "fast", 2))
    assert (off.rung, off.tokens_in, off.tokens_out) == (None, TOKENS, TOKENS)
    assert (fast.rung, fast.tokens_out) == ("fast", TOKENS - 8)
    assert (two.rung, two.tokens_out) == (None, TOKENS - 4)


@pytest.mark.parametrize(
    ("options", "status", "field"),
    [
        ({"model": "nobody"}, 404, "model"),
        ({"merge": "warp"}, 422, "merge"),
        ({"top_k": 11}, 422, "top_k"),
        ({"priority": "mine"}, 422, "priority"),
    ],
)
def test_a_refusal_names_the_option(service: Service, options: dict[str, str], status: int, field: str) -> None:
    with Client(service.url) as client, pytest.raises(Refused) as raised:
        client.classify(picture(seed=1), request_id="mine", **options)  # type: ignore[arg-type]
    assert (raised.value.status, raised.value.field, raised.value.request_id) == (status, field, "mine")
    assert field in str(raised.value)


def test_a_bad_picture_among_good_ones_is_named(service: Service) -> None:
    with Client(service.url) as client, pytest.raises(Refused) as raised:
        client.classify([picture(seed=1), picture(seed=2), picture(seed=3)[:200]])
    assert (raised.value.status, raised.value.field) == (422, "image[2]")


def test_models_are_known_by_name(service: Service) -> None:
    with Client(service.url) as client:
        assert {(model.id, model.task, model.state) for model in client.models()} == {
            ("tiny@1", "classify", "ready"),
            ("null@1", "classify", "ready"),
        }
        assert client.model("tiny").details["spec"]["license"] == "CC0-1.0"
        assert client.health()
        assert client.ready()
        with pytest.raises(Refused, match="known: null@1, tiny@1"):
            client.model("nobody")


def test_the_command_labels_many_files_and_reports_the_bad_one(service: Service, tmp_path: Path) -> None:
    files = [tmp_path / f"{seed}.png" for seed in range(20)]
    for seed, file in enumerate(files):
        file.write_bytes(picture(seed) if seed != 7 else b"\x89PNG\r\n\x1a\nno picture")
    ended = opsin("classify", *files, "--url", service.url)
    assert ended.returncode == 1
    assert [line.split()[0] for line in ended.stdout.splitlines()[1:]] == [file.name for file in files if file.stem != "7"]
    assert ended.stderr.startswith(f"opsin: {files[7]}: 422 Corrupt image")
    assert ended.stderr.count("\n") == 1
