"""Notes of bundles on their answers, as users see them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opsin import Client
from opsin.image_encoding import png
from tests.opsin.embedding.conftest import NOTE
from tests.opsin.embedding.test_zero_shot import IMAGES
from tests.support.bundles.vit import TINY
from tests.support.live_service import Service
from tests.support.processes import opsin


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"{index}.png" for index in range(2)]
    for file, pixels in zip(files, IMAGES, strict=False):
        file.write_bytes(png(pixels))
    assert TINY.image_size == len(IMAGES[0])
    return files


def test_commands_print_the_note_once_after_the_answer(embedding_service: Service, photos: list[Path], tmp_path: Path) -> None:
    vectors, named = tmp_path / "vectors.npz", ("--url", embedding_service.url, "--model", "drawings")
    requested = ("zero-shot", *photos, "--label", "dog", "--label", "cat")
    for command in ((*requested, *named), ("embed", *photos, "-o", vectors, *named), ("search", vectors, "a dog", *named[:2])):
        ended = opsin(*command)
        assert (ended.returncode, ended.stderr) == (0, f"drawings@1: {NOTE}\n"), command[0]
        assert ended.stdout and "It knows" not in ended.stdout
    assert opsin(*requested, "--url", embedding_service.url, "--model", "pair").stderr == ""


def test_json_of_a_command_holds_the_note_alone(embedding_service: Service, photos: list[Path]) -> None:
    ended = opsin("zero-shot", photos[0], "--label", "dog", "--json", "--url", embedding_service.url, "--model", "drawings")
    assert (json.loads(ended.stdout)["note"], ended.stderr) == (NOTE, "")


def test_answers_and_models_repeat_the_note(embedding_service: Service, photos: list[Path]) -> None:
    with Client(embedding_service.url) as client:
        assert client.zero_shot(photos[0], ["dog"], model="drawings").note == client.model("drawings").note == NOTE
        assert client.ask("embed", {"image": photos[0]}, model="drawings")["note"] == NOTE
        assert client.zero_shot(photos[0], ["dog"], model="pair").note == client.model("pair").note == ""
        assert "note" not in client.ask("embed", {"image": photos[0]}, model="pair")
