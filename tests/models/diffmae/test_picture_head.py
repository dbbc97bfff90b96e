"""DiffMAE with a mask channel and a head over the whole picture: what it sees, what has no influence, and who it shares batches with."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.diffmae.diffusion import Method, Sampler
from models.diffmae.inpainting import counter_noise, inpaint, known_pixels
from models.diffmae.masks import Split
from models.diffmae.model import DiffMAE, DiffMAEConfig, Target
from models.diffmae.neighbours import look_around
from models.layers.patches import to_pixels
from models.onnx.export import ExportError, denoising_step
from models.registry import read_config
from tests.models.diffmae.test_diffmae import CLIP, SMALL, build, images_for
from tests.models.diffmae.test_diffmae_steps import answer, close, job, stepper, together

OPTIONS: list[dict[str, Any]] = [{"mask_channel": True}, {"head_width": 4}, {"mask_channel": True, "head_width": 4}]
BOTH = OPTIONS[-1]
HEIGHT, WIDTH = SMALL.image_size


def boxes() -> Tensor:
    """bool (2, H, W): two holes that end inside of patches, of different sizes."""
    missing = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    missing[0, 3:10, 2:9] = True
    missing[1, 1:18, 5:15] = True
    return missing


@torch.no_grad()
def predicted(model: DiffMAE, images: Tensor, missing: Tensor) -> Tensor:
    split = Split.by_pixels(missing, SMALL.patch_size)
    seeds = torch.arange(len(images))
    noise = counter_noise(seeds, split, SMALL.patch_values)(-1)
    patches = model.predict(noise, torch.full_like(seeds, 500), model.encode(images, split, missing=missing)).patches
    return patches if split.masked_size is None else patches * split.masked_size


def test_a_config_from_before_has_neither_and_the_same_weights() -> None:
    before = {name: value for name, value in asdict(SMALL).items() if name not in ("mask_channel", "head_width")}
    config = read_config(DiffMAEConfig, before)
    assert config == SMALL and not config.mask_channel and config.head_width == 0
    names = DiffMAE(config).state_dict()
    assert names["patch_embed.proj.weight"].shape[1] == 3
    assert not [name for name in names if name.startswith("head.")]


@pytest.mark.parametrize("options", OPTIONS)
def test_what_is_under_the_mask_has_no_influence(options: dict[str, Any]) -> None:
    model, images, missing = build(**options), images_for(SMALL), boxes()
    if not model.config.mask_channel:  # then the patches on the hole's edge are hidden whole
        missing = Split.by_pixels(missing, SMALL.patch_size).missing_pixels(SMALL.grid[1:], SMALL.patch_size)
    garbage = torch.where(missing.unsqueeze(1), torch.full_like(images, float("nan")), images)
    assert torch.equal(predicted(model, garbage, missing), predicted(model, images, missing))


def test_what_is_known_of_a_patch_counts() -> None:
    model, images, missing = build(**BOTH), images_for(SMALL), boxes()
    split = Split.by_pixels(missing, SMALL.patch_size)
    assert set(split.masked[0].tolist()) & set(split.visible[0].tolist())
    changed = images.clone()
    changed[0, :, 0:3, 4:8] += 1  # above the hole, in patches that it reaches into
    assert not torch.equal(predicted(model, changed, missing)[0], predicted(model, images, missing)[0])


@pytest.mark.parametrize("options", OPTIONS)
def test_padding_has_no_influence(options: dict[str, Any]) -> None:
    model, images, missing = build(**options), images_for(SMALL), boxes()
    split = Split.by_pixels(missing, SMALL.patch_size)
    context = model.encode(images, split, missing=missing)
    noise = torch.randn(2, split.masked.shape[1], SMALL.patch_values)
    both = model.predict(noise, torch.tensor([300, 700]), context).patches
    for sample in range(2):
        own = Split.by_pixels(missing[sample : sample + 1], SMALL.patch_size)
        count = own.masked.shape[1]
        alone = model.encode(images[sample : sample + 1], own, missing=missing[sample : sample + 1])
        single = model.predict(noise[sample : sample + 1, :count], torch.tensor([[300, 700][sample]]), alone).patches
        torch.testing.assert_close(both[sample : sample + 1, :count], single, atol=1e-4, rtol=1e-4)


def test_a_head_begins_with_no_correction() -> None:
    torch.manual_seed(0)
    model = DiffMAE(replace(SMALL, **BOTH))
    images, missing = images_for(SMALL), boxes()
    split = Split.by_pixels(missing, SMALL.patch_size)
    context = model.encode(images, split, missing=missing)
    noise, times = torch.randn(2, split.masked.shape[1], SMALL.patch_values), torch.tensor([3, 900])
    before = model.predict(noise, times, context).patches
    model.head = None
    assert torch.equal(model.predict(noise, times, context).patches, before)


def test_gradients_reach_every_parameter() -> None:
    model, missing = build(**BOTH), boxes()
    split = Split.by_pixels(missing, SMALL.patch_size)
    noise = torch.randn(2, split.masked.shape[1], SMALL.patch_values)
    model(images_for(SMALL), split, torch.tensor([30, 600]), noise, missing=missing).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert model.patch_embed.get_parameter("proj.weight").grad[:, 3].abs().max() > 0  # type: ignore[index]


def test_gradients_are_those_of_finite_differences() -> None:
    model, missing = build(**BOTH).double(), boxes()
    split = Split.by_pixels(missing, SMALL.patch_size)
    images = images_for(SMALL).double()
    noise = torch.randn(2, split.masked.shape[1], SMALL.patch_values, dtype=torch.float64)
    assert model.head is not None

    def loss() -> Tensor:
        return model(images, split, torch.tensor([30, 600]), noise, missing=missing).loss

    for parameter in (model.head.token.weight, model.head.far.weight, model.patch_embed.get_parameter("proj.weight")):
        [gradient] = torch.autograd.grad(loss(), [parameter])
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(1e-6 * direction)
            above = loss()
            parameter.sub_(2e-6 * direction)
            below = loss()
            parameter.add_(1e-6 * direction)
        assert float((gradient * direction).sum()) == pytest.approx(float(above - below) / 2e-6, rel=1e-4)


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_job_gets_the_same_in_any_company(options: dict[str, Any], packs: bool) -> None:
    steps = stepper(build(**options), packs=packs)
    jobs = [
        (0, job(1, (3, 2, 7, 9)), {"steps": 4, "seed": 1}),
        (1, job(2, (1, 5, 15, 6)), {"steps": 3, "seed": 2, "samples": 2}),
        (1, job(3, (9, 2, 5, 5), (HEIGHT + 6, WIDTH + 3)), {"steps": 5, "seed": 3}),
    ]
    for (_, given, asked), got in zip(jobs, together(steps, jobs), strict=True):
        assert close(got, answer(steps, given, **asked)["filled"])


def test_a_job_gets_what_all_steps_of_one_batch_make() -> None:
    model, given = build(**BOTH), job(1, (3, 2, 7, 9))
    missing = given["missing"].bool().unsqueeze(0)
    mean, std = torch.tensor(SMALL.mean), torch.tensor(SMALL.std)
    images = ((given["pixels"].float() / 255 - mean) / std).movedim(-1, 0).unsqueeze(0)
    split = Split.by_pixels(missing, SMALL.patch_size)
    known, noise = known_pixels(model, images, split, missing), counter_noise(torch.tensor([5]), split, SMALL.patch_values)
    made = inpaint(model, images, split, Sampler(Method.DDIM, 4), noise, known=known, missing=missing)
    got = answer(stepper(model), given, steps=4, seed=5)["filled"]
    wanted = torch.where(missing.unsqueeze(-1), to_pixels(made.pictures, SMALL.mean, SMALL.std), given["pixels"])
    assert close(got, wanted)


def test_starting_values_that_look_at_neighbours_leave_the_mask_alone() -> None:
    torch.manual_seed(0)
    model = DiffMAE(
        DiffMAEConfig(image_size=(48, 48), patch_size=4, width=128, depth=1, heads=4, decoder_width=128, decoder_depth=1, decoder_heads=4)
    )
    with_mask = DiffMAE(replace(model.config, **BOTH))
    for network in (model, with_mask):
        torch.manual_seed(0)
        look_around(network)
    mine = with_mask.patch_embed.get_parameter("proj.weight")
    assert torch.equal(mine[:, :3], model.patch_embed.get_parameter("proj.weight")) and not mine[:, 3].any()


@pytest.mark.parametrize(
    ("config", "changes", "said"),
    [
        (CLIP, {"mask_channel": True}, "only networks of images"),
        (CLIP, {"head_width": 4}, "only networks of images"),
        (SMALL, {"head_width": 4, "target": Target.EPS}, "the target is x0"),
        (SMALL, {"head_width": 4, "normalise_patches": True}, "patches are not normalised"),
        (SMALL, {"head_width": -1}, "head_width: -1"),
    ],
)
def test_configs_that_make_no_sense_are_refused(config: DiffMAEConfig, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(config, **changes)


def test_a_step_with_such_a_head_is_no_graph() -> None:
    with pytest.raises(ExportError, match="head_width"):
        denoising_step(build(head_width=4))
