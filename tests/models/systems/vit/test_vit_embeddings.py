"""Vectors of ViTs as a worker asks for them: against recorded features, and what merged tokens say of themselves."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models import bundle
from models.bundle import BundleSpec
from models.bundle_schema import FileDigest, Preprocess
from models.loading import LoadedModel, load
from models.registry import architectures
from models.systems.vit.model import Pool, ViT, ViTConfig
from tests.golden.case import GOLDEN, read_case
from tests.golden.checks import are_units, cosines, load_case, pixels_of, random_pixels, zero_parameters
from tests.golden.replays.tome import merge_schedule

SMALL = ViTConfig(image_size=16, patch_size=4, classes=0, width=32, depth=3, heads=4)
MERGE = (3, 0, 4)
PREPROCESS = Preprocess(image_size=16, short_side=16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))

FEATURES = {
    "maws/vision_features": ("maws", {"heads": "5"}, "out.output"),
    "mae/finetune_gap": ("mae", {"heads": "4"}, "out.features"),
    "mae/finetune_cls": ("mae", {"heads": "4"}, "out.features"),
    "rev/minrev_tiny": ("minrev", {"heads": "4"}, "mid.pooled_norm"),
}
"""Case → its family, what its small size does not determine, and the recorded features, which are those of the model's own pooling."""


def build(root: Path, config: ViTConfig = SMALL) -> LoadedModel:
    torch.manual_seed(0)
    model = ViT(config)
    for parameter in model.parameters():  # so that images differ and norms do something
        torch.nn.init.normal_(parameter, std=0.3)
    save_file(model.state_dict(), root / "weights")
    spec = BundleSpec(
        name="test",
        version="1",
        task="embed",
        architecture="vit",
        config=asdict(config),
        preprocess=PREPROCESS,
        license="CC0-1.0",
        weights=FileDigest(sha256="0" * 64, bytes=0),
    )
    return load(bundle.write(root, spec, root / "weights"))


def last_tokens(model: LoadedModel, options: dict[str, Any], norm: str = "norm") -> tuple[Tensor, dict[str, Any]]:
    """Return the last input of a norm, as the blocks left it, and the outputs."""
    seen: list[Tensor] = []
    handle = model.model.get_submodule(norm).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    outputs = model.forward(random_pixels(2, 16), options)
    handle.remove()
    return seen[-1], outputs


@pytest.mark.parametrize("name", FEATURES)
def test_the_vector_is_the_recorded_feature(name: str, tmp_path: Path) -> None:
    family, settings, output = FEATURES[name]
    case = read_case(GOLDEN / name)
    kind, _, key = output.partition(".")
    expected = (case.outputs if kind == "out" else case.intermediates)[key]
    images = case.inputs["img" if "img" in case.inputs else "x"]
    outputs = load_case(case, tmp_path, family, settings, "embed").forward(pixels_of(images), {})
    assert are_units(outputs["embedding"])
    assert (cosines(outputs["embedding"], expected) >= 0.99999).all()


def test_reversible_token_vectors_equal_recorded_streams(tmp_path: Path) -> None:
    case = read_case(GOLDEN / "rev/rev_vit_tiny")
    outputs = load_case(case, tmp_path, "rev_vit", {}, "embed").forward(pixels_of(case.inputs["x"]), {"output": "tokens"})
    assert are_units(outputs["vectors"])
    assert (cosines(outputs["vectors"], case.intermediates["fused_norm_tokens"]) >= 0.99999).all()
    assert outputs["sizes"].tolist() == [[1] * 16] * 2
    assert outputs["owners"].tolist() == [list(range(16))] * 2


@pytest.mark.parametrize("run", ["r4_prop", "dec6_prop", "inc6_prop", "list_prop", "big_prop"])
def test_sizes_and_owners_are_those_recorded(run: str, tmp_path: Path) -> None:
    case = read_case(GOLDEN / "tome/vit_timm")
    flags = case.config["runs"][run]
    r = merge_schedule(flags["r"], flags["r_type"]).expand(4)
    model = load_case(case, tmp_path, "timm", {"heads": "4"}, "embed")
    outputs = model.forward(pixels_of(case.inputs["img"]), {"output": "tokens", "merge": r})
    size, source = case.outputs[f"{run}.size"], case.outputs[f"{run}.source"]
    assert outputs["sizes"].dtype == outputs["owners"].dtype == np.int32
    assert outputs["sizes"].tolist() == size[:, 1:, 0].int().tolist()
    assert outputs["owners"].tolist() == (source[:, 1:, 1:].argmax(dim=1)).tolist()
    assert outputs["tokens"].tolist() == [[37, size.shape[1]]] * 2


def test_owners_agree_with_sizes(tmp_path: Path) -> None:
    outputs = build(tmp_path).forward(random_pixels(5, 16), {"output": "tokens", "merge": MERGE})
    assert outputs["sizes"].shape == (5, 9) and outputs["owners"].shape == (5, 16)
    assert [np.bincount(owners, minlength=9).tolist() for owners in outputs["owners"]] == outputs["sizes"].tolist()
    assert (outputs["sizes"].max(axis=1) > 1).all()


@pytest.mark.parametrize("merge", [(), MERGE])
@pytest.mark.parametrize(("pool", "norm"), [(Pool.TOKEN, "norm"), (Pool.NORM_MEAN, "norm"), (Pool.MEAN, "fc_norm")])
def test_a_token_vector_is_the_token_after_the_final_norm(pool: Pool, norm: str, merge: tuple[int, ...], tmp_path: Path) -> None:
    model = build(tmp_path, replace(SMALL, pool=pool))
    tokens, outputs = last_tokens(model, {"output": "tokens", "merge": merge}, norm)
    normalised = model.model.get_submodule(norm)(tokens)[:, 1:]
    assert are_units(outputs["vectors"])
    torch.testing.assert_close(torch.from_numpy(outputs["vectors"]), torch.nn.functional.normalize(normalised, dim=-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("merge", [(), MERGE])
def test_cls_is_class_token_and_mean_is_size_weighted_patches(merge: tuple[int, ...], tmp_path: Path) -> None:
    model = build(tmp_path)
    tokens, outputs = last_tokens(model, {"output": "tokens", "merge": merge})
    normalised, sizes = model.model.get_submodule("norm")(tokens), torch.from_numpy(outputs["sizes"])
    mean = (normalised[:, 1:] * sizes.unsqueeze(-1)).sum(dim=1) / 16
    for pool, expected in {None: normalised[:, 0], "cls": normalised[:, 0], "mean": mean}.items():
        vectors = model.forward(random_pixels(2, 16), {"merge": merge, "pool": pool})
        assert are_units(vectors["embedding"])
        assert (cosines(vectors["embedding"], expected) >= 0.9999999).all()
        assert vectors["tokens"].tolist() == [[17, 17 - sum(merge)]] * 2


def test_a_model_with_a_mean_of_its_own_pools_by_it(tmp_path: Path) -> None:
    """MAE, fine-tuned, norms after the mean; its class token gets the same norm."""
    model = build(tmp_path, replace(SMALL, pool=Pool.MEAN))
    tokens, _ = last_tokens(model, {"output": "tokens"}, "fc_norm")
    norm = model.model.get_submodule("fc_norm")
    for pool, expected in {
        None: norm(tokens[:, 1:].mean(dim=1)),
        "mean": norm(tokens[:, 1:].mean(dim=1)),
        "cls": norm(tokens[:, 0]),
    }.items():
        assert (cosines(model.forward(random_pixels(2, 16), {"pool": pool})["embedding"], expected) >= 0.9999999).all()


def test_both_special_tokens_of_a_distilled_model_count_alike(tmp_path: Path) -> None:
    model = build(tmp_path, replace(SMALL, distilled=True))
    tokens, outputs = last_tokens(model, {"output": "tokens", "merge": MERGE})
    normalised = model.model.get_submodule("norm")(tokens)
    pooled = model.forward(random_pixels(2, 16), {"merge": MERGE})
    assert (cosines(pooled["embedding"], normalised[:, :2].mean(dim=1)) >= 0.9999999).all()
    assert outputs["tokens"].tolist() == pooled["tokens"].tolist() == [[18, 11]] * 2
    assert outputs["sizes"].sum(axis=1).tolist() == [16, 16]
    assert model.forward(random_pixels(2, 16), {"pool": "mean"})["embedding"].shape == (2, 32)


@pytest.mark.parametrize("options", [{}, {"merge": MERGE}, {"pool": "mean", "merge": MERGE}, {"output": "tokens", "merge": MERGE}], ids=str)
def test_a_vector_does_not_depend_on_its_batch(options: dict[str, Any], tmp_path: Path) -> None:
    model, name = build(tmp_path), "vectors" if "output" in options else "embedding"
    arrays = random_pixels(7, 16)
    joint = model.forward(arrays, options)[name]
    for row, image in zip(joint, arrays["pixels"], strict=True):
        assert (cosines(model.forward({"pixels": image[None]}, options)[name][0], row) >= 0.9999999).all()
    assert (cosines(joint[0], joint[1]) < 0.999).any()


def test_a_feature_without_length_is_no_unit_vector(tmp_path: Path) -> None:
    """The check of answers handles it; the result is not a made-up number."""
    model = build(tmp_path)
    zero_parameters(model, "norm.weight", "norm.bias")
    assert not model.forward(random_pixels(2, 16), {})["embedding"].any()
    assert not model.forward(random_pixels(2, 16), {"output": "tokens"})["vectors"].any()
    model.model.get_parameter("norm.bias").fill_(torch.nan)
    assert np.isnan(model.forward(random_pixels(2, 16), {})["embedding"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "max"}, "pool: 'max' is not offered by this model, which has cls, mean"),
        ({"output": "patches"}, "output: 'patches' is neither 'pooled' nor 'tokens'"),
    ],
)
def test_other_options_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        build(tmp_path).forward(random_pixels(1, 16), options)


@pytest.mark.parametrize(
    ("fields", "pools"),
    [
        ({}, ("cls", "mean")),
        ({"pool": "token"}, ("cls", "mean")),
        ({"pool": "mean"}, ("mean", "cls")),
        ({"pool": "norm-mean", "class_token": False, "reversible": True}, ("mean",)),
    ],
)
def test_the_config_of_a_bundle_gives_its_pools(fields: dict[str, Any], pools: tuple[str, ...], tmp_path: Path) -> None:
    vit = architectures()["vit"]
    assert vit.pools(fields) == pools and vit.token_vectors(fields)
    model = build(tmp_path, replace(SMALL, **{**fields, "pool": Pool(fields.get("pool", "token"))}))
    for pool in pools:
        assert are_units(model.forward(random_pixels(2, 16), {"pool": pool, "merge": MERGE})["embedding"])
    for other in {"cls", "mean"} - set(pools):
        with pytest.raises(ValueError, match=f"pool: '{other}' is not offered"):
            model.forward(random_pixels(2, 16), {"pool": other})
