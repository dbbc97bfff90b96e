"""Reversible trunks: the recomputing backward pass against plain autograd, drop-path replay, merging, mixed precision, bundles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.checkpoints import families, fit, import_checkpoint, read_checkpoint
from models.checkpoints.checkpoint_file import open_checkpoint
from models.layers.forward import normalise
from models.layers.patches import resize_table
from models.layers.reversible import couple, run_trunk, split_streams
from models.layers.token_merging import Tokens
from models.loading import load
from models.merge_schedule import MergeSchedule
from models.systems.mvit import reversible as mvit_reversible
from models.systems.mvit.checkpoint_reversible import stage_fusion
from models.systems.mvit.reversible import RevMViT, RevMViTConfig, StreamFusion
from models.systems.mvit.trunk import Positions
from models.systems.vit.model import Pool, ViT, ViTConfig
from tests.golden.case import read_case
from tests.golden.replays import rev as replay_rev
from tests.support.bundles.vit import seal

GOLDEN = Path(__file__).parents[3] / "golden" / "rev"

SMALL_VIT = ViTConfig(
    image_size=16,
    patch_size=4,
    classes=5,
    width=24,
    depth=4,
    heads=3,
    class_token=False,
    pool=Pool.NORM_MEAN,
    reversible=True,
    drop_path=0.5,
)
SMALL_MVIT = RevMViTConfig(
    image_size=32,
    frames=4,
    classes=5,
    width=8,
    depth=5,
    transitions=(1, 3),
    width_growth=((1, 2.0), (3, 2.0)),
    head_growth=((1, 2.0), (3, 2.0)),
    q_strides=((1, 1, 2, 2), (3, 1, 2, 2)),
    kv_stride=(1, 2, 2),
    drop_path=0.4,
)
PICTURES = RevMViTConfig(
    image_size=16,
    frames=1,
    classes=5,
    patch_kernel=(7, 7),
    patch_stride=(4, 4),
    patch_padding=(3, 3),
    width=8,
    depth=3,
    transitions=(1,),
    width_growth=((1, 2.0),),
    head_growth=((1, 2.0),),
    q_strides=((1, 1, 2, 2),),
    kv_stride=(1, 2, 2),
    pool_kernel=(1, 3, 3),
    positions=Positions.JOINT,
)

Model = ViT | RevMViT


def built(config: ViTConfig | RevMViTConfig, seed: int = 0) -> Model:
    """Build a model whose every parameter matters: norms and biases away from their starting values."""
    torch.manual_seed(seed)
    model = ViT(config) if isinstance(config, ViTConfig) else RevMViT(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1) * 0.5, std=0.2)
    return model


def pixels_for(model: Model, batch: int = 3) -> Tensor:
    config = model.config
    clip = isinstance(config, RevMViTConfig) and not config.images
    shape = (batch, config.channels, *([config.frames] if clip else []), config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=next(model.parameters()).dtype)


def gradients(model: Model, pixels: Tensor, *, autocast: bool = False, **arguments: Any) -> dict[str, Tensor]:
    """Return the gradients of a loss for all trained parameters, and for the input as `pixels`."""
    pixels = pixels.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):  # the backward pass is outside, as in any training loop
        logits = model(pixels, **arguments).logits
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=logits.dtype)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad((logits * weights).sum(), [pixels, *trained.values()])
    return dict(zip(["pixels", *trained], found, strict=True))


def worst(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], floor: float = 1e-3) -> float:
    """Return the largest deviation, relative to each tensor's largest entry. Gradients that are zero but for noise count by `floor`."""
    assert got.keys() == expected.keys()
    return max(float((got[name] - expected[name]).abs().max() / expected[name].abs().max().clamp(min=floor)) for name in expected)


def keep_some(model: Model, batch: int = 3) -> Tensor:
    keep = torch.rand(model.config.depth, batch, generator=torch.Generator().manual_seed(3)) < 0.6
    keep[0] = True
    return keep.double()


CONFIGS = {
    "vit": SMALL_VIT,
    "vit with class token and mean": replace(SMALL_VIT, class_token=True, pool=Pool.MEAN),
    "video": SMALL_MVIT,
    **{f"pictures, {fusion}": replace(PICTURES, stage_fusion=fusion) for fusion in StreamFusion},
    "pictures, mlp": replace(PICTURES, stage_fusion=StreamFusion.CONCATENATION, stage_mlp_ratio=1.5),
    "pictures, normed mlp": replace(PICTURES, stage_fusion=StreamFusion.CONCATENATION, stage_mlp_ratio=2.0, stage_norm=True),
    "pictures, mean of means": replace(PICTURES, final_fusion=StreamFusion.MEAN, mean_first=True),
    "pictures, transition without growth": replace(PICTURES, width_growth=(), head_growth=()),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("dropping", [False, True], ids=["whole", "dropping"])
def test_recomputing_gives_the_gradients_of_plain_autograd(config: ViTConfig | RevMViTConfig, dropping: bool) -> None:
    """The oracle is evaluation mode: nothing is recomputed and autograd keeps everything. In float64 only rounding is left."""
    model = built(replace(config, drop_path=0.4 if dropping else 0.0)).double()
    pixels, keep = pixels_for(model), keep_some(model) if dropping else None
    plain = gradients(model.eval(), pixels, keep=keep)
    recomputed = gradients(model.train(), pixels, keep=keep)
    assert worst(recomputed, plain) < 1e-11
    idle = set() if dropping else {name for name, value in recomputed.items() if value.abs().max() < 1e-6}
    assert all(name.endswith("norm_k.bias") for name in idle)  # softmax does not see what all keys have in common


@pytest.mark.parametrize("config", [SMALL_VIT, SMALL_MVIT], ids=["vit", "video"])
def test_recomputing_is_as_exact_as_float32_allows(config: ViTConfig | RevMViTConfig) -> None:
    """The bound that the specification measured on the recorded cases."""
    model = built(replace(config, drop_path=0.0))
    pixels = pixels_for(model)
    assert worst(gradients(model.train(), pixels), gradients(model.eval(), pixels), floor=1e-2) < 1e-5


@pytest.mark.parametrize("config", [SMALL_VIT, SMALL_MVIT], ids=["vit", "video"])
def test_drop_path_is_repeated_on_recompute(config: ViTConfig | RevMViTConfig) -> None:
    """The loss of one seed is a function of the input, whose slope, by finite differences, must be the gradient."""
    model = built(config).double().train()
    pixels, direction = pixels_for(model), torch.randn(pixels_for(model).shape, dtype=torch.float64)

    def loss(at: Tensor) -> Tensor:
        torch.manual_seed(5)
        return model(at).logits.square().sum()

    at = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(at), at)
    step = 1e-6
    slope = (loss(pixels + step * direction) - loss(pixels - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope.detach()), rel=1e-6)
    torch.manual_seed(6)
    assert not torch.equal(model(pixels).logits, model(pixels).logits)  # it does drop something


def test_sample_dropped_by_transition_is_recomputed_exactly() -> None:
    """The sample's streams are 0 in the run of blocks behind: recomputed ones would be rounding errors, which a norm amplifies."""
    config = replace(PICTURES, depth=4, drop_path=0.4)
    model, keep = built(config), torch.ones(4, 3)
    keep[1, 1:] = 0
    pixels = pixels_for(model)
    assert worst(gradients(model.train(), pixels, keep=keep), gradients(model.eval(), pixels, keep=keep), floor=1e-2) < 1e-5


def test_both_branches_of_a_dropped_block_are_left_out() -> None:
    model = built(SMALL_VIT)
    x = torch.randn(2, 16, 24)
    y1, y2 = couple(model.blocks[3], Tokens(x), torch.tensor([1.0, 0.0])).forward(x, 2 * x)
    assert torch.equal(y1[1], x[1]) and torch.equal(y2[1], 2 * x[1])
    assert not torch.equal(y1[0], x[0]) and not torch.equal(y2[0], 2 * x[0])


def test_a_block_is_undone_by_its_inverse() -> None:
    model = built(SMALL_VIT).double()
    x1, x2 = torch.randn(2, 2, 16, 24, dtype=torch.float64)
    coupling = couple(model.blocks[1], Tokens(x1), torch.tensor([1.0, 1.0]))
    for got, expected in zip(coupling.inverse(*coupling.forward(x1, x2)), (x1, x2), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_training_keeps_no_activation_of_reversible_blocks() -> None:
    """Memory that autograd saves, counted as it saves, does not grow with depth."""

    def save(depth: int, training: bool) -> int:
        model = built(replace(SMALL_VIT, depth=depth, drop_path=0.0)).train(training)
        parameters = {parameter.data_ptr() for parameter in model.parameters()}
        count = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal count
            count += 0 if tensor.data_ptr() in parameters else tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(pixels_for(model))
        return count

    assert save(12, training=True) == save(3, training=True) < save(3, training=False) < save(12, training=False)


def test_frozen_parts_do_not_stop_the_gradients_of_others() -> None:
    """The published code silently gives no gradients where the stem is frozen."""
    model = built(SMALL_VIT).double()
    for part in (model.patch_embed, model.blocks[1]):
        part.requires_grad_(False)
    model.pos_embed.requires_grad_(False)
    pixels, keep = pixels_for(model), keep_some(model)

    def train() -> dict[str, Tensor]:
        model.zero_grad()
        model(pixels, keep=keep).logits.square().sum().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    model.eval()
    plain = train()
    model.train()
    assert worst(train(), plain) < 1e-11
    assert "blocks.0.mlp.fc1.weight" in plain and "blocks.1.mlp.fc1.weight" not in plain


def test_a_parameter_of_two_blocks_gets_both_gradients() -> None:
    model = built(replace(SMALL_VIT, drop_path=0.0)).double()
    model.blocks[2].mlp = model.blocks[1].mlp
    pixels = pixels_for(model)
    assert worst(gradients(model.train(), pixels), gradients(model.eval(), pixels)) < 1e-11


@pytest.mark.parametrize(("config", "bound"), [(SMALL_VIT, 0.001), (SMALL_MVIT, 0.005)], ids=["vit", "video"])
def test_recompute_rounds_like_forward_under_autocast(config: ViTConfig | RevMViTConfig, bound: float) -> None:
    """Recomputed in float32, branches would not give what the forward pass added, and the inverse would lead elsewhere. The bounds are on
    the length of the whole gradient's deviation to that of the gradient."""
    model = built(replace(config, drop_path=0.0))
    pixels = pixels_for(model)
    types: list[torch.dtype] = []
    for name, module in model.named_modules():
        if name.endswith("mlp.fc1"):
            module.register_forward_hook(lambda layer, inputs, output: types.append(output.dtype))
    plain, recomputed = (
        torch.cat([gradient.flatten() for gradient in gradients(model.train(training), pixels, autocast=True).values()])
        for training in (False, True)
    )
    assert float((recomputed - plain).norm() / plain.norm()) < bound
    assert set(types) == {torch.bfloat16}


def test_the_streams_of_bfloat16_weights_are_float32_in_training() -> None:
    """Coarser streams would lose what the inverse subtracts. The oracle is the same model with plain autograd, its inputs in float32."""
    model = built(replace(SMALL_VIT, drop_path=0.0))
    exact = gradients(model.train(), pixels_for(model))
    model = model.bfloat16()
    rounded = gradients(model, pixels_for(model))
    names = ["blocks.0.mlp.fc1.weight", "blocks.0.attn.proj.weight", "pixels"]
    for name in names:
        similarity = torch.cosine_similarity(rounded[name].double().flatten(), exact[name].double().flatten(), dim=0)
        assert similarity > 0.99, name


def test_merging_in_a_reversible_trunk_keeps_the_gradients() -> None:
    """Blocks that merge are not recomputed, runs between them are. This is Opsin's own: there is no publication on merging in reversible
    models."""
    model = built(replace(SMALL_VIT, drop_path=0.0)).double()
    pixels, merge = pixels_for(model), MergeSchedule.parse([0, 3, 0, 2])
    plain = gradients(model.eval(), pixels, merge=merge)
    assert worst(gradients(model.train(), pixels, merge=merge), plain) < 1e-11


def test_merged_reversible_tokens_are_the_means_of_what_merged() -> None:
    """If branches add nothing, both streams of a merged token are the mean of the patches in it."""
    model = built(replace(SMALL_VIT, drop_path=0.0)).eval()
    for block in model.blocks:
        for last in (block.attn.proj, block.mlp.fc2):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    images = pixels_for(model)
    tokens = run_trunk(model.blocks, model._embed(images, True), [3, 0, 4, 0], reversible=True)
    assert tokens.source is not None and tokens.size is not None
    means = tokens.source @ model._embed(images, False).x / tokens.size
    for stream in split_streams(tokens.x):
        torch.testing.assert_close(stream, means)


def test_a_reversible_vit_is_a_reversible_mvit_without_pooling() -> None:
    """SlowFast builds both, which are formulations of one model, of the same parts."""
    vit = built(replace(SMALL_VIT, drop_path=0.0)).eval()
    config = replace(
        PICTURES,
        patch_kernel=(4, 4),
        patch_padding=(0, 0),
        width=24,
        depth=4,
        heads=3,
        width_growth=(),
        head_growth=(),
        qkv_bias=True,
        q_strides=(),
        kv_stride=None,
        transitions=(),
    )
    mvit = RevMViT(config).eval()
    mvit.load_state_dict({"pos_embed.joint" if name == "pos_embed" else name: value for name, value in vit.state_dict().items()})
    images = pixels_for(vit)
    torch.testing.assert_close(mvit(images).logits, vit(images).logits)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"transitions": (4,), "q_strides": ()}, "must be reversible"),
        ({"transitions": (0, 3)}, "must follow a reversible block"),
        ({"transitions": (1, 2)}, "must follow a reversible block"),
        ({"transitions": (1,)}, "only a transition"),
        ({"final_fusion": StreamFusion.MEAN}, "mean_first"),
        ({"stage_mlp_ratio": 2.0}, "concatenation"),
        ({"image_size": 24}, "does not divide the grid"),
        ({"positions": Positions.NONE}, "table of positions"),
    ],
)
def test_configs_that_cannot_be_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(SMALL_MVIT, **changes)


def test_only_transitions_pool_queries_if_all_blocks_are_listed() -> None:
    listed = ((0, 1, 1, 1), (1, 1, 2, 2), (2, 1, 1, 1))
    assert built(replace(PICTURES, q_strides=listed)).state_dict().keys() == built(PICTURES).state_dict().keys()


def test_pixels_of_another_size_are_refused() -> None:
    model = built(SMALL_MVIT)
    with pytest.raises(ValueError, match="grid"):
        model(torch.zeros(1, 3, 4, 64, 64))


def test_training_starts_as_published() -> None:
    torch.manual_seed(0)
    for model in (ViT(replace(SMALL_VIT, width=96)), RevMViT(replace(SMALL_MVIT, width=96))):
        assert bool((model.blocks[0].mlp.fc1.bias == 0.02).all()) and bool((model.norm.bias == 0.02).all())
        assert float(model.blocks[0].mlp.fc1.weight.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_a_rev_vit_becomes_a_bundle_that_classifies(tmp_path: Path) -> None:
    folder = GOLDEN / "rev_vit_tiny"
    spec, weights = import_checkpoint(
        folder / "checkpoint.pth", family=None, labels=None, overrides={}, name="rev", version="1", license="Apache-2.0"
    )
    assert (spec.architecture, spec.config["reversible"], spec.config["heads"]) == ("vit", True, 4)
    loaded = load(seal(tmp_path, spec, weights))
    case = read_case(folder)
    with torch.inference_mode():
        answer = loaded.model(case.inputs["x"]).logits.softmax(dim=-1)
    torch.testing.assert_close(answer, case.outputs["probs"], rtol=1e-4, atol=1e-5)
    outputs = loaded.forward({"pixels": np.zeros((2, 32, 32, 3), np.uint8)}, {"merge": [2, 0, 2]})
    assert outputs["tokens"].tolist() == [[16, 12], [16, 12]]


def test_a_rev_mvit_of_pictures_becomes_a_bundle_that_classifies(tmp_path: Path) -> None:
    case = read_case(GOLDEN / "rev_mvit_image_tiny")
    spec, weights = import_checkpoint(case.checkpoint, family=None, labels=None, overrides={}, name="rev", version="1", license="CC0-1.0")
    loaded = load(seal(tmp_path, spec, weights))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    outputs = loaded.forward({"pixels": pixels}, {"merge": [0, 0, 0, 0]})
    expected = loaded.model(normalise(torch.from_numpy(pixels), spec.image_preprocess, torch.float32)).logits
    torch.testing.assert_close(torch.from_numpy(outputs["logits"]), expected)
    assert outputs["tokens"].tolist() == [[256, 64], [256, 64]]


@pytest.mark.parametrize(("name", "millions"), [("rev_vit_s", 22.43), ("rev_vit_b", 87.34), ("rev_vit_l", 305.35)])
def test_plain_sizes_have_as_many_parameters_as_the_paper_says(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = ViT(mvit_reversible.PUBLISHED_VITS[name])
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_weights_give_the_published_sizes() -> None:
    for config in mvit_reversible.PUBLISHED.values():
        with torch.device("meta"):
            weights = RevMViT(config).state_dict()
        assert families()["rev_mvit"].config(weights, {}) == {name: getattr(config, name) for name in config.__dataclass_fields__}


def rev_vit_configuration() -> dict[str, Any]:
    return read_case(GOLDEN / "rev_vit_tiny").config


def test_the_weights_of_a_rev_vit_give_its_hidden_width() -> None:
    """The published code truncates where the ratio gives no whole width: 2.7 times 48."""
    configuration = rev_vit_configuration()
    configuration["MVIT"]["MLP_RATIO"] = 2.7
    published = read_checkpoint(GOLDEN / "rev_vit_tiny" / "checkpoint.pth")
    shorter = {key: value[..., :129] if "fc2.weight" in key else value[:129] for key, value in published.items() if ".mlp.fc" in key}
    shorter = {key: published[key] if key.endswith("fc2.bias") else value for key, value in shorter.items()}
    family, settings = replay_rev.choose(configuration)
    assert fit({**published, **shorter}, family, settings).model().blocks[0].mlp.fc1.out_features == 129


@pytest.mark.parametrize(
    ("section", "key", "value"), [("MODEL", "HEAD_ACT", "sigmoid"), ("MODEL", "DROPOUT_RATE", 0.5), ("MVIT", "USE_MEAN_POOLING", True)]
)
def test_what_a_vit_has_not_makes_a_rev_vit_of_mvits_parts(section: str, key: str, value: object) -> None:
    configuration = rev_vit_configuration()
    assert replay_rev.choose(configuration)[0].architecture == "vit"
    configuration[section][key] = value
    assert replay_rev.choose(configuration)[0].architecture == "rev_mvit"


def test_an_idle_class_token_is_left_out_with_a_warning() -> None:
    published = read_checkpoint(GOLDEN / "rev_mvit_video_tiny" / "checkpoint.pth")
    description = open_checkpoint(GOLDEN / "rev_mvit_video_tiny" / "checkpoint.pth").description
    family = families()["rev_mvit_fused"]
    with pytest.warns(UserWarning, match="cls_token"):
        found = fit({**published, "cls_token": torch.zeros(1, 1, 16)}, family, family.described(description))
    assert found.perfect


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("avg", (StreamFusion.MEAN, None, False)),
        ("concat_linear_2", (StreamFusion.CONCATENATION, 2.0, False)),
        ("ln+concat_linear_1.5_drop", (StreamFusion.CONCATENATION, 1.5, True)),
    ],
)
def test_fusions_are_read_from_their_names(text: str, expected: tuple[StreamFusion, float | None, bool]) -> None:
    assert tuple(stage_fusion(text).values()) == expected


def test_unknown_fusions_are_refused() -> None:
    with pytest.raises(ValueError, match="PRE_Q_FUSION"):
        stage_fusion("attention")


def test_oblong_pictures_keep_their_table() -> None:
    model = built(replace(SMALL_VIT, image_width=24))
    assert model.pos_embed.shape[1] == 24
    assert resize_table(model.pos_embed, 24, special=0) is model.pos_embed
    assert model.eval()(torch.randn(1, 3, 16, 24)).logits.shape == (1, 5)


def test_so_do_oblong_patches_which_a_file_gives() -> None:
    model = built(replace(SMALL_VIT, image_width=32, patch_width=8))
    assert model.eval()(torch.randn(1, 3, 16, 32)).logits.shape == (1, 5)
    found = fit(families()["rev_vit"].export(model.state_dict()), families()["rev_vit"], {"heads": 4, "image_size": 16, "image_width": 32})
    assert found.perfect, found.mismatch_message()
    assert (found.config().patch_shape, found.config().patches) == ((SMALL_VIT.patch_size, 8), 16)
