"""`docs/checkpoints.md`: what it says of each published file holds for a small one of the same layout (`tests/golden`)."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from typer.testing import CliRunner

from models.bundle import Bundle, BundleSpec, read
from models.bundle_folders import discover
from models.loading import load, unsupported_reason
from models.registry import family_names
from models.systems.mvit.checkpoint import FAMILY as MVIT
from models.systems.mvit.model import BoxPooling, MViT, MViTConfig
from opsin.cli.app import app
from opsin.cli.bundles.labelled_images import load_at_model_size
from server.tasks.registry import main_task
from tests.docs.code_blocks import ROOT, Block, Desk, read_blocks
from tests.docs.conftest import environment_of, fill
from tests.support import serve_process, vocabularies
from tests.support.bundles.onnx import colours, lama, midas

PAGE = "docs/checkpoints.md"
GOLDEN = ROOT / "tests" / "golden"
READY_S = 240.0


@dataclass(frozen=True)
class Small:
    """A recorded checkpoint, and the settings that the widths of published files determine but its own do not."""

    golden: str
    settings: Sequence[str] = ()
    classes: int = 0


SMALL = {
    "model.safetensors": Small("tome/vit_timm", ["heads=4"], 10),
    "deit_base_patch16_224-b5f2ef4d.pth": Small("tome/vit_timm", ["heads=4"], 10),
    "f367470145_deit_S_r13.pth": Small("tome/vit_timm", ["heads=4"], 10),
    "mae_finetuned_vit_base.pth": Small("mae/finetune_gap", ["heads=4"], 10),
    "mae_visualize_vit_large.pth": Small("mae/pretrain_pixel", ["heads=6", "decoder_heads=3"]),
    "vit_b16_512.pt": Small("maws/vision_ft_head", ["heads=4"], 9),
    "vit_b16_xlmr_b.pt": Small("maws/clip", ["heads=5", "text_heads=4"]),
    "REV_VIT_B.pyth": Small("rev/rev_vit_tiny", [], 7),
    "REV_MVIT_B.pyth": Small("rev/rev_mvit_image_tiny", [], 6),
    "diffmae.pth": Small("diffmae/sample_cross_self"),
    "co3dv2_all_categories.pth": Small("mcc/co3d_forward", ["heads=4", "window_heads=4", "decoder_heads=4", "spacing=0.5"]),
    "epoch=35-step=1000000.ckpt": Small("hmr2/tiny_forward", ["heads=4", "decoder_heads=3"]),
    "lart_pose.ckpt": Small("lart/pose_only", ["heads=4"]),
    "lart_mvit.ckpt": Small("lart/pose_appearance", ["heads=2"]),
    "pose_predictor.pth": Small("phalp/pose_predictor", ["heads=3"]),
    "MViTv2_S_16x4_k400_f302660347.pyth": Small("mvit/mvitv2_cls_tiny"),
    "mae_pretrain_vit_large_k400.pth": Small("mae_st/pretrain_sep_cls", ["heads=4", "decoder_heads=3"]),
    "checkpoint-00099.pth": Small("mae_st/finetune_slowfast_ckpt", ["heads=3"]),
    "flip_large16_laion2b_v2": Small("flip/tiny_m50_t5x", ["heads=4", "text_heads=4"]),
    "pytorch_model.bin": Small("cit/moco_tiny", ["heads=4", "text_heads=4"]),
    "mavil_base.pth": Small("mavil/finetune_av", ["heads=4"]),
}
"""Published file → the recorded one in its place."""
MADE = {"mvit.pyth"}
"""Published file of which none is recorded that fits the others; the fixture makes one."""
GRAPHS: dict[str, Callable[[], bytes]] = {
    "lama.onnx": lambda: lama(512),
    "depth-anything-v2-small.onnx": lambda: midas(518),
    "network.onnx": lambda: colours(shape=["batch", 3, 224, 224]).SerializeToString(),
}
"""Graph → one of the same signature with random weights."""
SERVED = {
    *("vit-base", "deit-base", "tome-small", "mae-base", "maws-base", "rev-vit", "rev-mvit", "diffmae", "lama", "objects", "people"),
    *("people-mvit", "mae-large-pixels", "maws-clip", "flip-large", "cit-moco", "mvit-small", "mae-st", "mavil", "network"),
}
"""Bundles that the page says are answered for."""
MEMBERS = {"hmr2", "lart-pose", "lart-mvit", "mvit-ava", "movenet"}
"""Not listed by themselves, but as parts of `people` and `people-mvit`."""


def makes_bundles(block: Block) -> bool:
    return "opsin import" in block.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's bundles, made by its commands."""
    folder = tmp_path_factory.mktemp("desk")
    fill(folder)
    for shipped in ("flags", "movenet"):
        shutil.copytree(ROOT / "bundles" / shipped, folder / "bundles" / shipped)
    np.save(folder / "mean_std.npy", np.stack([np.zeros(226), np.ones(226)])[:, None])
    vocabularies.small_bert(folder, 60)
    vocabularies.sentencepiece_model(folder, 50, ["a photo of a red dog", "the cat sleeps on a mat"] * 20).rename(
        folder / "xlmr.sentencepiece.bpe.model"
    )
    for name, make in GRAPHS.items():
        (folder / name).write_bytes(make())
    write_mvit_checkpoint(folder / "mvit.pyth")
    checkpoint = "epoch=35-step=1000000.ckpt"
    shutil.copyfile(GOLDEN / SMALL[checkpoint].golden / "checkpoint.pth", folder / checkpoint)
    [conversion] = [block.code for block in read_blocks(PAGE) if block.language == "python" and checkpoint in block.code]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(conversion, {})
        for line in import_lines():
            made = CliRunner().invoke(app, fit_recorded_file(shlex.split(line, comments=True)[1:], folder))
            assert made.exit_code == 0, f"{line}\n{made.output}\n{made.exception}"
    np.save(folder / "logits.npy", logits_of(read(folder / "bundles/vit-base/1"), folder / "photos"))
    return folder


def logits_of(bundle: Bundle, photos: Path) -> NDArray[np.floating]:
    """Return the logits of the images in a folder, as `opsin compare` wants them."""
    model = load(bundle)
    pixels = np.stack(load_at_model_size(sorted(photos.iterdir()), bundle.spec, "photos"))
    return model.forward({"pixels": pixels}, {"merge": [0] * model.depth})["logits"]


@pytest.fixture(scope="module")
def desk(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A running service with them."""
    with serve_process.serve(folder / "bundles") as running:
        serve_process.eventually(lambda: models_in_state(running.url, "ready") >= SERVED, "all are served", READY_S)
        yield Desk(folder, running.url, environment_of(running.url, tmp_path_factory.mktemp("bin")))


def models_in_state(url: str, state: str) -> set[str]:
    listed = httpx2.get(f"{url}/v1/models", timeout=60).json()["models"]
    return {model["name"] for model in listed if model["state"] == state}


def specs(folder: Path) -> dict[str, BundleSpec]:
    return {spec.name: spec for spec in (read(path).spec for path in discover(folder / "bundles"))}


def write_mvit_checkpoint(file: Path) -> None:
    """Write a small MViT with a box head, whose features are as wide as the recorded LART expects them."""
    config = MViTConfig(
        image_size=32, frames=4, classes=80, width=10, depth=2, width_growth=((1, 2.0),), head_growth=((1, 2.0),),
        q_strides=((0, 1, 1, 1), (1, 1, 2, 2)), kv_stride=(1, 2, 2), boxes=BoxPooling(),
    )  # fmt: skip
    cfg = {
        "DATA": {"TRAIN_CROP_SIZE": 32, "NUM_FRAMES": 4},
        "MODEL": {"NUM_CLASSES": 80, "HEAD_ACT": "sigmoid"},
        "MVIT": {
            "PATCH_KERNEL": [3, 7, 7], "PATCH_STRIDE": [2, 4, 4], "PATCH_PADDING": [1, 3, 3], "EMBED_DIM": 10, "DEPTH": 2, "NUM_HEADS": 1,
            "DIM_MUL": [[1, 2.0]], "HEAD_MUL": [[1, 2.0]], "POOL_KVQ_KERNEL": [3, 3, 3], "POOL_Q_STRIDE": [[0, 1, 1, 1], [1, 1, 2, 2]],
            "POOL_KV_STRIDE_ADAPTIVE": [1, 2, 2], "CLS_EMBED_ON": True, "USE_ABS_POS": False, "REL_POS_SPATIAL": True,
            "REL_POS_TEMPORAL": True, "RESIDUAL_POOLING": True, "DIM_MUL_IN_ATT": True,
        },
        "DETECTION": {"ENABLE": True},
    }  # fmt: skip
    torch.save({"model_state": MVIT.export(MViT(config).state_dict()), "cfg": yaml.safe_dump(cfg)}, file)


def import_lines() -> list[str]:
    return [line for block in read_blocks(PAGE) if makes_bundles(block) for line in block.code.splitlines() if line.startswith("opsin ")]


def fit_recorded_file(words: list[str], folder: Path) -> list[str]:
    """Return the command for the recorded file: labels for its own classes, and settings that its widths do not determine."""
    if words[0] != "import" or words[1] in GRAPHS or words[1] in MADE:
        return words
    small = SMALL[words[1]]
    case = GOLDEN / small.golden
    file = case if (case / "checkpoint.pth").exists() is False or any(case.glob("checkpoint_*")) else case / "checkpoint.pth"
    words = ["import", str(file), *words[2:], *(word for setting in small.settings for word in ("--set", setting))]
    if small.classes:
        names = folder / f"{small.classes}.txt"
        names.write_text("\n".join(f"label {index}" for index in range(small.classes)))
        words += ["--labels", str(names)]
    return words


def test_bundles_called_served_are_exactly_the_servable(folder: Path) -> None:
    served = {name for name, spec in specs(folder).items() if unsupported_reason(spec) is None and main_task(spec)}
    assert served - MEMBERS - {"flags"} == SERVED


def test_a_lart_that_wants_joints_is_not_joined_without_a_mesh(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    words = ["bundles", "join", "refused", "--detector", "movenet", "--pose", "hmr2", "--actions", "lart-mvit"]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code != 0
    assert "--body" in str(refused.exception)


def test_every_system_has_its_part() -> None:
    named = {shlex.split(line, comments=True)[2] for line in import_lines() if line.startswith("opsin import")}
    files = named - set(GRAPHS) - MADE
    recorded = {path.name for path in GOLDEN.iterdir() if any(path.glob("*/checkpoint.pth"))}
    assert {SMALL[file].golden.partition("/")[0] for file in files} == recorded
    assert files == set(SMALL) and named - files == set(GRAPHS) | MADE


def test_every_family_says_where_its_transform_comes_from() -> None:
    table = Path(ROOT / PAGE).read_text().split("| family | preprocessing |")[1].split("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines()[2:]]
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row)) == sorted(family_names())


@pytest.mark.slow
def test_the_service_lists_the_others_as_unavailable(desk: Desk) -> None:
    assert models_in_state(desk.url, "ready") == SERVED | {"flags"}
    assert models_in_state(desk.url, "unavailable") == specs(desk.folder).keys() - SERVED - MEMBERS - {"flags"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "block", [block for block in read_blocks(PAGE) if block.language == "sh" and not makes_bundles(block)], ids=lambda block: block.name
)
def test_its_calls_are_answered(desk: Desk, block: Block) -> None:
    desk.shell(block.code)
