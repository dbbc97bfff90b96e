"""Every published recipe starts, at its published size, and trains two steps of each phase and writes its bundle at a small one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import tokenizers
import torch
import yaml
from safetensors.torch import save_file
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import BertProcessing

from models import bundle, loading
from models.registry import architectures
from models.systems.image_text.tokenizer import Tokenizer
from tests.golden.case import GOLDEN, unpack
from tests.training import tiny_recipe
from tests.training.test_data import png, shard, video
from training import cli, recipe
from training.phase_runner import WEIGHTS
from training.run_logger import read_log

FILES = sorted(Path("training/recipes/published").glob("*.yaml"))
VIT = {"image_size": 32, "patch_size": 8, "width": 16, "depth": 2, "heads": 2}
DECODER = {"decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2}
VIDEO = {**VIT, "frames": 4, "patch_frames": 2}
TEXT = {"vocabulary": 8, "positions": 12, "text_width": 16, "text_depth": 1, "text_heads": 2, "text_hidden": 32, "joint_width": 8}
TOWERS = {**VIT, "audio_frames": 32, "mel_bins": 16, "audio_patch_size": 8, "frames": 4, "fusion_depth": 1}
FEATURE = {"hidden": 8, "width": 8}
TRACK = {"depth": 1, "heads": 2, "head_dim": 8, "hidden": 16, "frames": 6, "times": 8, "people": 3, "regressor_hidden": 8}

SMALL: Mapping[str, Mapping[str, Any]] = {
    "vit": VIT,
    "mae": {**VIT, **DECODER},
    "video_mae": VIDEO,
    "video_mae_pretraining": {**VIDEO, **DECODER, "predicted_frames": 2},
    "diffmae": {**VIT, **DECODER, "image_size": [32, 32], "time_width": 8},
    "flip": {**VIT, **{name: value for name, value in TEXT.items() if name != "positions"}, "text_length": 6},
    "cit": {**VIT, **TEXT, "projector_hidden": 16, "projector_width": 8},
    "maws_clip": {**VIT, **TEXT},
    "mavil": TOWERS,
    "mavil_pretraining": {**TOWERS, **DECODER},
    "audio_mae": {"audio_frames": 32, "mel_bins": 16, "patch_size": 8, "width": 16, "depth": 2, "heads": 2, **DECODER, "window": [2, 2]},
    "mvit": {"image_size": 32, "frames": 4, "width": 16},
    "rev_mvit": {"image_size": 32, "width": 16},
    "lart": {**TRACK, "pose": FEATURE, "joints": FEATURE, "appearance": {**FEATURE, "values": 10}},
    "mcc": {**VIT, "image_size": 32, "window": 4, "window_heads": 2, **DECODER},
}
"""Fields of each architecture's config that make it small."""

STARTS = {"tome": "mae_large.yaml", "mae_linear_probe": "mae_base.yaml"}
"""Recipes that start from the first phase of another."""


def images(folder: Path) -> None:
    for part in ("train", "val"):
        tiny_recipe.draw(folder / "data/imagenet" / part, 3)


def videos(folder: Path) -> None:
    for name in ("kinetics400/train", "audioset/unbalanced", "audioset/balanced"):
        for number, label in enumerate(("one", "two") * 2):
            video(folder / f"data/{name}/{label}/{number}.mp4", 12, 20 + 30 * number, sound=True)


def pairs(folder: Path) -> None:
    for name, tokenizer in (("laion400m", "bert-base-uncased"), ("yfcc15m", "bert-base-uncased"), ("pairs", "xlm-roberta-base")):
        (folder / "data" / name).mkdir(parents=True)
        samples = {f"{number}": {"png": png((20 * number, 0, 0)), "txt": b"a red flag"} for number in range(8)}
        shard(folder / "data" / name / "00000.tar", samples)
        model = tokenizers.Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "flag": 3, "blue": 4, "red": 5}, unk_token="[UNK]"))
        model.pre_tokenizer = Whitespace()  # type: ignore[assignment]
        model.post_processor = BertProcessing(("red", 5), ("[PAD]", 0))  # type: ignore[assignment]
        (folder / "data" / tokenizer).mkdir(exist_ok=True)
        model.save(str(folder / "data" / tokenizer / "tokenizer.json"))
    (folder / "data/imagenet").mkdir(exist_ok=True)
    (folder / "data/imagenet/labels.txt").write_text("flag\nred\n")
    (folder / "data/images").mkdir()
    tagged = {f"{number}": {"png": png((0, 20 * number, 0)), "cls": b"sun,sea" if number % 2 else b"sea"} for number in range(8)}
    shard(folder / "data/images/00000.tar", tagged)
    (folder / "data/images/hashtags.txt").write_text("sun\nsea\nsnow\n")


def scenes(folder: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(4):
        scene = folder / f"data/co3d/train/{number}"
        scene.mkdir(parents=True)
        (scene / "image.png").write_bytes(png((40 * number, 90, 0)))
        np.save(scene / "points.npy", random.normal(size=(24, 20, 3)).astype(np.float32))
        np.save(scene / "surface.npy", random.uniform(size=(50, 6)).astype(np.float32))


def tracks(folder: Path) -> None:
    for name in ("ava", "ava_and_kinetics"):
        (folder / f"data/tracks/{name}/clip").mkdir(parents=True)
        for file in sorted(unpack(GOLDEN / "lart/tracklet_loader_multi").glob("*.pkl")):
            track = joblib.load(file)
            track["has_gt"][:] = 2 if name == "ava" else 1
            joblib.dump(track, folder / f"data/tracks/{name}/clip/{file.name}")
    np.save(folder / "data/tracks/mean_std.npy", np.stack([np.zeros((1, 226)), np.ones((1, 226))]))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    for make in (images, videos, pairs, scenes, tracks):
        make(folder)
    return folder


def test_there_is_one_for_every_system() -> None:
    kinds = {recipe.read(file).model_of(phase).architecture for file in FILES for phase in recipe.read(file).phases}
    assert kinds == SMALL.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_builds_its_networks_at_the_published_size(file: Path) -> None:
    plan = recipe.read(file)
    for phase in plan.phases:
        settings = plan.model_of(phase)
        with torch.device("meta"):
            network = architectures()[settings.architecture].build(settings.resolve(labels=400))
        assert sum(parameter.numel() for parameter in network.parameters()) > 20e6


def shrunk(file: Path) -> dict[str, Any]:
    """Return the recipe with small networks and inputs, and two steps of four samples in each phase."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if "preprocess" in content:
        content["preprocess"] |= {"image_size": 32, "short_side": 32}
    if "clip" in content:
        content["clip"] = {"frames": 4, "stride": 1, "rate": 10}
    if "sound" in content:
        content["sound"] |= {"frames": 32, "mel_bins": 16}
    if "words" in content:
        content["words"] = 6
    for data in (content["data"], *(phase["data"] for phase in content["phases"] if "data" in phase)):
        if "shards" in data:
            data["shards"] = [data["shards"][0].split("{")[0] + "*.tar"]
        if data["kind"] == "tracklets":
            data |= {"frames": 6, "people": 3, "appearance": 10}
        if data["kind"] == "rgbd":
            data |= {"seen_size": 16, "surface_points": 20}
    for phase in content["phases"]:
        model = phase.setdefault("model", {**content.get("model", {})})
        model["config"] = {**model.get("config", {}), **SMALL[model["architecture"]]}
        phase["loop"] = {**phase["loop"], "epochs": 1, "samples_per_epoch": 8, "batch_size": 4, "workers": 0}
        if "curation" in phase["objective"]:
            phase["objective"]["curation"] |= {"steps": 1, "pool": 4, "threshold": -1.0}
    quality = content.get("release", {}).get("quality") or {}
    quality.pop("ladder", None)
    return content


def towers(file: Path) -> None:
    """Write the bundles that CiT's recipe starts from."""
    [phase] = recipe.read(file).phases
    with torch.random.fork_rng():
        network = architectures()["cit"].build(recipe.read(file).model_of(phase).resolve(labels=0))
    for name, source in phase.parts.items():
        Path(source).mkdir(parents=True)
        save_file(network.get_submodule(name).state_dict(), Path(source) / WEIGHTS)


@pytest.mark.parametrize("file", [file.absolute() for file in FILES], ids=lambda file: file.stem)
def test_it_trains_and_writes_its_bundle(file: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").symlink_to(data / "data")
    monkeypatch.chdir(tmp_path)
    small = tiny_recipe.write(shrunk(file), tmp_path / "recipe.yaml")
    if file.stem == "cit":
        towers(small)
    if file.stem in STARTS:
        before = tiny_recipe.write(shrunk(file.with_name(STARTS[file.stem])), tmp_path / "before.yaml")
        assert cli.main([str(before), "--phase", "pretrain", "--no-tensorboard"]) == 0
    assert cli.main([str(small), "--no-tensorboard"]) == 0
    plan = recipe.read(small)
    for phase in plan.phases:
        losses = [row["loss"] for row in read_log(Path("runs") / f"{plan.name}-{plan.version}" / phase.name)]
        assert len(losses) == 2 and losses[0] != losses[1]
    made = bundle.read(Path("bundles") / plan.name / plan.version)
    assert loading.load(made).spec.task == plan.release.task
    if plan.release.task == "zero-shot":
        assert made.spec.text is not None and made.spec.text.length == 6
        tokens = Tokenizer.open(made).encode(["a red flag", "blue"]).tokens
        framed = [[0, 2, 5, 3, 5], [0, 4, 5, *[made.spec.config.get("padding", 0)] * 2]]
        assert tokens.tolist() == ([[2, 5, 3, 0, 0, 0], [4, 0, 0, 0, 0, 0]] if file.stem == "flip" else framed)
