"""The video transformer beyond the recorded case (tests/golden/tome/vit_mae_st_composed)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.checkpoints import families, fit
from models.merge_schedule import MergeSchedule
from models.systems.mae_st.model import VideoMAE, VideoMAEConfig

SMALL = VideoMAEConfig(image_size=16, patch_size=8, frames=4, classes=3, width=32, depth=2, heads=4)  # 2 · 4 patches


def clips(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("separate", [True, False])
def test_every_layout_survives_export_and_import(class_token: bool, separate: bool) -> None:
    torch.manual_seed(0)
    model = VideoMAE(replace(SMALL, class_token=class_token, separate_positions=separate)).eval()
    published = families()["mae_st"].table.export(model.state_dict())
    assert "blocks.1.attn.v.bias" in published
    found = fit(published, families()["mae_st"], {"heads": 4, "frames": 4})
    assert found.perfect
    assert torch.equal(found.model()(clips()).logits, model(clips()).logits)


@pytest.mark.parametrize("class_token", [True, False])
def test_clip_of_one_patch_depth_has_a_position_table(class_token: bool) -> None:
    config = replace(SMALL, frames=2, class_token=class_token, separate_positions=False)
    published = families()["mae_st"].table.export(VideoMAE(config).state_dict())
    assert fit(published, families()["mae_st"], {"heads": 4, "frames": 2, "classes": 3}).config() == config


@pytest.mark.parametrize(
    ("frames", "sentence"), [(1, "frames: 1 where a patch has 2"), ("many", "frames: 'many'"), (6, "3 times do not divide")]
)
def test_a_number_of_frames_that_cannot_be_is_refused(frames: object, sentence: str) -> None:
    published = families()["mae_st"].table.export(VideoMAE(replace(SMALL, separate_positions=False)).state_dict())
    with pytest.raises(ValueError, match=sentence):
        fit(published, families()["mae_st"], {"heads": 4, "frames": frames})


def test_one_position_table_equals_the_sum_of_two() -> None:
    torch.manual_seed(0)
    separate = VideoMAE(SMALL).eval()
    joint = VideoMAE(replace(SMALL, separate_positions=False)).eval()
    positions = separate.pos_embed
    assert positions.first is not None
    table = [
        positions.first[0, 0],
        *(positions.temporal[0, time] + positions.spatial[0, place] for time in range(2) for place in range(4)),
    ]
    weights = {name: value for name, value in separate.state_dict().items() if not name.startswith("pos_embed")}
    joint.load_state_dict({**weights, "pos_embed.joint": torch.stack(table).unsqueeze(0)})
    torch.testing.assert_close(joint(clips()).logits, separate(clips()).logits)


def test_without_class_token_all_tokens_merge_and_count() -> None:
    model = VideoMAE(replace(SMALL, class_token=False)).eval()
    seen = []
    model.blocks[-1].register_forward_hook(lambda block, inputs, tokens: seen.append(tokens.x))
    answer = model(clips(), merge=MergeSchedule.constant(3), trace=True)
    assert answer.size is not None
    assert (answer.tokens_in, answer.tokens_out) == (8, 3)
    assert answer.size.sum(dim=1).eq(8).all()
    torch.testing.assert_close(answer.features, model.norm((seen[0] * answer.size).sum(dim=1) / 8))


@pytest.mark.parametrize("class_token", [True, False])
def test_first_token_is_left_out_of_mean_even_if_a_patch(class_token: bool) -> None:
    torch.manual_seed(0)
    model = VideoMAE(replace(SMALL, class_token=class_token)).eval()
    seen = []
    model.blocks[-1].register_forward_hook(lambda block, inputs, tokens: seen.append(tokens.x))
    features = model(clips()).features
    torch.testing.assert_close(features, model.norm(seen[0][:, 1:].mean(dim=1)))  # pooled, then normalised


def test_clips_become_numbers_as_published() -> None:
    preprocess = families()["mae_st"].preprocess(224)
    assert (preprocess.mean, preprocess.std) == ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))
    assert (preprocess.short_side, preprocess.interpolation) == (256, "bilinear")


def test_clips_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"clips: shape \(1, 3, 8, 16, 16\)"):
        VideoMAE(SMALL)(torch.zeros(1, 3, 8, 16, 16))
    with pytest.raises(ValueError, match="5 frames"):
        replace(SMALL, frames=5)


def test_a_clip_goes_past_the_branches_that_it_does_not_keep() -> None:
    torch.manual_seed(0)
    model = VideoMAE(replace(SMALL, drop_path=0.5)).eval()
    keep = torch.ones(2, 2, 2)  # depth, branches, clips
    keep[1, :, 0] = 0  # the first clip skips the last block
    got = model(clips(), keep=keep).logits
    del model.blocks[1]
    shallow = VideoMAE(replace(SMALL, depth=1)).eval()
    shallow.load_state_dict(model.state_dict())
    torch.testing.assert_close(got[0], shallow(clips()).logits[0])
    assert not torch.allclose(got[1], shallow(clips()).logits[1])
