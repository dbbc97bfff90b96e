"""Reading the checkpoints of others: key tables, families, the allow-list, and the way into a bundle."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from models import bundle
from models.checkpoints import CheckpointError, UnlikeFamily, detect, families, fit, import_checkpoint, open_checkpoint, read_checkpoint
from models.loading import load, weight_mismatch
from models.merge_schedule import MergeSchedule
from models.registry import architectures
from models.systems.mae.model import MAE, MAEConfig, init_vit_from_mae
from models.systems.vit.model import Pool, ViT, ViTConfig
from tests.golden.case import GOLDEN, published_keys
from tests.support.bundles.vit import seal

SMALL = ViTConfig(image_size=32, patch_size=8, classes=5, width=32, depth=2, heads=4)


def load_recording(case: str) -> Path:
    return GOLDEN / case / "checkpoint.pth"


def import_file(file: Path, **changes: Any) -> tuple[bundle.BundleSpec, dict[str, Tensor]]:
    arguments = {"family": None, "labels": None, "overrides": {"heads": "4"}, "name": "test", "version": "1", "license": "CC0-1.0"}
    return import_checkpoint(file, **{**arguments, **changes})


def published_sizes() -> list[Any]:
    for system in ("tome", "mae"):
        for name, content in published_keys(system).items():
            if "params" in content:
                yield pytest.param(content["params"], id=name)


FULL_SIZES = list(published_sizes())


@pytest.mark.parametrize(
    "shapes", [case for case in FULL_SIZES if "head.weight" in case.values[0] or "head.layers.head.weight" in case.values[0]]
)
def test_published_classifiers_load_strictly_at_full_size(shapes: Mapping[str, list[int]]) -> None:
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    family = families()[detect(weights)[0]]
    found = fit(weights, family, {})
    with torch.device("meta"):
        model = ViT(found.config())
    model.load_state_dict(found.weights, strict=True, assign=True)
    assert {name: list(value.shape) for name, value in family.table.export(model.state_dict()).items()} == shapes


def test_published_pretraining_checkpoints_load_at_full_size() -> None:
    shapes = next(case.values[0] for case in FULL_SIZES if "decoder_pred.weight" in case.values[0])
    with torch.device("meta"):
        model = MAE(MAEConfig())
    assert weight_mismatch(model, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}) is None


def test_published_encoders_start_fine_tuning_at_full_size() -> None:
    shapes = next(case.values[0] for case in FULL_SIZES if "encoder only" in case.id)
    with torch.device("meta"):
        model = ViT(ViTConfig(pool=Pool.MEAN))
    init_vit_from_mae(model, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()})


@pytest.mark.parametrize(
    ("case", "families"),
    [
        ("tome/vit_timm", ["timm", "deit", "mae", "maws"]),  # same keys: only a person knows
        ("mae/finetune_cls", ["timm", "deit", "mae", "maws"]),
        ("tome/vit_mae_gap", ["mae"]),
        ("tome/vit_swag", ["swag"]),
        ("tome/vit_mae_st_composed", ["mae_st"]),
        ("mae/pretrain_pixel", ["mae_pretrained"]),
    ],
)
def test_keys_leave_only_the_families_that_they_fit(case: str, families: list[str]) -> None:
    assert detect(read_checkpoint(load_recording(case))) == families


def test_distilled_deit_is_recognised_and_answers_as_its_model() -> None:
    torch.manual_seed(0)
    model = ViT(ViTConfig(image_size=32, patch_size=8, classes=5, width=64, depth=2, heads=1, distilled=True)).eval()
    weights = model.state_dict()
    assert detect(weights) == ["deit"]
    found = fit(weights, families()["deit"], {})
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(found.model()(pixels).logits, model(pixels).logits)


@pytest.mark.parametrize(
    ("case", "family"), [("tome/vit_swag", "swag"), ("tome/vit_mae_st_composed", "mae_st"), ("tome/vit_mae_gap", "mae")]
)
def test_a_checkpoint_survives_the_way_to_our_names_and_back(case: str, family: str) -> None:
    published = read_checkpoint(load_recording(case))
    table = families()[family].table
    exported = table.export(table.translate(published).weights)
    assert exported.keys() == published.keys()
    assert all(torch.equal(exported[key], value) for key, value in published.items())


def test_export_refuses_what_the_format_has_no_place_for() -> None:
    with pytest.raises(KeyError, match="dist_token"):
        families()["swag"].table.export({"dist_token": torch.zeros(1)})


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"model": w}, lambda w: {"model_state": w}])
def test_containers_are_opened(wrap: Callable[[dict[str, Tensor]], Any], tmp_path: Path) -> None:
    weights = ViT(SMALL).state_dict()
    torch.save(wrap(weights), tmp_path / "file.pth")
    assert read_checkpoint(tmp_path / "file.pth").keys() == weights.keys()


def test_training_checkpoints_may_hold_their_arguments(tmp_path: Path) -> None:
    content = {"model": ViT(SMALL).state_dict(), "epoch": 3, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=0.1, model="vit")}
    torch.save(content, tmp_path / "file.pth")
    assert "head.weight" in read_checkpoint(tmp_path / "file.pth")


def test_pyslowfast_heads_are_renamed(tmp_path: Path) -> None:
    weights = read_checkpoint(load_recording("tome/vit_mae_st_composed"))
    renamed = {key.replace("head.", "head.projection."): value for key, value in weights.items()}
    torch.save({"model_state": renamed}, tmp_path / "file.pyth")
    found = fit(read_checkpoint(tmp_path / "file.pyth"), families()["mae_st"], {"heads": 4})
    assert found.perfect
    assert torch.equal(found.weights["head.weight"], weights["head.weight"])


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"model": {"head.weight": Malicious(tmp_path / "owned")}}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"file\.pth: refused, since it holds posix\.mkdir"):
        read_checkpoint(tmp_path / "file.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", bytes(range(256)) * 8])
@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
def test_what_is_no_checkpoint_is_refused_with_its_name(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: damaged, or no"):
        read_checkpoint(tmp_path / name)


def test_a_graph_is_distinguished_from_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"\x08\x07\x12\x04onnx")
    with pytest.raises(CheckpointError, match=r"net\.onnx: a graph, and no checkpoint of weights; docs/bundles\.md says"):
        read_checkpoint(tmp_path / "net.onnx")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html>\n<title>Sign in</title>", "it is text, which begins '<!DOCTYPE html>'"),
        ("größer als nötig ".encode() * 100, "it is text, which begins 'größer als nötig"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "it is a pointer of Git LFS"),
    ],
)
@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
def test_the_error_names_an_empty_or_a_text_file(content: bytes, sentence: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(tmp_path / name)
    assert sentence in str(refused.value)
    assert "Error" not in str(refused.value)


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema"])
def test_the_running_average_is_read_and_reported(key: str, tmp_path: Path) -> None:
    weights, average = ViT(SMALL).state_dict(), ViT(SMALL).state_dict()
    torch.save({"state_dict": weights, key: average, "epoch": 3}, tmp_path / "file.pth")
    checkpoint = open_checkpoint(tmp_path / "file.pth")
    assert torch.equal(checkpoint.weights["head.weight"], average["head.weight"])
    spec, imported_weights = import_file(tmp_path / "file.pth", family="timm")
    assert torch.equal(imported_weights["head.weight"], average["head.weight"])
    assert spec.provenance["notes"] == [f"weights read from {key}, the running average; state_dict is left out"]

    torch.save({key: average}, tmp_path / "alone.pth")
    assert open_checkpoint(tmp_path / "alone.pth").weights.keys() == average.keys()
    torch.save({"state_dict": weights, key: None}, tmp_path / "none.pth")
    assert torch.equal(open_checkpoint(tmp_path / "none.pth").weights["head.weight"], weights["head.weight"])


@pytest.mark.parametrize(("prefix", "taken"), [("module.", 1), ("_orig_mod.", 1), ("module._orig_mod.", 2)])
def test_prefixes_of_parallel_and_compiled_training_are_stripped(prefix: str, taken: int, tmp_path: Path) -> None:
    weights = ViT(SMALL).state_dict()
    torch.save({"model": {f"{prefix}{key}": value for key, value in weights.items()}}, tmp_path / "file.pth")
    spec, _ = import_file(tmp_path / "file.pth", family="timm")
    assert len(spec.provenance["notes"]) == taken and "taken off every name" in spec.provenance["notes"][0]
    assert open_checkpoint(tmp_path / "file.pth").weights.keys() == weights.keys()


def test_headless_timm_encoder_needs_an_explicit_family(tmp_path: Path) -> None:
    """The preparation of its pixels depends on it: MAWS's are ImageNet's colours, AugReg's are not."""
    torch.save({key: value for key, value in ViT(SMALL).state_dict().items() if not key.startswith("head.")}, tmp_path / "file.pth")
    with pytest.raises(
        CheckpointError, match=r"fit the families timm, deit, mae, maws; say which it is with --family; .*\(it has no head: --set"
    ):
        import_file(tmp_path / "file.pth")
    timm, _ = import_file(tmp_path / "file.pth", family="timm", overrides={"heads": "4", "classes": "0"})
    maws, _ = import_file(tmp_path / "file.pth", family="maws")
    assert (timm.task, maws.task) == ("embed", "embed")
    assert timm.preprocess.mean != maws.preprocess.mean


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("blocks.0.ls1.gamma", "LayerScale"),
        ("blocks.1.gamma_2", "LayerScale"),
        ("blocks.0.attn.q_norm.weight", "QK-norm"),
        ("reg_token", "register tokens"),
        ("register_tokens", "register tokens"),
        ("rope.freqs", "rotary position embeddings"),
        ("blocks.0.attn.relative_position_bias_table", "relative position biases"),
        ("blocks.0.mlp.w12.weight", "gated MLPs (SwiGLU)"),
        ("attn_pool.latent", "attention pooling"),
        ("norm_pre.weight", "a norm before the first block"),
        ("blocks.0.attn.qkv.lora_A.weight", "LoRA adapters"),
    ],
)
@pytest.mark.parametrize("family", ["timm", None])
def test_what_cannot_be_imported_is_refused_with_its_name(key: str, word: str, family: str | None, tmp_path: Path) -> None:
    torch.save({**ViT(SMALL).state_dict(), key: torch.ones(32)}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError) as refused:
        import_file(tmp_path / "file.pth", family=family)
    assert f"{word} cannot be imported" in str(refused.value) and str(refused.value).endswith("`opsin import FILE.onnx --as classify`")


def test_truncated_and_absent_files_are_refused(tmp_path: Path) -> None:
    data = load_recording("tome/vit_swag").read_bytes()
    (tmp_path / "half.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"half\.pth: damaged"):
        read_checkpoint(tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_checkpoint(tmp_path / "absent.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pth")
    torch.save({"model": {"epoch": 3}}, tmp_path / "numbers.pth")
    with pytest.raises(CheckpointError, match="epoch is no tensor"):
        read_checkpoint(tmp_path / "numbers.pth")


@pytest.mark.parametrize(("family", "align_corners"), [("timm", False), ("mae", False), ("swag", True)])
def test_another_image_size_resizes_positions_as_the_family_does(family: str, align_corners: bool) -> None:
    """SWAG aligns corners, the others do not; no recorded case shows the former."""
    pool = Pool.MEAN if family == "mae" else Pool.TOKEN
    weights = families()[family].table.export(
        ViT(ViTConfig(image_size=32, patch_size=8, width=64, depth=1, heads=1, pool=pool)).state_dict()
    )
    found = fit(weights, families()[family], {"image_size": 48})
    old = fit(weights, families()[family], {}).weights["pos_embed"]
    grid = old[:, 1:].view(1, 4, 4, 64).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=align_corners).permute(0, 2, 3, 1).reshape(1, 36, 64)
    assert found.perfect
    torch.testing.assert_close(found.weights["pos_embed"], torch.cat([old[:, :1], expected], dim=1))


@pytest.mark.parametrize("absent", [["pos_embed", "decoder_pos_embed"], ["decoder_pos_embed"], []])
@pytest.mark.parametrize("image_size", [{}, {"image_size": 64}])
def test_an_autoencoder_computes_the_tables_that_its_file_lacks(absent: list[str], image_size: dict[str, int]) -> None:
    """The tables are those of 224 px or of the requested size."""
    sizes = {"patch_size": 32, "width": 32, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    weights = {name: value for name, value in MAE(MAEConfig(**sizes)).state_dict().items() if name not in absent}
    found = fit(weights, families()["mae_pretrained"], {"heads": 2, "decoder_heads": 2, **image_size})
    assert found.perfect
    assert found.config() == MAEConfig(**sizes, **image_size)
    tables = MAE(MAEConfig(**sizes, **image_size))
    assert torch.equal(found.weights["pos_embed"], tables.pos_embed)
    assert torch.equal(found.weights["decoder_pos_embed"], tables.decoder_pos_embed)


def test_swag_keeps_the_corners_of_the_grid() -> None:
    weights = families()["swag"].table.export(ViT(ViTConfig(image_size=32, patch_size=8, width=64, depth=1, heads=1)).state_dict())
    resized = fit(weights, families()["swag"], {"image_size": 64}).weights["pos_embed"][0, 1:].view(8, 8, 64)
    grid = weights["encoder.pos_embedding"][1:, 0].view(4, 4, 64)
    torch.testing.assert_close(resized[[0, 0, -1, -1], [0, -1, 0, -1]], grid[[0, 0, -1, -1], [0, -1, 0, -1]])


def test_an_imported_bundle_answers_as_the_recorded_model(tmp_path: Path) -> None:
    spec, weights = import_file(load_recording("tome/vit_swag"))
    loaded = load(seal(tmp_path, spec, weights))
    assert spec.ladder[0].merge.r > 0
    io = load_file(GOLDEN / "tome/vit_swag/case.safetensors")
    with torch.inference_mode():
        answer = loaded.model(io["in.img"], merge=MergeSchedule.constant(3))
    torch.testing.assert_close(answer.logits, io["out.r3_prop.logits"], atol=1e-4, rtol=1e-4)
    outputs = loaded.forward({"pixels": np.zeros((2, 32, 32, 3), np.uint8)}, {"merge": [3, 3, 3]})
    assert outputs["tokens"].tolist() == [[17, 8], [17, 8]]


def test_import_infers_from_keys_and_defaults_to_family(tmp_path: Path) -> None:
    config = ViTConfig(image_size=56, patch_size=14, channels=1, classes=6, width=128, depth=3, heads=2, mlp_ratio=2.0, qkv_bias=False)
    torch.save(ViT(config).state_dict(), tmp_path / "file.pth")
    spec, _ = import_file(tmp_path / "file.pth", family="timm", overrides={}, labels=["a", "b", "c", "d", "e", "f"])
    assert ViTConfig(**spec.config) == config
    assert (spec.preprocess.image_size, spec.preprocess.short_side) == (56, 62)
    assert spec.preprocess.mean == (0.5, 0.5, 0.5)
    assert spec.labels[5] == "f"
    assert spec.provenance["family"] == "timm"
    assert (spec.default_rung, [rung.accuracy for rung in spec.ladder]) == (None, [None] * len(spec.ladder))


@pytest.mark.parametrize("family", ["timm", "mae_pretrained", "mae_st"])
def test_mlps_are_as_wide_as_in_the_file(family: str) -> None:
    """49 / 44 · 44 is a hair below 49, and the product is truncated."""
    config = {"image_size": 16, "patch_size": 8, "width": 44, "depth": 1, "heads": 4, "mlp_ratio": 1.12}
    extra = {"frames": 4} if family == "mae_st" else {}
    small = {"decoder_width": 44, "decoder_depth": 1, "decoder_heads": 4} if family == "mae_pretrained" else {"classes": 3}
    architecture = architectures()[families()[family].architecture]
    weights = families()[family].export(architecture.build(architecture.config(**config, **extra, **small)).state_dict())
    assert weights["blocks.0.mlp.fc1.weight"].shape == (49, 44)
    found = fit(weights, families()[family], {"heads": 4, **({"decoder_heads": 4} if "decoder_heads" in small else {})})
    assert found.perfect


def test_the_width_of_an_mlp_is_truncated_as_published() -> None:
    assert ViT(replace(SMALL, width=6, heads=2, mlp_ratio=2.65)).blocks[0].mlp.fc1.out_features == 15  # 15.9


def test_huge_models_have_sixteen_heads() -> None:
    with torch.device("meta"):
        weights = ViT(ViTConfig(width=1280, heads=16, patch_size=14, depth=1)).state_dict()
    assert fit(weights, families()["timm"], {}).fields["heads"] == 16


def test_what_is_set_by_hand_wins() -> None:
    overrides = {"heads": "4", "mean": "0.1,0.2,0.3", "proportional_attention": "true", "image_size": "48", "short_side": "50"}
    spec, weights = import_file(load_recording("tome/vit_mae_gap"), overrides=overrides)
    assert spec.preprocess.mean == (0.1, 0.2, 0.3)
    assert spec.config["proportional_attention"] is True
    assert (spec.preprocess.image_size, spec.preprocess.short_side) == (48, 50)
    assert weights["pos_embed"].shape == (1, 37, 32)


@pytest.mark.parametrize(
    ("case", "changes", "sentence"),
    [
        ("tome/vit_timm", {}, "its keys fit the families timm, deit, mae, maws; say which it is with --family"),
        ("tome/vit_timm", {"family": "resnet"}, "family 'resnet' is unknown; known are timm, deit, mae, swag, torchvision, mae_pretrained"),
        ("tome/vit_timm", {"family": "swag"}, r"does not fit swag: missing: class_token, .*; unexpected: cls_token, "),
        ("mae/pretrain_pixel", {"family": "mae"}, r"unexpected: mask_token, .*pre-training weights"),
        ("mae/finetune_gap", {"family": "timm"}, r"does not fit timm: unexpected: fc_norm\.weight, fc_norm\.bias|missing: norm"),
        ("tome/vit_mae_gap", {"overrides": {}}, "width 32 does not determine the number of heads"),
        (
            "mae/pretrain_pixel",
            {"overrides": {}},
            "width 48 and decoder width 24 do not determine .* heads and of decoder heads: .* --set heads=4 --set decoder_heads=4",
        ),
        ("tome/vit_mae_gap", {"overrides": {"heads": "5"}}, "width 32 cannot be split into 5 heads"),
        ("tome/vit_mae_gap", {"overrides": {"heads": "many"}}, "heads: "),
        ("tome/vit_mae_gap", {"overrides": {"haeds": "4"}}, "haeds: cannot be set; what can be is .*heads"),
        ("tome/vit_mae_gap", {"overrides": {"heads": "4", "mean": "1,2"}}, "mean"),
        ("tome/vit_mae_gap", {"overrides": {"heads": "4", "image_size": "30"}}, "image_size 30"),
        ("tome/vit_mae_gap", {"overrides": {"heads": "4", "width": "64"}}, "of another shape or type: "),
        ("tome/vit_mae_gap", {"labels": ["cat"]}, "has 6 classes, but 1 label was given"),
        ("tome/vit_mae_gap", {"name": "My Model"}, "name: .*use a-z"),
    ],
)
def test_an_import_that_cannot_be_says_why(case: str, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        import_file(load_recording(case), **changes)


def test_bare_encoder_is_imported_for_features_of_its_family(tmp_path: Path) -> None:
    weights = {key: value for key, value in read_checkpoint(load_recording("mae/pretrain_pixel")).items() if "decoder" not in key}
    torch.save({key: value for key, value in weights.items() if key != "mask_token"}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"missing: head\.weight, head\.bias \(without a head .*; --set classes=0 takes an encoder"):
        import_file(tmp_path / "file.pth", family="mae")
    spec, _ = import_file(tmp_path / "file.pth", family="mae", overrides={"heads": "4", "classes": "0"})
    assert (spec.task, spec.config["proportional_attention"], spec.preprocess.short_side) == ("embed", False, 36)


def test_a_file_that_is_nearly_a_family_gets_the_difference(tmp_path: Path) -> None:
    weights = ViT(SMALL).state_dict()
    del weights["blocks.1.mlp.fc1.bias"]
    weights["blocks.0.ls1.gamma"] = torch.ones(32)
    torch.save(weights, tmp_path / "file.pth")
    with pytest.raises(
        CheckpointError, match=r"fits no known family.*missing: blocks\.\{i\}\.mlp\.fc1\.bias; unexpected: blocks\.\{i\}\.ls1\.gamma"
    ):
        import_file(tmp_path / "file.pth")


def test_a_missing_part_of_a_joined_matrix_is_named() -> None:
    weights = read_checkpoint(load_recording("tome/vit_mae_st_composed"))
    del weights["blocks.2.attn.k.weight"]
    assert fit(weights, families()["mae_st"], {"heads": 4}).missing == ["blocks.2.attn.k.weight"]


def test_a_grid_that_is_no_square_is_unlike_any_family() -> None:
    weights = ViT(SMALL).state_dict()
    weights["pos_embed"] = torch.zeros(1, 16, 32)
    with pytest.raises(UnlikeFamily, match="15 patches, which is not a square"):
        fit(weights, families()["timm"], {})
