"""The network of DiffMAE beyond the recorded cases: all options against a second formulation, and what may not have any influence."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.merge_schedule import MergeSchedule
from models.systems.diffmae.decoder import DecoderContext, DecoderType
from models.systems.diffmae.masks import PatchSplit
from models.systems.diffmae.model import DecoderConnection, DiffMAE, DiffMAEConfig, PredictionTarget, init_from_encoder
from models.systems.mae.model import MAE, MAEConfig, init_vit_from_mae
from models.systems.vit.model import Pool, ViT, ViTConfig
from tests.golden.case import read_case
from tests.golden.replays.diffmae import load
from tests.models.systems.diffmae import diffmae_reference as reference

GOLDEN = Path(__file__).parents[3] / "golden" / "diffmae"

SMALL = DiffMAEConfig(
    image_size=(24, 16),
    patch_size=4,
    width=24,
    depth=5,
    heads=3,
    decoder_width=16,
    decoder_depth=3,
    decoder_heads=2,
    time_width=8,
)
CLIP = replace(SMALL, image_size=(8, 12), frames=6, patch_frames=2)
DECODERS = list(DecoderType)


def build(**changes: Any) -> DiffMAE:
    """Build a model whose answers depend on everything: the usual initialisation is too close to zero for that."""
    torch.manual_seed(0)
    model = DiffMAE(replace(SMALL, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def images_for(config: DiffMAEConfig, batch: int = 2) -> Tensor:
    frames = [] if config.frames is None else [config.frames]
    return torch.randn(batch, 3, *frames, *config.image_size)


def split_for(config: DiffMAEConfig, batch: int = 2) -> PatchSplit:
    return PatchSplit.from_noise(torch.rand(batch, config.patches), 0.6)


OPTIONS: list[dict[str, Any]] = [
    *({"decoder_type": kind, "connection": connection} for kind, connection in itertools.product(DECODERS, DecoderConnection)),
    {"time_embed": False},
    {"normalise_patches": True},
    {"target": PredictionTarget.EPS},
    {"clip_width": 6, "clip_weight": 0.5},
    {"decoder_depth": 7},
    {"image_size": CLIP.image_size, "frames": CLIP.frames, "patch_frames": CLIP.patch_frames, "decoder_type": DecoderType.JOINT},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_is_the_second_formulation(options: dict[str, Any]) -> None:
    model = build(**options)
    config = model.config
    images, split = images_for(config), split_for(config)
    noise = torch.randn(*split.masked.shape, config.patch_values)
    t = torch.tensor([3, 700])
    teacher = torch.randn(2, config.patches, config.clip_width) if config.clip_width else None
    answer = model(images, split, t, noise, teacher)

    weights = {name: value.detach().double() for name, value in model.state_dict().items()}
    left = config.schedule.alphas_bar()
    pixel_losses, clip_losses = [], []
    for sample in range(2):
        clip = images[sample].double()
        clip = clip if config.frames else clip.unsqueeze(1)
        visible, masked = split.visible[sample], split.masked[sample]
        x0 = reference.patches_of(clip, config.patch_frames, config.patch_size)[masked]
        if config.normalise_patches:
            x0 = (x0 - x0.mean(-1, keepdim=True)) / (x0.var(-1, unbiased=True, keepdim=True) + 1e-6).sqrt()
        eps = noise[sample].double()
        x_t = left[t[sample]].sqrt() * x0 + (1 - left[t[sample]]).sqrt() * eps
        encoded = reference.features(weights, clip, visible, config.heads)
        pred, pred_clip = reference.predict(
            weights,
            encoded,
            x_t,
            int(t[sample]),
            visible,
            masked,
            heads=config.decoder_heads,
            u_shaped=config.connection is DecoderConnection.U_SHAPED,
        )
        torch.testing.assert_close(answer.prediction.patches[sample].double(), pred, rtol=1e-4, atol=2e-5)
        pixel_losses.append((pred - (eps if config.target is PredictionTarget.EPS else x0)).square().mean())
        if pred_clip is not None and teacher is not None:
            goal = teacher[sample, masked].double()
            cosine = (pred_clip * goal).sum(-1) / pred_clip.norm(dim=-1) / goal.norm(dim=-1)
            clip_losses.append((2 - 2 * cosine).mean())
    loss_pixel = torch.stack(pixel_losses).mean()
    torch.testing.assert_close(answer.loss_pixel.double(), loss_pixel, rtol=1e-5, atol=1e-6)
    if clip_losses:
        assert answer.loss_clip is not None
        torch.testing.assert_close(answer.loss_clip.double(), torch.stack(clip_losses).mean(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(answer.loss, answer.loss_pixel + config.clip_weight * answer.loss_clip)
    else:
        assert torch.equal(answer.loss, answer.loss_pixel)


@pytest.mark.parametrize(
    ("depth", "decoder_depth", "blocks"),
    [
        (12, 8, (11, 10, 8, 7, 5, 4, 2, 1)),
        (24, 8, (23, 20, 17, 14, 11, 8, 5, 2)),
        (32, 8, (31, 27, 23, 19, 15, 11, 7, 3)),
        (3, 2, (2, 1)),
        (12, 12, tuple(range(11, -1, -1))),
    ],
)
def test_the_u_reads_from_the_top_down(depth: int, decoder_depth: int, blocks: tuple[int, ...]) -> None:
    assert replace(SMALL, depth=depth, decoder_depth=decoder_depth).read_blocks == blocks


@pytest.mark.parametrize("kind", DECODERS)
def test_the_loss_reaches_every_weight(kind: DecoderType) -> None:
    """Also in blocks that no U-shaped connection reads, since later ones do; only the position tables are fixed."""
    model = build(decoder_type=kind, clip_width=6)
    split = split_for(SMALL)
    noise = torch.randn(*split.masked.shape, SMALL.patch_values)
    model(images_for(SMALL), split, torch.tensor([3, 700]), noise, torch.randn(2, SMALL.patches, 6)).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert without == {"pos_embed", "decoder_pos_embed"}


@pytest.mark.parametrize("kind", DECODERS)
def test_a_context_serves_every_step_bitwise(kind: DecoderType) -> None:
    """Encoder, keys and values are computed once, or again in each step: the bits are the same."""
    model, images, split = build(decoder_type=kind), images_for(SMALL), split_for(SMALL)
    context = model.encode(images, split)
    for time in (999, 500, 0):
        x, t = torch.randn(*split.masked.shape, SMALL.patch_values), torch.full((2,), time)
        assert torch.equal(model.predict(x, t, context).patches, model.predict(x, t, model.encode(images, split)).patches)


@pytest.mark.parametrize("kind", DECODERS)
def test_one_context_serves_several_samples(kind: DecoderType) -> None:
    model, images, split = build(decoder_type=kind), images_for(SMALL, 1), split_for(SMALL, 1)
    context = model.encode(images, split)
    x, t = torch.randn(3, split.masked.shape[1], SMALL.patch_values), torch.tensor([0, 400, 999])
    joint = model.predict(x, t, context.repeat(3)).patches
    for sample in range(3):
        alone = model.predict(x[sample : sample + 1], t[sample : sample + 1], context).patches
        torch.testing.assert_close(joint[sample : sample + 1], alone, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("options", [{"decoder_type": kind} for kind in DECODERS] + [{"frames": 4, "patch_frames": 2}], ids=str)
def test_what_is_under_the_mask_has_no_influence(options: dict[str, Any]) -> None:
    model = build(**options)
    images, split = images_for(model.config), split_for(model.config)
    patches = model.patchify(images)
    garbage = torch.full_like(patches, torch.inf)
    hidden = patches.scatter(1, split.masked.unsqueeze(-1).expand(-1, -1, model.config.patch_values), garbage)
    x, t = torch.randn(*split.masked.shape, model.config.patch_values), torch.tensor([0, 999])
    seen = model.predict(x, t, model.encode(images, split)).patches
    assert torch.equal(model.predict(x, t, model.encode(model.unpatchify(hidden), split)).patches, seen)


@pytest.mark.parametrize("kind", DECODERS)
def test_at_fixed_shapes_a_sample_does_not_feel_its_neighbours(kind: DecoderType) -> None:
    model, images, split = build(decoder_type=kind), images_for(SMALL), split_for(SMALL)
    x, t = torch.randn(*split.masked.shape, SMALL.patch_values), torch.tensor([0, 999])
    before = model.predict(x, t, model.encode(images, split)).patches
    others = split_for(SMALL)
    other = PatchSplit(torch.cat([split.visible[:1], others.visible[1:]]), torch.cat([split.masked[:1], others.masked[1:]]))
    images, x, t = images.clone(), x.clone(), torch.tensor([0, 10])
    images[1], x[1] = torch.randn_like(images[1]), torch.randn_like(x[1])
    assert torch.equal(model.predict(x, t, model.encode(images, other)).patches[0], before[0])


def build_ragged_batch() -> tuple[Tensor, PatchSplit]:
    """Three samples: 5 masked patches, 17, none."""
    mask = torch.zeros(3, SMALL.patches, dtype=torch.bool)
    mask[0, 3:8], mask[1, 2:19] = True, True
    return images_for(SMALL, 3), PatchSplit.from_mask(mask)


def alone(split: PatchSplit, sample: int) -> PatchSplit:
    sizes = (split.visible_size, split.masked_size)
    counts = [int(size[sample].sum()) for size in sizes if size is not None]
    return PatchSplit(split.visible[sample : sample + 1, : counts[0]], split.masked[sample : sample + 1, : counts[1]])


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("joined", [False, True], ids=["encoded together", "joined later"])
def test_padding_changes_nothing(kind: DecoderType, joined: bool) -> None:
    model = build(decoder_type=kind)
    images, split = build_ragged_batch()
    t, x = torch.tensor([5, 900, 0]), torch.randn(3, split.masked.shape[1], SMALL.patch_values)
    if joined:
        context = DecoderContext.join([model.encode(images[i : i + 1], alone(split, i)) for i in range(3)])
    else:
        context = model.encode(images, split)
    joint = model.predict(x, t, context).patches
    assert bool(joint.isfinite().all())
    for sample in range(2):
        single = alone(split, sample)
        count = single.masked.shape[1]
        expected = model.predict(x[sample : sample + 1, :count], t[sample : sample + 1], model.encode(images[sample : sample + 1], single))
        torch.testing.assert_close(joint[sample : sample + 1, :count], expected.patches, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("kind", DECODERS)
def test_what_padding_holds_has_no_influence(kind: DecoderType) -> None:
    model = build(decoder_type=kind)
    images, split = build_ragged_batch()
    t, x = torch.tensor([5, 900, 0]), torch.randn(3, split.masked.shape[1], SMALL.patch_values)
    assert split.masked_size is not None and split.visible_size is not None
    real = split.masked_size > 0
    seen = split.visible_size.squeeze(-1) > 0
    poison = replace(split, visible=split.visible.where(seen, 11), masked=split.masked.where(real.squeeze(-1), 7))
    before = model.predict(x, t, model.encode(images, split)).patches
    after = model.predict(x.where(real, 1e4), t, model.encode(images, poison)).patches
    assert torch.equal(before[:2][real[:2].expand_as(before[:2])], after[:2][real[:2].expand_as(after[:2])])


def test_padding_does_not_count_for_the_loss() -> None:
    model = build()
    images, split = build_ragged_batch()
    noise, t = torch.randn(3, split.masked.shape[1], SMALL.patch_values), torch.tensor([5, 900, 0])
    errors = [
        model(images[i : i + 1], alone(split, i), t[i : i + 1], noise[i : i + 1, : alone(split, i).masked.shape[1]]).loss for i in range(2)
    ]
    torch.testing.assert_close(model(images, split, t, noise).loss, (5 * errors[0] + 17 * errors[1]) / 22)


@pytest.mark.parametrize("kind", DECODERS)
def test_all_patches_or_a_single_one_can_be_masked(kind: DecoderType) -> None:
    model = build(decoder_type=kind)
    mask = torch.ones(2, SMALL.patches, dtype=torch.bool)
    mask[1, 1:] = False
    split = PatchSplit.from_mask(mask)
    x = torch.randn(2, SMALL.patches, SMALL.patch_values)
    assert bool(model.predict(x, torch.tensor([999, 0]), model.encode(images_for(SMALL), split)).patches.isfinite().all())


@pytest.mark.parametrize("kind", DECODERS)
def test_with_nothing_visible_the_class_token_is_all_there_is(kind: DecoderType) -> None:
    """The second formulation, with no patch in the encoder."""
    model = build(decoder_type=kind)
    nothing, everything = torch.empty(0, dtype=torch.int64), torch.arange(SMALL.patches)
    images, x = images_for(SMALL, 1), torch.randn(1, SMALL.patches, SMALL.patch_values)
    split = PatchSplit.from_mask(torch.ones(1, SMALL.patches, dtype=torch.bool))
    weights = {name: value.detach().double() for name, value in model.state_dict().items()}
    encoded = reference.features(weights, images[0].unsqueeze(1).double(), nothing, SMALL.heads)
    expected, _ = reference.predict(weights, encoded, x[0].double(), 600, nothing, everything, heads=SMALL.decoder_heads, u_shaped=True)
    predicted = model.predict(x, torch.tensor([600]), model.encode(images, split)).patches
    torch.testing.assert_close(predicted[0].double(), expected, rtol=1e-4, atol=2e-5)


def test_the_time_table_is_the_embedding() -> None:
    model, images, split = build(), images_for(SMALL), split_for(SMALL)
    context, x, t = model.encode(images, split), torch.randn(*split.masked.shape, SMALL.patch_values), torch.tensor([7, 991])
    table = model.time_table()
    assert table is not None and table.shape == (1000, 16)
    torch.testing.assert_close(model.predict(x, t, context, times=table).patches, model.predict(x, t, context).patches)
    assert build(time_embed=False).time_table() is None


@pytest.mark.parametrize("case", ["train_cross_self", "train_video_cross"])
def test_bfloat16_stays_within_two_percent(case: str) -> None:
    """The tolerance is 2 % of the norm of the recorded predictions; neighbouring times near 1000 still differ."""
    recorded = read_case(GOLDEN / case)
    model = load(recorded).bfloat16()
    split = PatchSplit.from_noise(recorded.inputs["mask_noise"], recorded.recorded["mask_ratio"])
    x_t = recorded.intermediates["x_t"]
    with torch.inference_mode():
        predicted = model.predict(x_t, recorded.inputs["t"], model.encode(recorded.inputs["image"].bfloat16(), split)).patches
    assert predicted.dtype == torch.float32
    assert (predicted - recorded.outputs["pred"]).norm() < 0.02 * recorded.outputs["pred"].norm()
    table = model.time_table()
    assert table is not None and not torch.equal(table[998], table[999])


def test_visible_tokens_can_merge() -> None:
    model, images, split = build(), images_for(SMALL), PatchSplit.from_noise(torch.rand(2, SMALL.patches), 0.3)
    x, t = torch.randn(*split.masked.shape, SMALL.patch_values), torch.tensor([0, 999])
    plain = model.predict(x, t, model.encode(images, split)).patches
    off = model.predict(x, t, model.encode(images, split, merge=MergeSchedule.off())).patches
    merged = model.encode(images, split, merge=MergeSchedule.parse(2))
    assert torch.equal(plain, off)
    assert [memory.keys.shape[2] for memory in merged.memories] == [17 - 10, 17 - 8, 17 - 4]  # what blocks 4, 3 and 1 left of 17
    assert model.predict(x, t, merged).patches.shape == plain.shape
    weighted = build(proportional_attention=True).encode(images, split, merge=MergeSchedule.parse(2))
    sizes = [memory.size for memory in weighted.memories]
    assert all(size is not None and size.sum(dim=1).flatten().tolist() == [17, 17] for size in sizes)


def test_merging_where_it_cannot_be_is_refused() -> None:
    images, split = build_ragged_batch()
    with pytest.raises(ValueError, match="different numbers of visible patches"):
        build().encode(images, split, merge=MergeSchedule.parse(1))
    with pytest.raises(ValueError, match="joint decoder"):
        build(decoder_type=DecoderType.JOINT).encode(images_for(SMALL), split_for(SMALL), merge=MergeSchedule.parse(1))


def waves(position: int, width: int) -> list[float]:
    angles = [position * 10000 ** (-i / (width / 2)) for i in range(width // 2)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


@pytest.mark.parametrize("config", [SMALL, CLIP], ids=["oblong picture", "clip"])
def test_fresh_positions_are_column_then_row_and_time_on_top(config: DiffMAEConfig) -> None:
    times, rows, columns = config.grid
    model = DiffMAE(config)
    for table, width in ((model.pos_embed, config.width), (model.decoder_pos_embed, config.decoder_width)):
        expected = [[0.0] * width]
        for time, row, column in itertools.product(range(times), range(rows), range(columns)):
            place = waves(column, width // 2) + waves(row, width // 2)
            moment = [0.0] * width if config.frames is None else waves(time, width)
            expected.append([a + b for a, b in zip(place, moment, strict=True)])
        torch.testing.assert_close(table[0], torch.tensor(expected), rtol=0.0, atol=1e-6)


def test_the_encoder_goes_on_to_classify() -> None:
    """Names and order of operations are those of `ViT`."""
    model = DiffMAE(replace(SMALL, image_size=(16, 16)))
    classifier = ViT(ViTConfig(image_size=16, patch_size=4, classes=3, width=24, depth=5, heads=3, pool=Pool.MEAN)).eval()
    init_vit_from_mae(classifier, model.state_dict())
    images = torch.randn(1, 3, 16, 16)
    everything = PatchSplit(torch.arange(16).expand(1, -1), torch.empty(1, 0, dtype=torch.int64))
    features = classifier(images).features
    unnormalised = model.features(images, everything)[:-1]
    assert torch.allclose(classifier.pos_embed, model.pos_embed) and len(unnormalised) == 4
    last = model.blocks[-1](unnormalised[-1]).x[:, 1:].mean(dim=1)
    torch.testing.assert_close(features, F.layer_norm(last, (24,), eps=1e-6))


def test_an_mae_checkpoint_starts_the_encoder() -> None:
    mae = MAE(MAEConfig(image_size=16, patch_size=4, width=24, depth=5, heads=3, decoder_width=12, decoder_depth=1, decoder_heads=2))
    model = DiffMAE(replace(SMALL, image_size=(16, 16)))
    fresh = model.decoder_pred.weight.clone()
    init_from_encoder(model, mae.state_dict())
    images, split = torch.randn(2, 3, 16, 16), PatchSplit.from_noise(torch.rand(2, 16), 0.5)
    assert torch.equal(model.features(images, split)[-1].x, mae.encode_visible(images, split.visible))
    assert torch.equal(model.decoder_pred.weight, fresh)


def test_an_encoder_that_does_not_fit_is_refused() -> None:
    weights = dict(DiffMAE(SMALL).state_dict())
    with pytest.raises(ValueError, match=r"another shape: pos_embed"):
        init_from_encoder(DiffMAE(replace(SMALL, image_size=(16, 16))), weights)
    del weights["norm.bias"]
    with pytest.raises(ValueError, match=r"lack norm\.bias"):
        init_from_encoder(DiffMAE(SMALL), weights)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"image_size": (24, 18)}, "24 × 18 px cannot be cut"),
        ({"frames": 5, "patch_frames": 2}, "5 frames"),
        ({"patch_frames": 2}, "1 frames of 24 × 16 px cannot be cut"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(SMALL, **changes)


def test_clip_features_are_needed_to_train_their_head() -> None:
    model, split = build(clip_width=6), split_for(SMALL)
    with pytest.raises(ValueError, match="clip_target"):
        model(images_for(SMALL), split, torch.tensor([0, 1]), torch.randn(*split.masked.shape, SMALL.patch_values))
