"""DiffMAE: noise schedules and samplers' tables, one training step, and whole sampling runs, single and in one padded batch."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.checkpoints.checkpoint_file import read_checkpoint
from models.layers.masked_encoder import gather_tokens
from models.layers.patches import patch_statistics
from models.registry import read_config
from models.systems.diffmae.checkpoint import CONFIG_KEYS, FAMILY, fields_of, schedule_fields_of
from models.systems.diffmae.diffusion import DiffusionSampler, NoiseSchedule, SamplerMethod, TimestepSpacing
from models.systems.diffmae.masks import PatchSplit
from models.systems.diffmae.model import DiffMAE, DiffMAEConfig, PredictionTarget
from models.systems.diffmae.sampling import InpaintOutput, PatchStatistics, inpaint
from tests.golden.case import Case, Replay

SAMPLER_OPTIONS = frozenset({"method", "eta", "variance", "clip", "spacing"})
METHODS = {"ddpm": SamplerMethod.ANCESTRAL, "ddim": SamplerMethod.DDIM, "onestep": SamplerMethod.ONE_STEP}
"""Sampler methods by their names in a case."""


def replay(case: Case) -> Replay:
    if "embed_dim" not in case.config:
        replayed = _schedules(case)
    else:
        replayed = _sampling(case) if "runs" in case.recorded else _training(case)
    replayed.recorded = dict(case.recorded)  # `mask_ratio`, `runs` and whatever else stands there are no expectations
    return replayed


def load(case: Case) -> DiffMAE:
    settings = {key: value for key, value in case.config.items() if key in CONFIG_KEYS}  # a case may record more than its model needs
    model = DiffMAE(read_config(DiffMAEConfig, fields_of(settings)))
    model.load_state_dict(FAMILY.table.translate(read_checkpoint(case.checkpoint)).weights)
    return model.eval()


def _schedules(case: Case) -> Replay:
    outputs: dict[str, Tensor] = {}
    schedules: dict[str, NoiseSchedule] = {
        name: read_config(NoiseSchedule, schedule_fields_of(fields)) for name, fields in case.config.items()
    }
    for name, schedule in schedules.items():
        outputs |= {f"{name}.betas": schedule.betas(), f"{name}.alphas_bar": schedule.alphas_bar()}
        if f"{name}.x_t" in case.outputs:
            outputs[f"{name}.x_t"] = schedule.add_noise(case.inputs["x0"], case.inputs["t"], case.inputs["eps"])
        for table in {match[1] for output in case.outputs if (match := re.match(rf"{re.escape(name)}\.(full|K\d+)\.", output))}:
            steps = schedule.steps if table == "full" else int(table[1:])
            outputs |= {f"{name}.{table}.{key}": value for key, value in sampler_tables(schedule, steps).items()}
    for output in case.outputs:
        if match := re.fullmatch(r"timesteps_K(\d+)", output):  # of no schedule in particular, since all have as many times
            outputs[output] = TimestepSpacing.UNIFORM.times(next(iter(schedules.values())), int(match[1]))
    return Replay({name: outputs[name] for name in case.outputs if name in outputs})


def sampler_tables(schedule: NoiseSchedule, count: int) -> dict[str, Tensor]:
    """Return the tables of ancestral sampling with posterior variance."""
    steps = DiffusionSampler(SamplerMethod.ANCESTRAL, count).reverse(schedule)
    alphas_bar = schedule.alphas_bar()[steps.time]
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_bar[:-1]])
    return {
        "timesteps": steps.time,
        "ab": steps.signal.square(),
        "ab_prev": before,
        "beta": 1 - alphas_bar / before,
        "coef_x0": steps.from_x0,
        "coef_xt": steps.from_xt,
        "post_var": steps.sigma.square(),
    }


def _training(case: Case) -> Replay:
    model, inputs = load(case), case.inputs
    split = _recorded_split(case)
    differentiated = [name.removeprefix("grad.") for name in case.outputs if name.startswith("grad.")]
    parameters = [model.get_parameter(name).requires_grad_() for name in differentiated]
    with torch.enable_grad():
        answer = model(inputs["image"], split, inputs["t"], inputs["eps"], inputs.get("clip_target"))
        gradients = torch.autograd.grad(answer.loss, parameters)
    outputs = {
        "pred": answer.prediction.patches,
        "loss": answer.loss,
        "loss_pixel": answer.loss_pixel,
        **{f"grad.{name}": gradient for name, gradient in zip(differentiated, gradients, strict=True)},
    }
    if answer.loss_clip is not None and answer.prediction.clip is not None:
        outputs |= {"pred_clip": answer.prediction.clip, "loss_clip": answer.loss_clip}
    features = model.features(inputs["image"], split)
    x_t = model.config.schedule.add_noise(model.targets(inputs["image"], split), inputs["t"], inputs["eps"])
    return Replay(outputs, {"x_t": x_t, "features_first": features[0].x, "features_last": features[-1].x})


def _recorded_split(case: Case) -> PatchSplit:
    """Split by noise, which must lead to the recorded positions, or by these alone."""
    inputs = case.inputs
    if "mask_noise" not in inputs:
        return PatchSplit(inputs["ids_keep"].long(), inputs["ids_mask"].long())
    split = PatchSplit.from_noise(inputs["mask_noise"], case.recorded.get("mask_ratio", 0.75))
    for name, positions in {"ids_keep": split.visible, "ids_mask": split.masked}.items():
        assert name not in inputs or positions.tolist() == inputs[name].tolist(), f"{name} are others than those of mask_noise"
    return split


def _sampling(case: Case) -> Replay:
    requests = sorted(name.removesuffix(".ids_mask") for name in case.inputs if name.endswith(".ids_mask"))
    replayed = Replay()
    model = load(case)
    if model.config.target is PredictionTarget.EPS:
        model = model.double()  # predicted noise is divided by 4e-6 at the last time, which no single precision survives
    for run, described in case.recorded["runs"].items():
        sampler = read_sampler(described, model.config.schedule)
        for request in requests:
            single, first = _fill(model, case, [request], sampler)
            replayed.outputs[f"{request}.{run}.patches"] = single.patches
            replayed.outputs[f"{request}.{run}.composite"] = single.pictures
            if first is not None:
                replayed.intermediates[f"{request}.{run}.x0_first"] = first
        batched, _ = _fill(model, case, requests, sampler)
        pictures: tuple[Tensor, ...] = torch.split(batched.pictures, [len(case.inputs[f"{request}.image"]) for request in requests])
        for request, picture in zip(requests, pictures, strict=True):
            _expect_close(case, f"{request}.{run}.composite", picture, replayed)
    return replayed


def read_sampler(described: dict[str, Any], schedule: NoiseSchedule) -> DiffusionSampler:
    """K: all times by default."""
    method = METHODS[described["method"]]
    steps = 1 if method is SamplerMethod.ONE_STEP else described.get("K", schedule.steps)
    options = {key: value for key, value in described.items() if key in SAMPLER_OPTIONS} | {"method": method}
    return read_config(DiffusionSampler, {"steps": steps, **options})  # type: ignore[no-any-return]


def _fill(model: DiffMAE, case: Case, requests: list[str], sampler: DiffusionSampler) -> tuple[InpaintOutput, Tensor | None]:
    """Fill several requests in one padded batch. Return the clean patches of the first step, too, of which there are none if nothing is
    masked."""
    inputs = case.inputs
    places = [inputs[f"{request}.ids_mask"].long() for request in requests]  # (B, M) each
    masks = [torch.zeros(len(ids), model.config.patches, dtype=torch.bool).scatter(1, ids, value=True) for ids in places]
    split = PatchSplit.from_mask(torch.cat(masks))
    images = torch.cat([inputs[f"{request}.image"] for request in requests]).to(model.pos_embed.dtype)
    max_masked = split.masked.shape[1]

    def draw(step: int) -> Tensor:
        values = [inputs[f"{request}.noise_T"] if step < 0 else inputs[f"{request}.step_noise"][step] for request in requests]
        return torch.cat([F.pad(value, (0, 0, 0, max_masked - value.shape[1])) for value in values]).to(images.dtype)

    firsts: list[Tensor] = []
    statistics = (
        PatchStatistics(*patch_statistics(gather_tokens(model.patchify(images), split.masked))) if model.config.normalise_patches else None
    )
    filled = inpaint(model, images, split, sampler, draw, statistics=statistics, watch=lambda step, x0: firsts.append(x0))
    return filled, firsts[0] if firsts else None


def _expect_close(case: Case, name: str, batched: Tensor, replayed: Replay) -> None:
    """Require that the result in a padded batch is the recorded one, too; if it is not, report it."""
    tolerance = case.tolerance_of(name)
    recorded = case.outputs.get(name, replayed.outputs[name])
    if not torch.allclose(batched.double(), recorded.double(), rtol=tolerance.rtol, atol=tolerance.atol):
        replayed.outputs[name] = batched
