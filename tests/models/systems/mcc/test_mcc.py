"""MCC beyond the recorded cases (tests/golden/mcc): against a dense decoder with a mask, by invariants, and at the published size.

The recorded cases have one window block, tiny widths and no half precision; what is shared, cached or computed for one token only must
equal the formulation of the paper, which `dense` writes out.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.checkpoints import CheckpointError, detect, families, fit, import_checkpoint, read_checkpoint
from models.layers.block import TransformerBlock
from models.layers.token_merging import Tokens
from models.merge_schedule import MergeSchedule
from models.systems.mae.model import MAE, MAEConfig
from models.systems.mcc.model import (
    MCC,
    PUBLISHED,
    DropPathMasks,
    MCCConfig,
    decode_colours,
    init_from_mae,
)
from models.systems.mcc.point_embed import ClassTokenBlock, append_self_slot, attend_to_scene_and_self, contract, embed_points
from tests.golden.case import find_cases, published_keys, read_case
from tests.golden.replays.mcc import scene_of

GOLDEN = Path(__file__).parents[3] / "golden" / "mcc"
CASES = list(find_cases(GOLDEN))
KEYS: dict[str, list[int]] = next(iter(published_keys("mcc").values()))["params"]

SMALL = MCCConfig(
    image_size=32,
    patch_size=8,
    width=24,
    depth=2,
    heads=4,
    window=4,
    decoder_width=16,
    decoder_depth=3,
    decoder_heads=2,
    drop_path=0.25,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(config: MCCConfig = SMALL) -> MCC:
    """Build a model with all parameters away from their initial values, so that no bias is zero and no norm trivial."""
    torch.manual_seed(0)
    model = MCC(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def view(batch: int = 2) -> tuple[Tensor, Tensor]:
    """Images, and seen points of which three windows of the first scene are empty, others in part, and some far away."""
    seen = 3 * torch.randn(batch, 16, 16, 3, generator=generator())
    seen[0, :4, :12] = torch.inf
    seen[:, 5:7, 3:9] = torch.nan
    seen[-1, 12, 12] = 300.0
    return torch.rand(batch, 3, 32, 32, generator=generator(1)), seen


def points(count: int, batch: int = 2) -> Tensor:
    return 6 * torch.randn(batch, count, 3, generator=generator(2))


def dense(model: MCC, images: Tensor, seen: Tensor, queries: Tensor, retained: DropPathMasks | None = None) -> Tensor:
    """Compute as published: whole blocks on every window, one sequence of scene and queries under a mask."""
    valid = seen.sum(dim=-1).isfinite()
    window = model.xyz_pos_embed
    x = embed_points(contract(seen.masked_fill(~valid.unsqueeze(-1), -100.0), model.config.far), window.pos_embed)
    x = torch.where(valid.unsqueeze(-1), x, window.invalid_xyz_token)
    side, w = model.config.side, model.config.window
    rows = [x[:, i * w : (i + 1) * w, j * w : (j + 1) * w].flatten(1, 2) for i in range(side) for j in range(side)]
    x = torch.stack(rows, dim=1).flatten(0, 1) + window.two_d_pos_embed[:, 1:]
    x = torch.cat([(window.cls_token + window.two_d_pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
    for block in window.blocks:
        x = TransformerBlock.forward(block, Tokens(x)).x
    tokens = x[:, 0].view(len(images), side * side, -1)
    latent = torch.cat([model.encode_images(images, retained), model.encode_points(tokens, retained)], dim=-1)

    scene = model.decoder_embed(latent) + model.decoder_pos_embed
    requested = model.decoder_xyz_pos_embed(contract(queries, model.config.far))
    x, count = torch.cat([scene, requested], dim=1), scene.shape[1]
    mask = torch.full((x.shape[1], x.shape[1]), -torch.inf, dtype=x.dtype)
    mask[:, :count] = 0
    mask.fill_diagonal_(0)
    for layer, block in enumerate(model.decoder_blocks):
        keep = torch.ones(2, len(x)) if retained is None else retained.decoder[layer] / (1 - model.config.drop_path)
        q, k, v = block.attn.project(block.norm1(x))
        attended = block.attn.join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        x = x + attended * keep[0].to(x.dtype).view(-1, 1, 1)
        x = x + block.mlp(block.norm2(x)) * keep[1].to(x.dtype).view(-1, 1, 1)
    predicted: Tensor = model.decoder_pred(model.decoder_norm(x))[:, count:]
    return predicted


def test_tokens_merge_in_encoders_and_return_to_their_places() -> None:
    """17 tokens, of which 5 merge: 12 different rows in 17 places, and a decoder that finds every place filled."""
    model, (images, seen) = make(), view(batch=1)
    latent = model.encode(images, seen, merge=MergeSchedule.from_list([3, 2]))
    picture, of_points = latent.chunk(2, dim=-1)
    assert latent.shape == (1, 17, 48)
    assert [len(half[0].unique(dim=0)) for half in (picture, of_points)] == [12, 12]
    assert model.predict_outputs(model.decode_queries(model.cache_scene(latent), points(4, batch=1))).isfinite().all()
    assert torch.equal(model.encode(images, seen, merge=MergeSchedule.off()), model.encode(images, seen))


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, window_depth=2, qkv_bias=False, regress_colour=True, window=8, patch_size=16)])
def test_equals_the_published_dense_formulation(config: MCCConfig) -> None:
    model = make(config).double()
    images, seen = view()
    arguments = (images.double(), seen.double(), points(11).double())
    torch.testing.assert_close(model(*arguments), dense(model, *arguments), atol=1e-12, rtol=1e-10)


def test_training_drops_the_same_branches_of_scene_and_queries() -> None:
    """The gradients equal those of one dense sequence."""
    model = make().double().train()
    images, seen = view()
    arguments = (images.double(), seen.double(), points(11).double())
    keep = [torch.randint(0, 2, (depth, 2, 2), generator=generator()).double() for depth in (2, 2, 3)]
    gradients = []
    for forward in (lambda *a: model(*a, keep_masks=DropPathMasks(*keep)), lambda *a: dense(model, *a, retained=DropPathMasks(*keep))):
        model.zero_grad()
        forward(*arguments).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-10, rtol=1e-8, msg=name)


def test_stochastic_depth_is_drawn_in_training_only() -> None:
    model, (images, seen), queries = make(replace(SMALL, drop_path=0.5)), view(), points(5)
    assert torch.equal(model(images, seen, queries), model(images, seen, queries))
    model.train()
    torch.manual_seed(1)
    first = model(images, seen, queries)
    assert not torch.equal(first, model(images, seen, queries))
    torch.manual_seed(1)
    assert torch.equal(first, model(images, seen, queries))


@torch.no_grad()
def test_a_query_does_not_see_the_others_bit_for_bit() -> None:
    model, queries = make(), points(64)
    scene = model.cache_scene(model.encode(*view()))
    other = points(64).flip(1)
    other[:, 17] = queries[:, 17]
    assert torch.equal(
        model.predict_outputs(model.decode_queries(scene, other))[:, 17], model.predict_outputs(model.decode_queries(scene, queries))[:, 17]
    )


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 7, 37, 100])
def test_any_chunks_and_any_order_give_the_same_answers(chunk: int) -> None:
    model, queries = make(), points(100)
    scene = model.cache_scene(model.encode(*view()))
    full = model.predict_outputs(model.decode_queries(scene, queries))
    order = torch.randperm(100, generator=generator())
    parts = [model.predict_outputs(model.decode_queries(scene, part)) for part in torch.split(queries[:, order], chunk, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), full[:, order], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_no_queries_have_no_answers() -> None:
    model, (images, seen) = make(), view()
    assert model(images, seen, points(0)).shape == (2, 0, 769)


@torch.no_grad()
def test_scene_encoding_does_not_depend_on_its_batch() -> None:
    model, (images, seen), queries = make(), view(), points(9)
    scene = model.cache_scene(model.encode(images, seen))
    again = model.cache_scene(model.encode(images, seen))
    assert torch.equal(scene.keys, again.keys)
    assert torch.equal(scene.values, again.values)
    for index in range(2):
        alone = model(images[index : index + 1], seen[index : index + 1], queries[index : index + 1])
        torch.testing.assert_close(alone[0], model(images, seen, queries)[index], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_stands_where_nothing_was_seen_does_not_matter() -> None:
    model, (images, seen) = make(), view()
    other = seen.clone()
    other[~seen.sum(dim=-1).isfinite()] = torch.tensor([torch.nan, 1.0, -torch.inf])
    assert torch.equal(model.encode(images, other), model.encode(images, seen))


@torch.no_grad()
def test_windows_without_points_are_one_vector_computed_once() -> None:
    model, (_, seen) = make(), view()
    tokens = model.embed_points(seen)
    assert torch.equal(tokens[0, 0], tokens[0, 2])
    assert not torch.equal(tokens[0, 0], tokens[1, 0])
    nothing = torch.full_like(seen, torch.inf)
    torch.testing.assert_close(model.embed_points(nothing), tokens[0, :1].expand(2, 16, -1), atol=1e-5, rtol=1e-5)

    def flops(seen: Tensor) -> int:
        with FlopCounterMode(display=False) as counter:
            model.embed_points(seen)
        return counter.get_total_flops()

    full = torch.randn(2, 16, 16, 3, generator=generator())
    assert flops(nothing) * 33 == flops(full)  # one row of 32 windows and the empty one


@torch.no_grad()
def test_compiled_model_has_fixed_shapes_for_empty_windows() -> None:
    """Code generators refuse shapes that depend on the data; here these would break the graph."""
    torch._dynamo.reset()
    model, (_, seen) = make(), view()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=False):
        assert torch._dynamo.explain(model.embed_points)(seen).graph_break_count == 0
        tokens = torch.compile(model.embed_points, backend="eager")(seen)
    torch.testing.assert_close(tokens, model.embed_points(seen), atol=1e-5, rtol=1e-5)


def test_the_window_block_costs_less_than_a_quarter_at_full_size() -> None:
    """Which are 61.4 GMAC on 196 windows, more than all else that encodes a scene."""
    with torch.device("meta"):
        block, x = ClassTokenBlock(768, 12, 1536, qkv_bias=True, norm_eps=1e-6), torch.empty(196, 65, 768)

    def macs(call: object) -> float:
        with FlopCounterMode(display=False) as counter:
            call()  # type: ignore[operator]
        return counter.get_total_flops() / 2

    full = macs(lambda: TransformerBlock.forward(block, Tokens(x)))
    assert full == pytest.approx(61.4e9, rel=0.01)
    assert macs(lambda: block(Tokens(x))) < full / 40


def test_query_cost_is_published_decoders_and_linear() -> None:
    """27.18 MMAC a query with the head, 5.43 GMAC a scene; ours pays for eight more channels in each of 16 heads over 198 keys."""
    with torch.device("meta"):
        model = MCC(PUBLISHED["mcc_vit_base_patch16"]).to("meta").eval()
        latent, queries = torch.empty(1, 197, 1536), torch.empty(1, 1000, 3)

    def macs(queries: Tensor) -> tuple[float, float]:
        with FlopCounterMode(display=False) as counter:
            scene = model.cache_scene(latent)
            encoding = counter.get_total_flops() / 2
            model.predict_outputs(model.decode_queries(scene, queries))
        return encoding, counter.get_total_flops() / 2 - encoding

    encoding, asking = macs(queries)
    assert encoding <= 5.44e9
    assert asking / 1000 == pytest.approx(27.18e6 + 8 * 16 * (2 * 8 * 198 - 2 * 32), rel=0.005)
    assert macs(queries.expand(1, -1, 3).repeat(1, 3, 1))[1] == 3 * asking


def test_attention_to_scene_and_self_has_gradients_of_softmax() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    scene_k, scene_v = (torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def fast(q: Tensor, k: Tensor, v: Tensor, scene_k: Tensor, scene_v: Tensor) -> Tensor:
        return attend_to_scene_and_self(q, k, v, *append_self_slot(scene_k, scene_v))

    def plain(q: Tensor, k: Tensor, v: Tensor, scene_k: Tensor, scene_v: Tensor) -> Tensor:
        logits = torch.cat([q @ scene_k.mT, (q * k).sum(-1, keepdim=True)], dim=-1) / 2
        weights = logits.softmax(dim=-1)
        return weights[..., :-1] @ scene_v + weights[..., -1:] * v

    arguments = (q, k, v, scene_k, scene_v)
    torch.testing.assert_close(fast(*arguments), plain(*arguments))
    for ours, theirs in zip(
        torch.autograd.grad(fast(*arguments).square().sum(), arguments),
        torch.autograd.grad(plain(*arguments).square().sum(), arguments),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_query_s_own_logit_is_not_rounded_in_half_precision() -> None:
    """bfloat16 has steps of 1 between 128 and 256: a weight would be off by up to a factor of 1.2 after scaling."""
    torch.manual_seed(0)
    q, k = (4 * torch.randn(1, 1, 64, 16)).bfloat16(), torch.randn(1, 1, 8, 16).bfloat16()
    v, ours = torch.randn(1, 1, 8, 16).bfloat16(), torch.ones(1, 1, 64, 16).bfloat16()
    attended = attend_to_scene_and_self(q, q, ours, *append_self_slot(k * 0 + q[:, :, :1], v * 0))  # what comes out is the own weight
    own_logit, scene_logit = q.double().square().sum(-1) / 4, (q.double() @ q[:, :, 0].double().mT).squeeze(-1) / 4
    weight = own_logit.exp() / (own_logit.exp() + 8 * scene_logit.exp())
    torch.testing.assert_close(attended[..., 0].double(), weight, atol=0.01, rtol=0)


def test_far_points_come_nearer_and_near_ones_stay() -> None:
    direction = F.normalize(torch.randn(5, 3, generator=generator(), dtype=torch.float64), dim=-1)
    radii = torch.tensor([0.0, 9.9, 10.0, 20.0, 1e6], dtype=torch.float64)
    contracted = contract(direction * radii.unsqueeze(1), 10.0)
    torch.testing.assert_close(contracted.norm(dim=-1), torch.tensor([0.0, 9.9, 10.0, 15.0, 20 - 1e-4], dtype=torch.float64))
    torch.testing.assert_close(F.normalize(contracted[1:], dim=-1), direction[1:])
    infinite = torch.tensor([[torch.inf, 0.0, 0.0]])
    assert torch.equal(contract(infinite, 10.0), infinite)


def test_contraction_has_gradients_everywhere() -> None:
    queries = torch.tensor([[0.0, 0.0, 0.0], [10.0, 0.0, 0.0], [1.0, 2.0, 30.0]], dtype=torch.float64, requires_grad=True)
    contract(queries, 10.0).sum().backward()
    assert queries.grad is not None
    assert queries.grad.isfinite().all()
    assert torch.autograd.gradcheck(lambda p: contract(p, 10.0), queries[2:].detach().requires_grad_())


def test_losses_are_those_of_the_library_over_occupied_queries() -> None:
    predicted = torch.randn(2, 6, 769, generator=generator(), requires_grad=True)
    occupied = torch.tensor([[1.0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0]])
    colours = torch.rand(2, 6, 3, generator=generator())
    colours[0, 0] = torch.tensor([0.5, 1.5, 2.5]) / 255  # to even: 0, 2, 2
    losses = make().losses(predicted, occupied, colours)
    hits = occupied.bool()
    classes = (colours[hits] * 255).round().long()
    assert classes[0].tolist() == [0, 2, 2]
    expected = F.cross_entropy(predicted[hits][:, 1:].reshape(9, 256), classes.flatten())
    torch.testing.assert_close(losses.colour, expected)
    torch.testing.assert_close(losses.occupancy, F.binary_cross_entropy_with_logits(predicted[..., 0], occupied))
    torch.testing.assert_close(losses.total, losses.occupancy + 0.01 * losses.colour)


def test_regressed_colours_have_a_squared_error() -> None:
    model = make(replace(SMALL, regress_colour=True, occupancy_weight=2.0, colour_weight=3.0))
    predicted, colours = torch.randn(1, 6, 4, generator=generator()), torch.rand(1, 6, 3, generator=generator())
    occupied = torch.tensor([[1.0, 0, 0, 1, 0, 0]])
    losses = model.losses(predicted, occupied, colours)
    torch.testing.assert_close(losses.colour, F.mse_loss(predicted[occupied.bool()][:, 1:], colours[occupied.bool()]))
    torch.testing.assert_close(losses.total, 2 * losses.occupancy + 3 * losses.colour)


@pytest.mark.parametrize("regress", [False, True])
def test_without_occupied_queries_colour_loss_is_zero_not_nan(regress: bool) -> None:
    model = make(replace(SMALL, regress_colour=regress))
    predicted = torch.randn(1, 6, model.config.outputs, generator=generator(), requires_grad=True)
    losses = model.losses(predicted, torch.zeros(1, 6), torch.zeros(1, 6, 3))
    assert losses.colour == 0
    losses.total.backward()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()
    assert (predicted.grad[..., 1:] == 0).all()


def test_colours_are_blocks_of_classes_read_at_a_temperature() -> None:
    predicted = torch.full((1, 769), -20.0)
    predicted[0, [1 + 10, 1 + 256 + 20, 1 + 512 + 255]] = 20.0
    expected = torch.tensor([[10.0, 20.0, 255.0]]) / 255
    torch.testing.assert_close(decode_colours(predicted, 0), expected)
    torch.testing.assert_close(decode_colours(predicted, 0.1), expected)
    torch.testing.assert_close(decode_colours(predicted, 1e6), torch.full((1, 3), 0.5), atol=1e-3, rtol=0)
    assert decode_colours(torch.tensor([[9.0, -0.5, 0.5, 1.5]])).tolist() == [[-0.5, 0.5, 1.5]]


@torch.no_grad()
def test_occupancy_alone_is_the_first_output() -> None:
    model = make()
    requested = model.decode_queries(model.cache_scene(model.encode(*view())), points(9))
    torch.testing.assert_close(model.predict_occupancy(requested), model.predict_outputs(requested)[..., 0])


@torch.no_grad()
def test_images_of_other_size_are_resized_without_antialiasing() -> None:
    model, (_, seen) = make(), view()
    pixels = torch.rand(2, 3, 96, 96, generator=generator())
    centres = pixels[:, :, 1::3, 1::3]  # at a ratio of 3, bilinear without antialiasing takes the middle pixel
    torch.testing.assert_close(model.encode(pixels, seen), model.encode(centres, seen))


def test_a_map_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"seen: shape \(2, 15, 15, 3\) where \(batch, 16, 16, 3\) is needed"):
        make().embed_points(torch.zeros(2, 15, 15, 3))


@torch.no_grad()
def test_coordinates_and_pixels_may_be_in_double_precision() -> None:
    """NumPy makes such arrays."""
    model, (images, seen), queries = make(), view(), points(9)
    answer = model(images.double(), seen.double(), queries.double())
    assert answer.dtype is torch.float32
    torch.testing.assert_close(answer, model(images, seen, queries), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("folder", CASES, ids=[folder.name for folder in CASES])
def test_bfloat16_stays_within_two_percent(folder: Path) -> None:
    """The tolerance is relative to the norm of each query's outputs. The worst of the recorded cases is at 1.2 %."""
    model, images, seen, queries = scene_of(read_case(folder))
    exact = model(images, seen, queries)
    rounded = model.bfloat16()(images, seen, queries)
    assert rounded.dtype is torch.float32
    assert ((rounded - exact).norm(dim=-1) < 0.02 * exact.norm(dim=-1)).all()


@torch.no_grad()
def test_outputs_are_float32_under_autocast() -> None:
    model, (images, seen), queries = make(), view(), points(9)
    exact = model(images, seen, queries)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = model(images, seen, queries)
    assert lowered.dtype is torch.float32
    assert ((lowered - exact).norm(dim=-1) < 0.03 * exact.norm(dim=-1)).all()


def test_a_fresh_model_is_initialised_as_published() -> None:
    torch.manual_seed(0)
    model = MCC(replace(SMALL, width=96, heads=12))
    bound = (6 / (96 + 3 * 64)) ** 0.5  # Xavier's, on the flattened patch
    assert bound * 0.98 < float(model.patch_embed.proj.weight.detach().abs().max()) <= bound
    assert model.patch_embed.proj.bias.abs().max() > 0
    assert all((parameter == 0).all() for name, parameter in model.named_parameters() if name.endswith("qkv.bias"))
    assert 0.01 < float(model.xyz_pos_embed.invalid_xyz_token.detach().std()) < 0.03
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert fixed == {"pos_embed", "decoder_pos_embed", "xyz_pos_embed.two_d_pos_embed"}


def test_the_picture_s_encoder_starts_from_an_mae() -> None:
    torch.manual_seed(0)
    mae = MAE(MAEConfig(image_size=32, patch_size=8, width=24, depth=2, heads=4, decoder_width=16, decoder_depth=1, decoder_heads=2))
    model = make()
    before = model.decoder_embed.weight.clone()
    init_from_mae(model, mae.state_dict())
    assert torch.equal(model.blocks[1].mlp.fc1.weight, mae.state_dict()["blocks.1.mlp.fc1.weight"])
    assert torch.equal(model.decoder_embed.weight, before)
    with pytest.raises(ValueError, match=r"lack norm\.weight"):
        init_from_mae(model, {name: value for name, value in mae.state_dict().items() if name != "norm.weight"})


@pytest.mark.parametrize(("rows", "regress", "parameters"), [(769, False, 202_141_441), (4, True, 201_748_996)])
def test_the_published_checkpoint_loads_strictly_at_full_size(rows: int, regress: bool, parameters: int) -> None:
    shapes = {**KEYS, "decoder_pred.weight": [rows, 512], "decoder_pred.bias": [rows]}
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert detect(weights) == ["mcc"]
    found = fit(weights, families()["mcc"], {})
    assert found.config() == replace(PUBLISHED["mcc_vit_base_patch16"], regress_colour=regress)
    with torch.device("meta"):
        model = MCC(found.config())
    model.load_state_dict(found.weights, strict=True, assign=True)
    assert sum(value.numel() for value in model.state_dict().values()) == parameters
    assert {name: list(value.shape) for name, value in families()["mcc"].export(model.state_dict()).items()} == shapes


def test_the_weights_give_other_sizes() -> None:
    """44 · (15 / 44) is a hair below 15 in floating point."""
    config = replace(SMALL, width=44, heads=4, window_heads=11, window_depth=2, window_mlp_ratio=0.341, qkv_bias=False, regress_colour=True)
    model = make(config)
    settings = {"heads": 4, "decoder_heads": 2, "window_heads": 11, "drop_path": 0.25}
    found = fit(families()["mcc"].export(model.state_dict()), families()["mcc"], settings)
    assert model.xyz_pos_embed.blocks[0].mlp.fc1.out_features == 15
    assert found.config() == replace(config, window_mlp_ratio=found.config().window_mlp_ratio)
    arguments = (*view(), points(5))
    assert torch.equal(found.model().eval()(*arguments), model(*arguments))


def test_import_and_export_keep_every_bit(tmp_path: Path) -> None:
    settings = {"heads": 4, "decoder_heads": 4}
    published = read_checkpoint(GOLDEN / "co3d_forward" / "checkpoint.pth")
    model = fit(published, families()["mcc"], settings).model()
    torch.save({"model": families()["mcc"].export(model.state_dict()), "args": argparse.Namespace(seed=0)}, tmp_path / "again.pth")
    again = read_checkpoint(tmp_path / "again.pth")
    assert again.keys() == published.keys()
    assert all(torch.equal(again[key], value) for key, value in published.items())
    assert detect(again) == ["mcc"]


def test_damaged_checkpoint_is_refused_with_wrong_keys(tmp_path: Path) -> None:
    weights = read_checkpoint(GOLDEN / "co3d_forward" / "checkpoint.pth")
    del weights["blocks_xyz.1.norm1.weight"]
    torch.save({"model": {**weights, "mask_token": torch.zeros(1)}}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"missing: blocks_xyz\.\{i\}\.norm1\.weight; unexpected: mask_token"):
        import_checkpoint(
            tmp_path / "file.pth",
            family="mcc",
            labels=None,
            overrides={"heads": "4", "decoder_heads": "4"},
            name="mcc",
            version="1",
            license="CC-BY-NC-4.0",
        )


@torch.no_grad()
def test_training_drops_decoder_branches_in_steps_too() -> None:
    model = make(replace(SMALL, drop_path=0.5))
    latent, queries = model.encode(*view()), points(7)
    model.train()
    torch.manual_seed(0)
    scenes = [model.cache_scene(latent) for _ in range(8)]
    assert len({tuple(scene.keys[-1].flatten().tolist()) for scene in scenes}) > 1
    requested = [model.decode_queries(scene, queries) for scene in scenes]
    assert len({tuple(answer.flatten().tolist()) for answer in requested}) > 1
    assert torch.equal(model.decode_queries(scenes[0], queries), requested[0])  # queries share the fate of their scene
    model.eval()
    assert torch.equal(model.cache_scene(latent).keys, model.cache_scene(latent).keys)
