"""`opsin import` as a user meets it."""

from __future__ import annotations

import dataclasses
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.bundle import read
from models.checkpoints.family import families
from models.loading import load
from models.registry import architectures, sizes
from models.systems.vit.model import ViT, ViTConfig
from opsin.cli.bundles.import_report import architecture_line
from opsin.cli.bundles.labelled_images import load_at_model_size
from server.playground import SAMPLES
from tests.golden.case import GOLDEN
from tests.support.bundles.onnx import lama, midas
from tests.support.forked_program import ForkedProcess
from tests.support.processes import opsin
from tests.support.waiting import WAIT_S


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of 2 blocks and 3 classes, as training code saves it."""
    torch.manual_seed(0)
    model = ViT(ViTConfig(image_size=32, patch_size=8, width=64, depth=2, heads=1, classes=3))
    file = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    torch.save({"model": model.state_dict(), "epoch": 3}, file)
    return file


def test_imported_checkpoint_is_bundle_with_labels_and_licence(checkpoint: Path, tmp_path: Path) -> None:
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
        (
            [],
            "deit, mae, maws; say which it is with --family; how each prepares images is in docs/checkpoints.md",
        ),
        (["--family", "nobody"], "family 'nobody' is unknown; known are timm"),
        (["--family", "timm", "--set", "heads"], "--set heads: write KEY=VALUE, as in --set heads=4"),
        (["--family", "timm", "--set", "legs=4"], "legs: cannot be set; what can be is "),
        (["--family", "timm", "--labels", "{folder}/two.json"], "has 3 classes, but 2 labels were given"),
        (["--family", "timm", "--labels", "{folder}/one.txt"], "has 3 classes, but 1 label was given"),
        (["--family", "timm", "--labels", "{folder}/four.txt"], "4 labels were given; is the first of them, 'name', a header?"),
        (["--family", "timm", "--labels", "{folder}/none.txt"], "none.txt: No such file or directory"),
        (["--family", "timm", "--labels", "{folder}/binary"], "binary: not valid UTF-8; it must hold class names, one per line"),
        (["--set", "head=4"], "head: no family has such a setting; is heads meant?"),
    ],
)
def test_what_import_cannot_know_it_asks_for(checkpoint: Path, tmp_path: Path, options: list[str], sentence: str) -> None:
    (tmp_path / "two.json").write_text('["cat", "dog"]')
    (tmp_path / "one.txt").write_text("cat\n")
    (tmp_path / "four.txt").write_text("name\ncat\ndog\nbird\n")
    (tmp_path / "binary").write_bytes(b"\x89PNG")
    filled = [option.format(folder=tmp_path) for option in options]
    ended = opsin("import", checkpoint, "-o", tmp_path / "bundles/tiny", *filled)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert sentence in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "bundles").exists()


@pytest.mark.parametrize("graph", ["model.onnx", "onnx/model.onnx"])
def test_a_folder_without_weights_names_its_onnx_graph(graph: str, tmp_path: Path) -> None:
    (tmp_path / "hub" / graph).parent.mkdir(parents=True)
    (tmp_path / "hub" / graph).write_bytes(b"graph")
    (tmp_path / "hub/config.json").write_text('{"architectures": ["ResNetForImageClassification"]}')
    ended = opsin("import", tmp_path / "hub", "-o", tmp_path / "bundles/hub")
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert f"it has an ONNX graph, which `opsin import {tmp_path}/hub/{graph}` takes" in ended.stderr


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


IMAGES = "from float32's logits on 20 images, best label equal on"
"""The playground's samples, which come with the package."""


def row(printed: str, name: str) -> str:
    """Return the value of a line of the report."""
    (line,) = (line for line in printed.splitlines() if line.startswith(f"{name} "))
    return line.removeprefix(name).strip()


@pytest.mark.parametrize(
    ("dtype", "beginning"),
    [
        ("float32", "float32 on this machine's CPU (bfloat16, if that is faster: at most "),
        ("bfloat16", "bfloat16 on this machine's CPU: at most "),
    ],
)
def test_the_last_line_is_the_format_and_its_cost(checkpoint: Path, tmp_path: Path, dtype: str, beginning: str) -> None:
    ended = opsin("import", checkpoint, "--family", "timm", "-o", tmp_path / "tiny", OPSIN_DTYPE=dtype)
    assert (ended.returncode, ended.stderr) == (0, "")
    last = row(ended.stdout, "format")
    assert ended.stdout.endswith(f"{last}\n") and "\033" not in ended.stdout
    assert last.startswith(beginning) and IMAGES in last and last.endswith("; OPSIN_DTYPE=float32 forces float32")
    assert 0 < float(last.removeprefix(beginning).split()[0]) < 0.1


def test_a_measured_format_is_reported_as_measured(checkpoint: Path, tmp_path: Path) -> None:
    message = "; measured just now; each worker measures for itself; OPSIN_DTYPE=float32 forces float32\n"
    for dtype in ("auto", "bfloat16"):
        ended = opsin("import", checkpoint, "--family", "timm", "-o", tmp_path / dtype, OPSIN_DTYPE=dtype)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.endswith(message) is (dtype == "auto")


def test_a_graphs_line_holds_what_a_reader_knows() -> None:
    fields = {"image_size": 224, "classes": 10, "output": "linear", "probabilities": False}
    assert architecture_line("onnx", fields) == "architecture  onnx: at 224"
    assert architecture_line("onnx", fields | {"probabilities": True}) == "architecture  onnx: at 224, probabilities=true"


def test_the_cost_is_that_of_the_images_it_counts(checkpoint: Path, tmp_path: Path) -> None:
    ended = opsin("import", checkpoint, "--family", "timm", "-o", tmp_path / "tiny", OPSIN_DTYPE="bfloat16")
    bundle = read(tmp_path / "tiny/1")
    files = [file for file in sorted(SAMPLES.glob("*.png")) if not file.stem.endswith(("-mask", "-depth"))]
    pixels = load_at_model_size(files, bundle.spec, "images")
    exact, short = (load(bundle, dtype=dtype, packed=True) for dtype in (torch.float32, torch.bfloat16))
    answers = [[model.forward({"pixels": image[None]}, {"merge": [0, 0]})["logits"] for image in pixels] for model in (exact, short)]
    furthest = max(float(np.abs(ours - other).max()) for ours, other in zip(*answers, strict=True))
    assert f"at most {furthest:.1e} {IMAGES}" in row(ended.stdout, "format")


def test_a_terminal_shows_the_format_in_bold(checkpoint: Path, tmp_path: Path) -> None:
    command = ["import", str(checkpoint), "--family", "timm", "-o", str(tmp_path / "tiny")]
    ours, theirs = os.openpty()
    process = ForkedProcess("opsin", *command, environment=os.environ, prints=theirs)
    os.close(theirs)
    visible = b""
    with suppress(OSError):  # Linux raises EIO where the other end is closed
        while some := os.read(ours, 4096):
            visible += some
    os.close(ours)
    assert process.wait(WAIT_S) == 0
    *others, last = visible.decode().splitlines()
    assert last.startswith("\033[1mformat ") and last.endswith("\033[0m") and "\033" not in "".join(others)


def test_too_small_a_limit_of_pixels_leaves_the_bundle(checkpoint: Path, tmp_path: Path) -> None:
    ended = opsin("import", checkpoint, "--family", "timm", "-o", tmp_path / "tiny", OPSIN_MAX_PIXELS="64")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert row(ended.stdout, "format").startswith("unknown: it does not run on this machine (") and "OPSIN_MAX_PIXELS" in ended.stdout
    assert (tmp_path / "tiny/1/bundle.json").is_file()


PRECISE = "float32 on every machine, regardless of OPSIN_DTYPE"
MEMBER = "float32 on every machine, as a member of a pipeline"


@pytest.mark.parametrize(
    ("family", "case", "format_"),
    [
        ("mae_st", "mae_st/finetune_sep_cls", PRECISE),
        ("mavil", "mavil/finetune_av", PRECISE),
        ("maws_clip", "maws/clip", PRECISE),
        ("hmr2", "hmr2/tiny_forward", MEMBER),
        ("audio_mae", "mavil/audio_mae_window_decoder", "none: task autoencode is not served yet by this version"),
    ],
)
def test_what_runs_in_float32_everywhere_says_so(family: str, case: str, format_: str, tmp_path: Path) -> None:
    (file,) = (file for file in (GOLDEN / case).iterdir() if file.suffix in (".pth", ".pt", ".ckpt"))
    heads = {name: 3 if family == "audio_mae" and name == "decoder_heads" else 4 for name in families()[family].head_fields}
    ended = opsin(
        "import",
        file,
        "--family",
        family,
        *(f"--set={name}={count}" for name, count in heads.items()),
        "-o",
        tmp_path / "it",
        OPSIN_DTYPE="bfloat16",
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[-1].startswith(f"format        {format_}")


def test_a_graph_answers_in_its_own_numbers(tmp_path: Path) -> None:
    for name, content, inputs in (("lama", lama(64), ["mask=hole", "answer=bytes"]), ("midas", midas(64), ["output=disparity"])):
        (tmp_path / f"{name}.onnx").write_bytes(content)
        options = [f"--set={setting}" for setting in inputs]
        ended = opsin("import", tmp_path / f"{name}.onnx", *options, "--license", "MIT", "-o", tmp_path / name)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.splitlines()[-1].startswith("format        the graph's own numbers on every machine")
        assert row(ended.stdout, "architecture").endswith(f"at 64, {', '.join(inputs)}")


def test_the_architecture_is_one_line_of_what_was_decided(tmp_path: Path) -> None:
    small = {"width": 192, "heads": 3, "image_size": 32, "classes": 1}
    for name, config, message in (
        ("published", ViTConfig(**small), "vit: vit_tiny_patch16 at 32, 12 blocks, width 192, 3 heads"),
        ("own", ViTConfig(**small | {"patch_size": 8, "depth": 1}), "vit: patches of 8 at 32, 1 block, width 192, 3 heads"),
    ):
        torch.save({"model": ViT(config).state_dict()}, tmp_path / f"{name}.pth")
        for family, decided in (("timm", ""), ("mae", ", proportional_attention=false")):
            ended = opsin("import", tmp_path / f"{name}.pth", "--family", family, "-o", tmp_path / f"{name}-{family}")
            assert (ended.returncode, ended.stderr) == (0, "")
            assert row(ended.stdout, "architecture") == message + decided
            assert row(ended.stdout, "labels") == "1 label: class 0"


def test_no_architecture_takes_more_than_a_line() -> None:
    ours = [(name, architecture.config()) for name, architecture in architectures().items()]
    for name, config in [*ours, *((size.architecture, size.config) for size in sizes().values())]:
        line = architecture_line(name, dataclasses.asdict(config))
        assert len(line) <= 120 and "\n" not in line and not line.endswith((": ", ", ")), line
    odd = {"decoder_width": 64, "mel_bins": 64, "frames": 4, "fusion_depth": 1, "qkv_bias": False, "norm_eps": 1e-5, "mask_ratio": 0.5}
    config = dataclasses.replace(architectures()["mavil_pretraining"].config(), width=96, **odd)
    line = architecture_line("mavil_pretraining", dataclasses.asdict(config))
    assert len(line) <= 120 and line.endswith("decoder 8 blocks, width 64, …")


def test_the_transform_says_where_it_comes_from(checkpoint: Path, tmp_path: Path) -> None:
    assumed = opsin("import", checkpoint, "--family", "timm", "-o", tmp_path / "assumed")
    assert "transform     the transform is assumed, that of family timm: no config.json next to the file states it" in assumed.stdout
    assert "--set short_side=35 --set interpolation=bicubic --set mean=0.5,0.5,0.5 --set std=0.5,0.5,0.5" in assumed.stdout
    file = tmp_path / "here" / "tiny.pth"
    file.parent.mkdir()
    file.write_bytes(checkpoint.read_bytes())
    (file.parent / "config.json").write_text('{"num_classes": 3, "pretrained_cfg": {"crop_pct": 1.0, "interpolation": "bilinear"}}')
    stated = opsin("import", file, "--family", "timm", "-o", tmp_path / "stated")
    assert "images        short side 32, crop 32, bilinear" in stated.stdout
    assert "transform     read from config.json" in stated.stdout


def test_settings_that_mavil_weights_lack_are_required_or_shown(tmp_path: Path) -> None:
    (tmp_path / "audioset.csv").write_text(
        'index,mid,display_name\n0,/m/0,"Bell, rung"\n' + "".join(f"{n},/m/{n},Bird\n" for n in range(1, 9))
    )
    requested = ["import", GOLDEN / "mavil/finetune_av/checkpoint.pth", "-o", tmp_path / "mavil", "--set", "heads=4"]
    unfit = opsin(*requested, "--set", "frames=6")
    assert "64 patches, which 3 times do not divide; set the number of frames, as in --set frames=2\n" in unfit.stderr
    ended = opsin(*requested, "--set", "frames=8", "--set", "smooth=true", "--labels", tmp_path / "audioset.csv")
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert next(line for line in lines if line.startswith("clips ")).endswith("2 per second, smoothed when shrunk")
    assert [line for line in lines if line.startswith("note ")] == [
        "note          mel_bins 128 is assumed, as published, since no weight determines it: --set mel_bins=… changes it",
        "note          'Bird': the label of several classes, whose answers cannot be distinguished",
    ]
    assert read(tmp_path / "mavil/1").spec.labels[:2] == ["Bell, rung", "Bird"]
