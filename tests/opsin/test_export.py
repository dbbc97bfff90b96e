"""`opsin export` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.bundle import read
from tests.bundles import write_tiny_vit
from tests.opsin.command import opsin

CHECKPOINT = Path(__file__).parents[1] / "golden/mae/pretrain_pixel/checkpoint.pth"


def test_what_import_brought_in_comes_out_bit_for_bit_and_goes_in_as_the_command_says(tmp_path: Path) -> None:
    given = opsin("import", CHECKPOINT, "--set", "heads=6", "--set", "decoder_heads=3", "-o", tmp_path / "bundles/mae")
    assert (given.returncode, given.stderr) == (0, "")
    assert "task          autoencode" in given.stdout
    ended = opsin("export", tmp_path / "bundles/mae/1", "-o", tmp_path / "mae.pth")
    assert (ended.returncode, ended.stderr) == (0, "")
    published, again = (torch.load(file, weights_only=True)["model"] for file in (CHECKPOINT, tmp_path / "mae.pth"))
    assert published.keys() == again.keys()
    assert all(torch.equal(again[key], value) for key, value in published.items())

    back = ended.stdout.splitlines()[-1].split()
    assert back[:3] == ["back", "opsin", "import"] and back[-2:] == ["-o", "…"]
    assert opsin(*back[2:-1], tmp_path / "bundles/again").returncode == 0
    assert read(tmp_path / "bundles/again/1").spec.config == read(tmp_path / "bundles/mae/1").spec.config


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "tiny@1: was not imported; say with --family whose layout to write: timm, deit, mae, swag, maws"),
        (["--family", "hmr2"], "tiny@1: its architecture is vit, but hmr2 is a family of hmr2"),
        (["--family", "nobody"], "family 'nobody' is unknown; known are timm"),
    ],
)
def test_what_export_cannot_do_it_says(options: list[str], sentence: str, tmp_path: Path) -> None:
    bundle = write_tiny_vit(tmp_path)
    ended = opsin("export", bundle.path, "-o", tmp_path / "file.pth", *options)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert sentence in ended.stderr
    assert not (tmp_path / "file.pth").exists()


def test_a_damaged_bundle_is_not_exported(tmp_path: Path) -> None:
    bundle = write_tiny_vit(tmp_path)
    bundle.weights_path.write_bytes(bundle.weights_path.read_bytes()[:-1])
    ended = opsin("export", bundle.path, "-o", tmp_path / "file.pth", "--family", "timm")
    assert ended.returncode == 1
    assert "truncated or another file" in ended.stderr


def test_a_graph_that_could_not_be_written_is_not_made(tmp_path: Path) -> None:
    bundle = write_tiny_vit(tmp_path)
    ended = opsin("export", bundle.path, "--onnx", "-o", tmp_path / "no" / "tiny.onnx")
    assert ended.returncode == 2
    assert ended.stderr == f"opsin: {tmp_path}/no/tiny.onnx: cannot be written (there is no folder {tmp_path}/no)\n"
