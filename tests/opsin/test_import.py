"""`opsin import` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.bundle import read
from models.vit.model import ViT, ViTConfig
from tests.golden.case import GOLDEN
from tests.harness.command import opsin


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of 2 blocks and 3 classes, as training code saves it."""
    torch.manual_seed(0)
    model = ViT(ViTConfig(image_size=32, patch_size=8, width=64, depth=2, heads=1, classes=3))
    file = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    torch.save({"model": model.state_dict(), "epoch": 3}, file)
    return file


def test_an_imported_checkpoint_is_a_bundle_with_its_weights_labels_and_licence(checkpoint: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\nbird\n")
    ended = opsin(
        "import",
        checkpoint,
        "--family",
        "timm",
        "--labels",
        labels,
        "--set",
        "heads=2",
        "--license",
        "MIT",
        "-o",
        tmp_path / "bundles/tiny",
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    bundle = read(tmp_path / "bundles/tiny/1")
    bundle.verify()
    assert (bundle.spec.id, bundle.spec.license, bundle.spec.labels) == ("tiny@1", "MIT", ["cat", "dog", "bird"])
    assert (bundle.spec.config["heads"], bundle.spec.provenance["family"]) == (2, "timm")
    published = torch.load(checkpoint, weights_only=True)["model"]
    imported = load_file(bundle.weights_path)
    assert published.keys() == imported.keys()
    assert all(torch.equal(published[key], imported[key]) for key in published)
    assert sorted(path.name for path in (tmp_path / "bundles").iterdir()) == ["tiny"]


def test_import_takes_safetensors_and_a_name_of_its_own(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.safetensors"
    save_file(torch.load(checkpoint, weights_only=True)["model"], file)
    ended = opsin("import", file, "--family", "deit", "--name", "small", "--version", "2.1", "-o", tmp_path / "bundles")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert read(tmp_path / "bundles/small/2.1").spec.id == "small@2.1"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "its keys fit the families timm, deit, mae, maws; say which it is with --family"),
        (["--family", "nobody"], "family 'nobody' is unknown; known are timm"),
        (["--family", "timm", "--set", "heads"], "--set heads: write KEY=VALUE, as in --set heads=4"),
        (["--family", "timm", "--set", "legs=4"], "legs: cannot be set; what can be is "),
        (["--family", "timm", "--labels", "{folder}/two.json"], "has 3 classes, but 2 labels were given"),
        (["--family", "timm", "--labels", "{folder}/four.txt"], "4 labels were given; is the first of them, 'name', a header?"),
        (["--family", "timm", "--labels", "{folder}/none.txt"], "none.txt: No such file or directory"),
        (["--family", "timm", "--labels", "{folder}/binary"], "binary: no text in UTF-8; class names are needed, one a line"),
        (["--set", "head=4"], "head: no family has such a setting; is heads meant?"),
    ],
)
def test_what_import_cannot_know_it_asks_for(checkpoint: Path, tmp_path: Path, options: list[str], sentence: str) -> None:
    (tmp_path / "two.json").write_text('["cat", "dog"]')
    (tmp_path / "four.txt").write_text("name\ncat\ndog\nbird\n")
    (tmp_path / "binary").write_bytes(b"\x89PNG")
    filled = [option.format(folder=tmp_path) for option in options]
    ended = opsin("import", checkpoint, "-o", tmp_path / "bundles/tiny", *filled)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert sentence in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "bundles").exists()


def test_import_never_overwrites(checkpoint: Path, tmp_path: Path) -> None:
    first, second = (opsin("import", checkpoint, "--family", "timm", "-o", tmp_path / "tiny") for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 2)
    assert second.stderr == f"opsin: {tmp_path}/tiny/1: exists already; choose another --version\n"


def test_a_folder_that_cannot_be_made_is_named(checkpoint: Path) -> None:
    ended = opsin("import", checkpoint, "--family", "timm", "-o", checkpoint / "bundles/tiny")
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert ended.stderr.startswith(f"opsin: import: {checkpoint}/bundles/tiny/1: cannot be written (")


def test_the_help_names_the_families() -> None:
    ended = opsin("import", "--help")
    assert ended.returncode == 0
    words = " ".join(ended.stdout.split())
    assert "Families: timm, deit, mae, swag" in words and "phalp_appearance" in words


def test_what_was_chosen_while_reading_is_printed(checkpoint: Path, tmp_path: Path) -> None:
    weights = torch.load(checkpoint, weights_only=True)["model"]
    torch.save({"state_dict": weights, "state_dict_ema": {f"module.{key}": value for key, value in weights.items()}}, tmp_path / "both.pth")
    ended = opsin("import", tmp_path / "both.pth", "--family", "timm", "-o", tmp_path / "tiny")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "note          weights read from state_dict_ema, the running average; state_dict is left out" in ended.stdout
    assert "note          the prefix module. is taken off every name" in ended.stdout


def test_the_last_line_says_which_format_runs_and_what_it_costs(checkpoint: Path, tmp_path: Path) -> None:
    for dtype, sentence in (
        ("float32", "format        float32 on this computer; others may take bfloat16"),
        ("bfloat16", "format        bfloat16 on this computer; warm-up's answers differ from float32's by at most "),
    ):
        ended = opsin("import", checkpoint, "--family", "timm", "-o", tmp_path / dtype, OPSIN_DTYPE=dtype)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert sentence in ended.stdout and "OPSIN_DTYPE=float32 pins float32" in ended.stdout


def test_a_classifier_of_clips_runs_in_float32_everywhere(tmp_path: Path) -> None:
    for family, case in (("mae_st", "mae_st/finetune_sep_cls"), ("mavil", "mavil/finetune_av")):
        heads = ("--set", "heads=4")
        ended = opsin("import", GOLDEN / case / "checkpoint.pth", "--family", family, *heads, "-o", tmp_path / family)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert "format        float32 on every computer" in ended.stdout, ended.stdout


def test_the_transform_says_where_it_comes_from(checkpoint: Path, tmp_path: Path) -> None:
    assumed = opsin("import", checkpoint, "--family", "timm", "-o", tmp_path / "assumed")
    assert "transform     the transform is assumed, that of family timm: no config.json beside the file states it" in assumed.stdout
    assert "--set short_side=35 --set interpolation=bicubic --set mean=0.5,0.5,0.5 --set std=0.5,0.5,0.5" in assumed.stdout
    file = tmp_path / "here" / "tiny.pth"
    file.parent.mkdir()
    file.write_bytes(checkpoint.read_bytes())
    (file.parent / "config.json").write_text('{"num_classes": 3, "pretrained_cfg": {"crop_pct": 1.0, "interpolation": "bilinear"}}')
    stated = opsin("import", file, "--family", "timm", "-o", tmp_path / "stated")
    assert "images        short side 32, crop 32, bilinear" in stated.stdout
    assert "transform     read from config.json" in stated.stdout


def test_what_no_weight_of_a_mavil_tells_is_asked_for_or_said(tmp_path: Path) -> None:
    (tmp_path / "audioset.csv").write_text(
        'index,mid,display_name\n0,/m/0,"Bell, rung"\n' + "".join(f"{n},/m/{n},Bird\n" for n in range(1, 9))
    )
    asked = ["import", GOLDEN / "mavil/finetune_av/checkpoint.pth", "-o", tmp_path / "mavil", "--set", "heads=4"]
    unfit = opsin(*asked, "--set", "frames=6")
    assert "64 patches, which 3 times do not divide; say how many frames it sees, as in --set frames=2\n" in unfit.stderr
    ended = opsin(*asked, "--set", "frames=8", "--set", "smooth=true", "--labels", tmp_path / "audioset.csv")
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert next(line for line in lines if line.startswith("clips ")).endswith("2 a second, smoothed where they shrink")
    assert [line for line in lines if line.startswith("note ")] == [
        "note          mel_bins 128 is assumed, as published, since no weight tells it: --set mel_bins=… changes it",
        "note          'Bird': the label of several classes, whose answers nobody can tell apart",
    ]
    assert read(tmp_path / "mavil/1").spec.labels[:2] == ["Bell, rung", "Bird"]
