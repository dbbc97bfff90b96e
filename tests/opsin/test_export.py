"""`opsin export` as a user meets it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.bundles.vit import write_tiny_vit
from tests.support.processes import opsin

PHOTOS = Path(__file__).parents[2] / "bundles/photos/1.0.0"
CHECKPOINT = Path(__file__).parents[1] / "golden/mae/pretrain_pixel/checkpoint.pth"


def test_imported_weights_export_bit_for_bit_and_reimport(tmp_path: Path) -> None:
    inputs = opsin("import", CHECKPOINT, "--set", "heads=6", "--set", "decoder_heads=3", "-o", tmp_path / "bundles/mae")
    assert (inputs.returncode, inputs.stderr) == (0, "")
    assert "task          autoencode" in inputs.stdout
    ended = opsin("export", tmp_path / "bundles/mae/1", "-o", tmp_path / "mae.pth")
    assert (ended.returncode, ended.stderr) == (0, "")
    published, again = (torch.load(file, weights_only=True)["model"] for file in (CHECKPOINT, tmp_path / "mae.pth"))
    assert published.keys() == again.keys()
    assert all(torch.equal(again[key], value) for key, value in published.items())

    assert comes_back(ended.stdout, tmp_path / "back/mae") == content(tmp_path / "bundles/mae/1")


def test_the_way_back_has_every_setting_labels_and_licence(tmp_path: Path) -> None:
    bundle = write_tiny_vit(tmp_path / "own")
    assert opsin("export", bundle.path, "--family", "timm", "-o", tmp_path / "tiny.pth").returncode == 0
    (tmp_path / "labels.txt").write_text("".join(f"a cat {number}\n" for number in range(10)))
    settings = ("heads=2", "norm_eps=1e-5", "short_side=37", "interpolation=bilinear", "mean=0.4,0.5,0.6", "std=0.2,0.2,0.3", "fit=squeeze")
    inputs = [word for setting in settings for word in ("--set", setting)]
    options = ["--labels", tmp_path / "labels.txt", "--license", "CC BY 4.0", "--family", "timm"]
    made = opsin("import", tmp_path / "tiny.pth", *inputs, *options, "-o", tmp_path / "bundles/tiny")
    assert (made.returncode, made.stderr) == (0, "")
    ended = opsin("export", tmp_path / "bundles/tiny/1", "-o", tmp_path / "again.pth")
    assert comes_back(ended.stdout, tmp_path / "back/tiny") == content(tmp_path / "bundles/tiny/1")
    assert content(tmp_path / "back/tiny/1")["preprocess"]["short_side"] == 37


def test_the_way_back_says_that_frames_are_smoothed(tmp_path: Path) -> None:
    inputs = ("--family", "mae_st", "--set", "heads=4", "--set", "smooth=true", "-o", tmp_path / "bundles/clips")
    made = opsin("import", CHECKPOINT.parents[2] / "mae_st/finetune_sep_cls/checkpoint.pth", *inputs)
    assert (made.returncode, made.stderr) == (0, "")
    ended = opsin("export", tmp_path / "bundles/clips/1", "-o", tmp_path / "clips.pth")
    assert comes_back(ended.stdout, tmp_path / "back/clips") == content(tmp_path / "bundles/clips/1")
    assert content(tmp_path / "back/clips/1")["clip"]["smooth"] is True


def comes_back(printed: str, target: Path) -> dict[str, Any]:
    """Run the command that the last line of an export names; the bundle.json that it writes."""
    back = shlex.split(printed.splitlines()[-1])
    assert back[:3] == ["back", "opsin", "import"] and back[-2:] == ["-o", "…"]
    made = opsin(*back[2:-1], target)
    assert (made.returncode, made.stderr) == (0, "")
    return content(target / "1")


def content(bundle: Path) -> dict[str, Any]:
    """Return a bundle.json without the fields that say where its weights were read."""
    found = json.loads((bundle / "bundle.json").read_text())
    assert found.pop("provenance")["file"].endswith(".pth")
    return dict(found)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "tiny@1: was not imported; say with --family whose layout to write: timm, deit, mae, swag, torchvision, maws"),
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


def test_a_graph_has_no_published_layout(tmp_path: Path) -> None:
    ended = opsin("export", PHOTOS, "-o", tmp_path / "file.pth")
    assert (ended.returncode, ended.stdout) == (2, "")
    message = "opsin: photos@1.0.0: architecture onnx is a graph, which no family's layout holds: copy its model.onnx\n"
    assert ended.stderr == message


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
