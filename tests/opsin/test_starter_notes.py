"""A command that a starter answers says what that starter is for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from models import bundle
from server.playground import SAMPLES
from tests.support.live_service import Service, running
from tests.support.processes import opsin

STARTERS = ("words", "flags", "inpaint", "shapes", "reconstruct", "depth", "actions", "movenet", "actions-lart")
COMMANDS = {
    "words": ("zero-shot", SAMPLES / "mug.png", "--label", "a mug", "--label", "a cat"),
    "flags": ("classify", SAMPLES / "chad.png", "--model", "flags"),
    "inpaint": ("inpaint", SAMPLES / "daisy.png", "--mask", "center:0.3", "-o", "filled.png"),
    "shapes": ("reconstruct", SAMPLES / "mug.png", "--spacing", "0.4", "-o", "mug.ply"),
    "actions": ("actions", SAMPLES / "figures.mp4", "--end", "1"),
}
"""Starter → a command that it answers."""


@pytest.fixture(scope="module")
def starters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("bundles")
    for name in STARTERS:
        (root / name).symlink_to(Path("bundles", name).absolute())
    with running(root) as started:
        yield started


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_its_starter_is_for(starters: Service, name: str, tmp_path: Path) -> None:
    (folder,) = Path("bundles", name).iterdir()
    spec = bundle.read(folder).spec
    ended = opsin(*COMMANDS[name], "--url", starters.url, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert spec.note and ended.stderr.splitlines()[-1] == f"{spec.id}: {spec.note}"


def test_words_names_what_knows_photographs() -> None:
    assert "opsin import hf://" in bundle.read(Path("bundles/words/1.1.0")).spec.note
