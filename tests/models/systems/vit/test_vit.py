"""The transformer with merging as an argument, beyond the recorded cases (tests/golden/tome)."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from models.layers.token_merging import Tokens
from models.merge_schedule import MergeSchedule
from models.systems.vit.model import Pool, ViT, ViTConfig

SMALL = ViTConfig(image_size=32, patch_size=4, classes=5, width=32, depth=4, heads=4)  # 64 patches


def build(config: ViTConfig = SMALL, seed: int = 0) -> ViT:
    """Build a model whose answers depend on everything: the usual initialisation is too close to zero for that."""
    torch.manual_seed(seed)
    model = ViT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def pictures(config: ViTConfig = SMALL, batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, config.channels, config.image_size, config.image_size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pool", list(Pool))
def test_merging_nothing_is_the_plain_model(pool: Pool) -> None:
    model = build(replace(SMALL, pool=pool))
    plain = model(pictures())
    off = model(pictures(), merge=MergeSchedule.from_list([0, -1, 0]), trace=True)
    assert torch.equal(plain.logits, off.logits)
    assert (off.size, off.source, off.tokens_out) == (None, None, 65)


def test_a_list_longer_than_the_depth_is_cut() -> None:
    model = build()
    cut = model(pictures(), merge=MergeSchedule.from_list([3, 2, 1, 4]))
    long = model(pictures(), merge=MergeSchedule.from_list([3, 2, 1, 4, 30, 30]))
    assert torch.equal(cut.logits, long.logits)
    assert long.tokens_out == 65 - 10


@pytest.mark.parametrize(
    "schedule", [MergeSchedule.constant(9), MergeSchedule.linear(8, -1.0), MergeSchedule.from_list([0, 20]), MergeSchedule.constant(99)]
)
def test_counts_match_what_the_schedule_says(schedule: MergeSchedule) -> None:
    answer = build()(pictures(), merge=schedule, trace=True)
    assert answer.size is not None
    assert answer.source is not None
    assert answer.tokens_out == schedule.token_counts(65, 4, 1)[-1] == answer.size.shape[1]
    assert torch.equal(answer.source.sum(dim=2, keepdim=True), answer.size)
    assert torch.equal(answer.source.sum(dim=1), torch.ones(2, 65))
    assert answer.source[:, 0].sum() == answer.source[:, 0, 0].sum() == 2  # the class token holds itself


@pytest.mark.parametrize("class_token", [True, False])
def test_the_pooled_mean_is_that_of_what_the_tokens_hold(class_token: bool) -> None:
    config = replace(SMALL, pool=Pool.MEAN, class_token=class_token)
    model, special = build(config), config.special_tokens
    seen = []
    model.blocks[-1].register_forward_hook(lambda block, inputs, tokens: seen.append(tokens.x[:, special:]))
    answer = model(pictures(), merge=MergeSchedule.constant(10))
    assert answer.size is not None
    size = answer.size[:, special:]
    assert size.sum(dim=1).eq(config.patches).all()
    assert answer.tokens_out == special + 64 - 40
    guard = [seen[0][sample].repeat_interleave(size[sample, :, 0].long(), dim=0) for sample in range(2)]  # a row for each patch
    torch.testing.assert_close(answer.features, model.fc_norm(torch.stack(guard).mean(dim=1)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_mean_in_half_precision_is_that_of_all_patches(dtype: torch.dtype) -> None:
    """The sum is beyond float16, and bfloat16 cannot represent 1565."""
    tokens = Tokens(torch.tensor([[[64.0], [128.0]]], dtype=dtype), size=torch.tensor([[[1565.0], [3.0]]]))
    mean = tokens.mean(0, 1568)
    assert mean.dtype is dtype
    assert torch.equal(mean, torch.tensor([[(64 * 1565 + 128 * 3) / 1568]]).to(dtype))


def test_without_class_token_r_0_is_mean_over_all_tokens() -> None:
    config = replace(SMALL, pool=Pool.MEAN, class_token=False)
    model = build(config)
    seen = []
    model.blocks[-1].register_forward_hook(lambda block, inputs, tokens: seen.append(tokens.x))
    answer = model(pictures())
    torch.testing.assert_close(answer.features, model.fc_norm(seen[0].mean(dim=1)))


def test_oblong_pictures_of_one_channel_merge_as_well() -> None:
    """A spectrogram: time down, mel bins across."""
    config = replace(SMALL, image_size=32, image_width=8, channels=1, pool=Pool.MEAN)
    model, sound = build(config), torch.randn(2, 1, 32, 8, generator=torch.Generator().manual_seed(1))
    answer = model(sound, merge=MergeSchedule.constant(3), trace=True)
    assert answer.size is not None
    assert (answer.tokens_in, answer.tokens_out) == (17, 5)
    assert answer.size[:, 1:].sum(dim=1).eq(16).all()
    assert not torch.equal(answer.logits, model(sound).logits)
    with pytest.raises(ValueError, match=r"; \(batch, 1, 32, 8\) is needed"):
        model(sound.mT)


def test_identical_patches_pool_to_the_same_mean_merged_or_not() -> None:
    """If merging loses nothing, pooling must not either: blocks that change nothing leave the mean of the patches as it was."""
    config = replace(SMALL, pool=Pool.MEAN)
    model = build(config)
    with torch.no_grad():
        for block in model.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.zero_()
                layer.bias.zero_()
    torch.testing.assert_close(model(pictures(), merge=MergeSchedule.constant(12)).logits, model(pictures()).logits)


def test_distilled_models_protect_both_tokens_and_average_heads() -> None:
    config = replace(SMALL, distilled=True)
    model = build(config)
    answer = model(pictures(), merge=MergeSchedule.constant(200), trace=True)
    assert answer.source is not None
    assert answer.source[0, :2, :2].equal(torch.eye(2))
    assert answer.source[0, :2].sum() == 2
    assert model.head_dist is not None
    expected = (model.head(answer.features[:, 0]) + model.head_dist(answer.features[:, 1])) / 2
    torch.testing.assert_close(answer.logits, expected)


def test_threads_share_a_model_with_different_schedules() -> None:
    model = build()
    schedules = [MergeSchedule.off(), MergeSchedule.constant(5), MergeSchedule.constant(13), MergeSchedule.linear(9, -1.0)]
    with torch.inference_mode():
        alone = [model(pictures(seed=index), merge=schedule).logits for index, schedule in enumerate(schedules)]
    joint: list[list[torch.Tensor]] = [[] for _ in schedules]
    start = threading.Barrier(len(schedules))

    def classify(index: int) -> None:
        start.wait()
        with torch.inference_mode():
            for _ in range(20):
                joint[index].append(model(pictures(seed=index), merge=schedules[index]).logits)

    threads = [threading.Thread(target=classify, args=(index,)) for index in range(len(schedules))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, answers in zip(alone, joint, strict=True):
        assert len(answers) == 20
        assert all(torch.equal(answer, expected) for answer in answers)


def test_every_parameter_learns_through_merging() -> None:
    model = build().train()
    model(pictures(), merge=MergeSchedule.constant(9)).logits.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


def test_gradients_through_a_merging_model_are_exact() -> None:
    config = ViTConfig(image_size=8, patch_size=2, channels=1, classes=2, width=8, depth=2, heads=2)
    model = build(config).double()
    picture = pictures(config, batch=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda value: model(value, merge=MergeSchedule.constant(3)).logits, (picture,))


def test_autocast_runs_and_stays_near_full_precision() -> None:
    model = build()
    schedule = MergeSchedule.constant(4)
    full = model(pictures(), merge=schedule).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = model(pictures(), merge=schedule)
    assert cast.tokens_out == 49
    assert (cast.logits.float() - full).abs().max() < 0.05 * full.abs().max()


def test_drop_path_leaves_out_whole_branches_in_training_only() -> None:
    config = replace(SMALL, depth=2, drop_path=1 - 1e-6)
    model = build(config)
    certain = model(pictures())
    assert torch.equal(certain.logits, model(pictures()).logits)
    model.train()
    shallow = build(replace(config, depth=1, drop_path=0.0))
    shallow.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("blocks.1.")})
    torch.testing.assert_close(model(pictures()).logits, shallow(pictures()).logits)  # the last block is always left out, the first never


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 30}, "not a multiple of patch_size"),
        ({"heads": 5}, "cannot be split into 5 heads"),
        ({"class_token": False}, "there is no class token"),
        ({"class_token": False, "pool": Pool.MEAN, "distilled": True}, "needs a class token"),
        ({"joint_width": 0}, "joint_width: a positive number"),
        ({"joint_width": 8, "distilled": True}, "for models with one head"),
        ({"joint_width": 8, "classes": 0}, "for models with one head"),
    ],
)
def test_impossible_configs_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViT(replace(SMALL, **change))


@pytest.mark.parametrize("merge", [MergeSchedule.off(), MergeSchedule.constant(7)], ids=["off", "merged"])
def test_a_head_in_a_joint_space_sees_vectors_of_unit_length(merge: MergeSchedule) -> None:
    model = build(replace(SMALL, joint_width=6))
    assert model.projection is not None and isinstance(model.head, torch.nn.Linear)
    answer = model(pictures(), merge=merge)
    projected = answer.features @ model.projection.weight.T  # (B, 6)
    expected = (projected / projected.norm(dim=1, keepdim=True)) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(answer.logits, expected)


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images: shape \(1, 3, 16, 16\)"):
        build()(torch.zeros(1, 3, 16, 16))


def test_encoded_patches_are_those_whose_mean_is_the_feature() -> None:
    model = build(replace(SMALL, pool=Pool.NORM_MEAN))
    patches = model.encode_patches(pictures())
    assert patches.shape == (2, 64, 32)
    torch.testing.assert_close(patches.mean(dim=1), model(pictures()).features)
