"""MViT beyond the recorded cases: against timm and torchvision, options that no case has, clips and boxes, bundles."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from torch import Tensor, nn
from torchvision.ops import roi_align as torchvision_roi_align

from models.checkpoints import CheckpointError, import_checkpoint, read_checkpoint
from models.media.clip_sampling import crops, view_frames
from models.people.person_clips import aspect_margins, clip_frame_indices, crop_and_resize, normalise_clip, resize_box
from models.systems.mvit import model as mvit
from models.systems.mvit.checkpoint import fields_of
from models.systems.mvit.model import Activation, BoxPooling, MViT, MViTConfig, roi_align
from models.systems.mvit.pooling_attention import PoolingAttention, PoolingAttentionConfig, pool_tokens, relative_rows
from models.systems.mvit.trunk import Positions, TrunkConfig
from tests.fake_cuda.device import StreamTracker
from tests.golden.case import read_case
from tests.golden.checks import relative_deviation

GOLDEN = Path(__file__).parents[3] / "golden" / "mvit"

SMALL = MViTConfig(
    image_size=32,
    frames=4,
    classes=5,
    width=8,
    depth=3,
    width_growth=((1, 2.0), (2, 2.0)),
    head_growth=((1, 2.0), (2, 2.0)),
    q_strides=((0, 1, 1, 1), (1, 1, 2, 2), (2, 1, 2, 2)),
    kv_stride=(1, 4, 4),
)


def built(config: MViTConfig) -> MViT:
    """Build a model whose every parameter matters."""
    torch.manual_seed(0)
    model = MViT(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1) * 0.5, std=0.2)
    return model.eval()


def clips(frames: int = 4, height: int = 32, width: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("expand_in_attention", [True, False], ids=["expands in attention", "expands in MLP"])
@pytest.mark.parametrize("relative", [True, False], ids=["relative positions", "none"])
def test_blocks_in_small_parts_give_what_whole_blocks_do(
    monkeypatch: pytest.MonkeyPatch, *, expand_in_attention: bool, relative: bool
) -> None:
    monkeypatch.setattr("models.systems.mvit.pooling_attention.OPS_PER_PART", 20_000)
    monkeypatch.setattr("models.systems.mvit.model.OPS_PER_PART", 20_000)
    network = built(replace(SMALL, expand_in_attention=expand_in_attention, relative_space=relative, relative_time=relative))
    with torch.inference_mode():
        x, grid = network.embed(clips())
        for block in network.blocks:
            full, whole_grid = block(x, grid)
            parts, retained = block.forward_in_parts(x, grid), list[int]()
            while True:
                try:
                    retained.append(next(parts))
                except StopIteration as end:
                    in_parts, grid = end.value
                    break
            assert len(retained) > 10  # 8 where nothing is cut
            assert retained[0] == 2 * x.nbytes + 3 * 4 * x.shape[0] * x.shape[1] * block.attn.config.width_out  # tokens, normed; q, k and v
            x = in_parts
            torch.testing.assert_close(x, full, atol=1e-5, rtol=1e-5)
            assert grid == whole_grid


@pytest.mark.parametrize("expand_in_attention", [True, False], ids=["expands in attention", "expands in MLP"])
def test_parts_on_other_streams_keep_what_they_read(monkeypatch: pytest.MonkeyPatch, *, expand_in_attention: bool) -> None:
    """Else the stream that made a tensor may overwrite it while another one reads it: each part may run in another thread."""
    monkeypatch.setattr("models.systems.mvit.pooling_attention.OPS_PER_PART", 20_000)
    monkeypatch.setattr("models.systems.mvit.model.OPS_PER_PART", 20_000)
    network = built(replace(SMALL, expand_in_attention=expand_in_attention))
    tracker = StreamTracker()
    monkeypatch.setattr("models.systems.mvit.pooling_attention.keep_for_current_stream", tracker.keep)
    with torch.inference_mode(), tracker:
        x, grid = network.embed(clips())
        for block in network.blocks:
            parts = block.forward_in_parts(x, grid)
            with pytest.raises(StopIteration) as end:
                while True:
                    next(parts)
                    tracker.stream += 1
            x, grid = end.value.value
    assert not tracker.unkept


@pytest.mark.parametrize("expand_in_attention", [True, False], ids=["expands in attention", "expands in MLP"])
@pytest.mark.parametrize(("class_token", "residual_pooling"), [(True, False), (False, True), (False, False)])
def test_pictures_are_classified_as_by_timm(expand_in_attention: bool, class_token: bool, residual_pooling: bool) -> None:
    """timm's own implementation of the same paper, on pictures of 40 px: 10, 5 and 3 patches a side, so that tables are stretched.

    With a class token and residual pooling it adds the class token's query too, which the published models do not: a recorded case has it.
    """
    torch.manual_seed(0)
    theirs = MultiScaleVit(
        MultiScaleVitCfg(
            depths=(1, 2, 1),
            embed_dim=16,
            expand_attn=expand_in_attention,
            use_cls_token=class_token,
            residual_pooling=residual_pooling,
            stride_q=((1, 1), (2, 2), (2, 2)),
        ),
        img_size=(40, 40),
        num_classes=5,
    ).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1) * 0.5, std=0.2)
    ours = MViT(
        MViTConfig(
            image_size=40,
            frames=1,
            classes=5,
            patch_kernel=(7, 7),
            patch_stride=(4, 4),
            patch_padding=(3, 3),
            width=16,
            depth=4,
            width_growth=((1, 2.0), (3, 2.0)),
            head_growth=((1, 2.0), (3, 2.0)),
            pool_kernel=(1, 3, 3),
            q_strides=((0, 1, 1, 1), (1, 1, 2, 2), (2, 1, 1, 1), (3, 1, 2, 2)),
            kv_stride=(1, 4, 4),
            class_token=class_token,
            relative_time=False,
            residual_pooling=residual_pooling,
            expand_in_attention=expand_in_attention,
        )
    ).eval()
    ours.load_state_dict(from_timm(theirs.state_dict(), ours))
    pictures = torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(ours(pictures).logits, theirs(pictures), rtol=1e-4, atol=1e-5)


def from_timm(weights: Mapping[str, Tensor], ours: MViT) -> dict[str, Tensor]:
    """timm numbers blocks within stages, keeps pooling kernels flat, and builds tables for grids that round up."""
    first = {"0": 0, "1": 1, "2": 3}
    our_own = ours.state_dict()
    renamed = {}
    for name, value in weights.items():
        name = re.sub(r"stages\.(\d)\.blocks\.(\d)", lambda match: f"blocks.{first[match[1]] + int(match[2])}", name)
        name = re.sub(r"shortcut_proj_(attn|mlp)", "proj", name).replace("head.fc.", "head.")
        if ".pool_" in name:
            value = value.unsqueeze(2)
        elif ".rel_pos_" in name and value.shape != our_own[name].shape:
            value = F.interpolate(value.T.unsqueeze(0), size=our_own[name].shape[0], mode="linear").squeeze(0).T
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("class_token", [True, False], ids=["class token", "none"])
@pytest.mark.parametrize("axes", ["space", "time", "both"])
def test_relative_positions_are_a_bias_on_the_logits(class_token: bool, axes: str) -> None:
    """The formula of section 4.1 of MViTv2, written out as a bias for every pair of a query and a key."""
    torch.manual_seed(0)
    plan = PoolingAttentionConfig(
        width=12,
        width_out=12,
        heads=2,
        qkv_bias=True,
        class_token=class_token,
        norm_eps=1e-6,
        kernel=(3, 3, 3),
        q_stride=(1, 1, 1),
        kv_stride=(2, 2, 2),
        space_rows=9 if axes != "time" else None,
        time_rows=3 if axes != "space" else None,
    )
    attention, grid, special = PoolingAttention(plan), (4, 5, 3), int(class_token)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    seen: dict[str, Tensor] = {}
    for name in ("norm_q", "norm_k", "norm_v"):
        getattr(attention, name).register_forward_hook(lambda module, inputs, output, name=name: seen.__setitem__(name[-1], output))
    got, _ = attention(torch.randn(2, prod(grid) + special, 12), grid)

    q, k, v = seen["q"], seen["k"], seen["v"]
    k_grid = (2, 3, 2)
    bias = torch.zeros(2, 2, prod(grid) + special, prod(k_grid) + special)
    tables = {0: attention.rel_pos_t, 1: attention.rel_pos_h, 2: attention.rel_pos_w}
    for axis, table in tables.items():
        if table is None:
            continue
        rows = relative_rows(table, grid[axis], k_grid[axis])
        for i, q_place in enumerate(torch.cartesian_prod(*map(torch.arange, grid))):
            for j, k_place in enumerate(torch.cartesian_prod(*map(torch.arange, k_grid))):
                bias[:, :, i + special, j + special] += q[:, :, i + special] @ rows[q_place[axis], k_place[axis]]
    weights = (q @ k.transpose(2, 3) * 6**-0.5 + bias).softmax(dim=-1)
    expected = attention.proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_table_rows_are_chosen_by_distance_on_finer_axis() -> None:
    table = torch.arange(7.0).unsqueeze(1)
    assert relative_rows(table, 4, 4)[..., 0].tolist() == [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]]
    assert relative_rows(table, 4, 2)[..., 0].tolist() == [[2, 0], [3, 1], [4, 2], [5, 3]]
    assert relative_rows(table, 2, 4)[..., 0].tolist() == [[3, 2, 1, 0], [5, 4, 3, 2]]
    stretched = relative_rows(torch.arange(3.0).unsqueeze(1), 3, 3)[..., 0]  # 0, 0.4, 1, 1.6, 2 by half-pixel centres
    torch.testing.assert_close(stretched[0], torch.tensor([1.0, 0.4, 0.0]))


def test_large_model_interpolates_tables_at_own_resolution() -> None:
    config = mvit.PUBLISHED["mvitv2_l_40x3"]
    with torch.device("meta"):
        model = MViT(config)
        assert [model.blocks[block].attn.rel_pos_h.shape[0] for block in (0, 2, 8, 44)] == [155, 77, 37, 37]
        assert [model.blocks[block].attn.rel_pos_w.shape[0] for block in (7, 9, 43, 45)] == [77, 37, 37, 17]
        assert {block.attn.rel_pos_t.shape[0] for block in model.blocks} == {39}


@pytest.mark.parametrize("aligned", [True, False])
def test_box_features_are_those_of_torchvision(aligned: bool) -> None:
    """Also for boxes beyond the map, without extent, and turned inside out."""
    torch.manual_seed(0)
    features = torch.randn(2, 3, 6, 9)
    corners = torch.rand(40, 2, 2) * torch.tensor([200.0, 140.0]) - 30
    boxes = torch.cat([torch.randint(0, 2, (40, 1)).float(), corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    special = torch.tensor(
        [[0, 16, 16, 128, 128], [1, 20, 20, 20, 20], [0, 90, 60, 10, 20], [1, -500, -500, -300, -300], [0, 0, 0, 144, 96.0]]
    )
    boxes = torch.cat([boxes, special])
    expected = torchvision_roi_align(features, boxes, 7, 1 / 16, sampling_ratio=0, aligned=aligned)
    torch.testing.assert_close(roi_align(features, boxes, 7, 1 / 16, aligned), expected, rtol=1e-4, atol=1e-5)


def test_no_boxes_give_no_features() -> None:
    assert BoxPooling()(torch.randn(1, 4, 6, 6), torch.zeros(0, 5)).shape == (0, 4)


def test_boxes_are_pooled_in_one_graph_however_large_they_are() -> None:
    """How many samples a box has depends on its size: neither a break in the graph nor memory may."""
    torch._dynamo.reset()
    features = torch.randn(1, 4, 6, 6)
    boxes = torch.tensor([[0, 8, 8, 60, 40.0], [0, 0, 0, 96, 96], [0, -1e9, -1e9, 1e9, 1e9]])
    pooled = torch.compile(BoxPooling(), backend="eager", fullgraph=True)(features, boxes)
    torch.testing.assert_close(pooled, BoxPooling()(features, boxes))
    assert float(pooled[2].abs().max()) < 1e-6  # almost all of it is beyond the map, where samples are 0


def test_boxes_of_a_batch_are_independent() -> None:
    config = replace(SMALL, boxes=BoxPooling(scale=1 / 16), activation=Activation.SIGMOID)
    model, pixels = built(config), clips()
    boxes = torch.tensor([[0, 0, 0, 20, 30], [1, 4, 4, 30, 20], [0, 10, 3, 31, 28.0]])
    joint = model(pixels, boxes)
    for number, box in enumerate(boxes):
        alone = model(pixels[int(box[0])].unsqueeze(0), torch.cat([torch.zeros(1), box[1:]]).unsqueeze(0))
        torch.testing.assert_close(joint.features[number], alone.features[0])
    assert torch.equal(joint.scores, joint.logits.sigmoid())


def test_boxes_are_required_only_by_networks_of_boxes() -> None:
    with pytest.raises(ValueError, match="whole clips"):
        built(SMALL)(clips(), torch.zeros(1, 5))
    with pytest.raises(ValueError, match="classifies boxes"):
        built(replace(SMALL, boxes=BoxPooling()))(clips())
    with pytest.raises(ValueError, match="a clip of 4 times"):
        built(replace(SMALL, boxes=BoxPooling()))(clips(frames=8), torch.zeros(1, 5))


OPTIONS = {
    "no class token": {"class_token": False},
    "mean pooling": {"mean_pooling": True},
    "joint positions": {"positions": Positions.JOINT},
    "separate positions": {"positions": Positions.SEPARATE},
    "separate positions without class token": {"positions": Positions.SEPARATE, "class_token": False},
    "only space": {"relative_time": False},
    "only time": {"relative_space": False},
    "kernels from strides": {"pool_kernel": None},
    "listed key strides": {"kv_stride": None, "kv_strides": ((0, 1, 4, 4), (2, 1, 2, 2))},
    "no pooling of keys": {"kv_stride": None},
    "time pooled too": {"q_strides": ((0, 1, 1, 1), (1, 2, 2, 2), (2, 1, 1, 1))},
    "queries pooled in transitions only": {"q_strides": ((1, 1, 2, 2),)},
    "wider in the MLP": {"expand_in_attention": False},
    "no bias": {"qkv_bias": False},
    "layer scale": {"layer_scale": 0.1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("size", [(4, 32, 32), (6, 40, 28)], ids=["native", "other size"])
def test_every_option_trains_all_of_its_parameters(options: dict[str, Any], size: tuple[int, int, int]) -> None:
    model = built(replace(SMALL, **options)).train()
    model(clips(*size)).logits.square().sum().backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None or parameter.grad.abs().max() < 1e-7}
    expected = {"attn.norm_k.bias"}  # softmax does not see what all keys have in common
    if model.config.class_token:  # a class token alone asks nothing of the last block's pooled queries
        expected |= {"attn.pool_q.weight", "attn.rel_pos_h", "attn.rel_pos_w", "attn.rel_pos_t"}
    assert {re.sub(r"blocks\.\d+\.", "", name) for name in idle} <= expected


def test_stochastic_depth_drops_attention_and_mlp_on_their_own() -> None:
    """Equal samples in training have each lost none, one, the other or both."""
    block = built(replace(SMALL, drop_path=0.5)).blocks[2].train()
    torch.manual_seed(0)
    outputs, _ = block(torch.randn(1, 9, 16).expand(64, -1, -1), (2, 2, 2))
    assert len(outputs.flatten(1).round(decimals=4).unique(dim=0)) == 4


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"heads": 3}, "cannot be split into 3 heads"),
        ({"width_growth": ((1, 1.3),)}, "not a whole number"),
        ({"head_growth": ((1, 1.5),)}, "not a whole number"),
        ({"head_growth": ((0, 2.0), (1, 8.0))}, "a block of width 8 cannot be split into 16 heads"),
        ({"patch_kernel": (7, 7)}, "three numbers each for clips"),
        ({"image_size": 2}, "hold no patch"),
    ],
)
def test_configs_that_cannot_be_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        MViT(replace(SMALL, **changes))


def test_pixels_that_are_no_clip_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(batch, 3, frames, height, width\) is needed"):
        built(SMALL)(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("key", "value"), [("MODE", "avg"), ("POOL_FIRST", True), ("NORM_STEM", True), ("USE_FIXED_SINCOS_POS", True), ("DROPOUT_RATE", 0.1)]
)
def test_configurations_of_other_models_are_refused(key: str, value: object) -> None:
    config = read_case(GOLDEN / "mvitv2_cls_tiny").config
    config["MVIT"][key] = value
    with pytest.raises(ValueError, match=f"MVIT.{key}"):
        fields_of(config)


def test_an_mvit_becomes_a_bundle_that_says_its_strides() -> None:
    file = GOLDEN / "mvitv2_cls_odd" / "checkpoint.pth"
    spec, _ = import_checkpoint(file, family=None, labels=None, overrides={}, name="mvit", version="1", license="CC-BY-NC-4.0")
    assert (spec.architecture, spec.config["mean_pooling"], spec.config["kv_stride"]) == ("mvit", True, (1, 4, 4))
    assert spec.ladder == []


def test_weights_of_no_published_size_need_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "bare.pth"
    torch.save(read_checkpoint(GOLDEN / "mvitv2_cls_tiny" / "checkpoint.pth"), file)
    with pytest.raises(CheckpointError, match="do not match any published size"):
        import_checkpoint(file, family="mvit", labels=None, overrides={}, name="mvit", version="1", license="CC-BY-NC-4.0")


def test_strides_of_keys_shrink_only_where_queries_pool() -> None:
    config = mvit.PUBLISHED["mvitv2_s_16x4"]
    assert [config.kv_stride_of(block) for block in (0, 1, 2, 3, 13, 14, 15)] == [(1, s, s) for s in (8, 4, 4, 2, 2, 1, 1)]
    plain = replace(TrunkConfig(), q_strides=((1, 1, 2, 2),), kv_stride=(1, 4, 4))
    assert [plain.kv_stride_of(block) for block in (0, 1, 15)] == [(1, 4, 4), (1, 2, 2), (1, 2, 2)]


def test_views_of_a_video_reach_from_its_start_to_its_end() -> None:
    """300 frames at 30 per second, clips of 64 frames: 236 are left over."""
    frames = view_frames(300, 30.0, frames=16, stride=4, views=5)
    assert frames[:, 0].tolist() == [0, 59, 118, 177, 236]
    assert frames[4].tolist() == torch.linspace(236, 299, 16).long().tolist()
    assert view_frames(300, 30.0, frames=16, stride=4, views=1)[0, 0] == 118
    assert view_frames(300, 30.0, frames=16, stride=4, views=5, offset=False)[:, 0].tolist() == [0, 47, 94, 141, 188]


def test_slow_and_short_videos_are_sampled_by_their_own_clock() -> None:
    assert view_frames(150, 15.0, frames=16, stride=4, views=1)[0].diff().float().mean() == pytest.approx(31 / 15, abs=0.1)
    assert (
        view_frames(10, 30.0, frames=16, stride=4, views=2)[1].tolist() == view_frames(10, 30.0, frames=16, stride=4, views=2)[0].tolist()
    )
    assert int(view_frames(10, 30.0, frames=16, stride=4, views=2).max()) == 9


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48)])
def test_crops_lie_along_the_long_side(height: int, width: int) -> None:
    clip = torch.arange(float(height * width)).view(1, 1, height, width)
    three = crops(clip, short_side=48, size=48, count=3)
    assert three.shape == (3, 1, 1, 48, 48)
    parts = [clip[:, :, :, start : start + 48] if width > height else clip[:, :, start : start + 48] for start in (0, 8, 16)]
    assert all(torch.equal(crop, part) for crop, part in zip(three, parts, strict=True))
    assert torch.equal(crops(clip, short_side=48, size=48, count=1)[0], parts[1])


def test_clips_repeat_the_ends_of_a_track() -> None:
    frames = clip_frame_indices(3, 100, frames=4, stride=3)
    assert frames.tolist() == [0, 1, 5, 9]  # 3 - 6 + (0, 4, 8, 12), at least 0
    assert clip_frame_indices(97, 100, frames=4, stride=3).tolist() == [91, 95, 99, 99]


def test_wide_pictures_are_cropped_around_their_centre() -> None:
    assert aspect_margins(200, 100) == (40, 0)
    assert aspect_margins(100, 200) == (0, 37)
    assert aspect_margins(121, 100) == (0, 0)  # just beyond the threshold there is nothing to cut
    assert aspect_margins(100, 100) == (0, 0)


def test_a_box_stays_on_its_person() -> None:
    """A white rectangle in a wide picture: after cropping and resizing the box still surrounds it."""
    pictures = torch.zeros(2, 100, 200, 3, dtype=torch.uint8)
    pictures[:, 20:60, 80:120] = 255
    clip = normalise_clip(crop_and_resize(pictures, 50), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    box = resize_box((80, 20, 40.9, 40.2), (100, 200), 50)
    assert clip.shape == (3, 2, 50, 60)
    assert box.tolist() == [20.0, 10.0, 40.0, 30.0]
    left, top, right, bottom = map(int, box)
    assert bool((clip[:, :, top:bottom, left:right] == 1).all())
    assert float((clip + 1).sum()) == float((clip[:, :, top:bottom, left:right] + 1).sum())


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2)])
def test_bfloat16_pooling_kernels_learn_as_in_float32(stride: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv3d(8, 8, 3, stride=stride, padding=1, groups=8, bias=False), nn.LayerNorm(8)
    tokens, goal = torch.randn(3, 4, 2 * 4 * 4, 8), torch.randn(3, 4, 2 * 4 * 4 // (stride[1] * stride[2]), 8)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        pooled, _ = pool_tokens(tokens.to(dtype), (2, 4, 4), conv.to(dtype), norm.to(dtype), class_token=False)
        gradients.append(torch.autograd.grad((pooled * goal.to(dtype)).sum(), conv.weight)[0].float())
    assert relative_deviation(gradients[1], gradients[0]) < 0.02
