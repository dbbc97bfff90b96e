"""LART's losses token by token, and what its recipes leave frozen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.people.track_batch import TokenMask, TrackBatch
from models.systems.lart.model import LART
from tests.training.objectives.cases import LART_CONFIG, assert_same_gradients, draw, gradients, make
from training import random_draws
from training.objectives.lart import LARTObjective, LARTSettings
from training.recipe_settings import OptimiserSettings


def answers(objective: LARTObjective, batch: dict[str, Tensor]):  # type: ignore[no-untyped-def]
    tracks = TrackBatch(batch["pose"], batch["detected"], batch["joints"])
    noise = random_draws.uniform(draw(), (6, 3, 1), "mask")
    masked = torch.zeros_like(batch["detected"], dtype=torch.bool)
    for clip in range(4):
        tokens = batch["detected"][clip].flatten().nonzero().flatten().tolist()
        hidden = sorted(tokens, key=lambda token, clip=clip: float(noise[clip].flatten()[token]))[: int(0.4 * len(tokens))]
        masked[clip].view(-1)[hidden] = True
    return objective.model(tracks, TokenMask(masked, batch["detected"] != 0))


def labels_by_token(batch: dict[str, Tensor], minimum: int, limit: int) -> list[tuple[int, ...]]:
    """Return the detected tokens with labels: (clip, time, person)."""
    has_gt = batch["labelled"].squeeze(-1)
    chosen = (batch["detected"].squeeze(-1) == 1) & (has_gt >= minimum) & (has_gt <= limit)
    return [tuple(place) for place in chosen.nonzero().tolist()]


@pytest.mark.parametrize(("labels", "minimum", "limit"), [("all", 1, 2), ("people", 2, 2), ("network", 1, 1)])
def test_actions_are_learnt_of_seen_and_labelled_people(labels: str, minimum: int, limit: int) -> None:
    _, batch = make("lart")
    torch.manual_seed(0)
    objective = LARTObjective(LART(LART_CONFIG), LARTSettings.model_validate({"labels": labels})).eval()
    logits = answers(objective, batch).reading.actions
    losses = []
    for place in labels_by_token(batch, minimum, limit):
        for score, target in zip(logits[place].sigmoid(), batch["actions"][place], strict=True):
            losses.append(-(target * score.log() + (1 - target) * (1 - score).log()))
    expected = 10 * torch.stack(losses).mean()
    loss = objective(batch)["loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective), 2e-5)


def test_poses_places_and_kinetics_are_added_by_their_weights() -> None:
    objective, batch = make("lart")
    assert isinstance(objective, LARTObjective)
    answer, values = answers(objective, batch), objective(batch)
    seen = [tuple(place) for place in (batch["detected"].squeeze(-1) == 1).nonzero().tolist()]
    pose = sum((answer.reading.pose[place][:226] - batch["raw_pose"][place][:226]).square().sum() for place in seen) / (len(seen) + 1)
    location = sum((answer.reading.location[place] - batch["raw_pose"][place][226:]).square().sum() for place in seen) / (len(seen) + 1)
    scores = answer.kinetics.log_softmax(dim=-1)
    kinetics = -torch.stack([scores[clip, person, batch["kinetics"][clip, person]] for clip in range(4) for person in range(3)]).mean()
    assert values["loss_pose"].item() == pytest.approx(pose.item(), rel=1e-5)
    assert values["loss_location"].item() == pytest.approx(location.item(), rel=1e-5)
    assert values["loss_kinetics"].item() == pytest.approx(kinetics.item(), rel=1e-5)
    total = values["loss_actions"] + 0.5 * pose + location + 0.1 * kinetics
    assert values["loss"].item() == pytest.approx(total.item(), rel=1e-5)


def test_what_no_loss_reaches_is_frozen() -> None:
    objective = LARTObjective(LART(LART_CONFIG), LARTSettings())
    frozen = [name for name, parameter in objective.model.named_parameters() if not parameter.requires_grad]
    parts = ("conv_en", "conv_de", "kinetics", "class_token", "heads.regressor", "heads.location")
    assert {next(part for part in parts if name.startswith(part)) for name in frozen} == set(parts)


def test_a_clip_without_labels_teaches_nothing() -> None:
    objective, batch = make("lart_actions")
    values = objective(batch | {"labelled": torch.zeros_like(batch["labelled"])})
    assert values["loss"] == 0
    assert all((gradient == 0).all() for gradient in gradients(values["loss"], objective).values())


def test_all_decays_in_pretraining_and_fine_tuning_slows_first() -> None:
    objective = LARTObjective(LART(LART_CONFIG), LARTSettings(pose_weight=1, location_weight=1, kinetics_weight=1))
    [group] = objective.parameter_groups(OptimiserSettings(lr=1))
    parameters = {name: parameter for name, parameter in objective.model.named_parameters() if parameter.requires_grad}
    assert group["names"] == list(parameters) and (group["weight_decay"], group["lr_scale"]) == (0.05, 1.0)
    tuned = objective.parameter_groups(OptimiserSettings(lr=1, layer_decay=0.95))
    of = {name: group for group in tuned for name in group["names"]}
    assert sorted(name for group in tuned for name in group["names"]) == sorted(parameters)
    for name in ("mask_token", "class_token", "pos_embed", "pose_encoder.0.weight", "joint_encoder.0.bias"):
        assert of[name]["lr_scale"] == pytest.approx(0.95**2), name
    for name in ("blocks.0.attn.qkv.weight", "blocks.0.norm1.bias", "heads.actions.weight", "kinetics.0.weight"):
        assert of[name]["lr_scale"] == 1.0, name
    for name, parameter in parameters.items():
        assert of[name]["weight_decay"] == (0.0 if parameter.dim() == 1 else 0.05), name
