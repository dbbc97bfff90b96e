"""The surface behind seen points: the loss pixel by pixel, which part learns, and how the rest of an MCC starts from it."""

from __future__ import annotations

import pytest
import torch

from models.systems.mcc.model import MCC
from tests.training.objectives.cases import BACK_CONFIG, MCC_CONFIG, make, uniform
from training.objectives.back_surface import BackSettings, BackSurfaceObjective
from training.objectives.mcc import MCCSettings
from training.objectives.protocols import ObjectiveContext


def behind(**settings: float) -> BackSurfaceObjective:
    torch.manual_seed(0)
    return BackSettings(**{"scale": 0.0, "flip": 0.0, **settings}).build(MCC(BACK_CONFIG), ObjectiveContext())  # type: ignore[arg-type]


def test_thickness_and_colours_count_where_a_point_was_seen() -> None:
    """The thickness at the start is 0.5 everywhere, and the far side has the colour of the near one."""
    _, batch = make("back")
    batch = batch | {"pixels": 0.5 * torch.ones(4, 3, 40, 40)}
    values = behind(near=0.1, colour=2.0)(batch)
    thick, coloured = [], []
    for sample in range(4):
        valid = batch["valid"][sample]
        offset = (batch["back"] - batch["points"])[sample][valid]
        error = (0.5 - torch.where(offset[:, 2] > 0, offset.norm(dim=1), 0.0)).abs()
        thick.append(torch.where(error < 0.1, error.square() / 0.2, error - 0.05).mean())
        coloured.append((batch["back_colours"][sample][valid] - 0.5).abs().mean())
    deep, colour = torch.stack(thick).mean(), torch.stack(coloured).mean()
    assert values["loss_thickness"].item() == pytest.approx(deep.item(), rel=1e-4)
    assert values["loss_colour"].item() == pytest.approx(colour.item(), rel=1e-4)
    assert values["loss"].item() == pytest.approx((deep + 2 * colour).item(), rel=1e-4)


def test_mirrored_scenes_are_mirrored_as_a_whole() -> None:
    _, batch = make("back")
    across = torch.tensor([-1.0, 1.0, 1.0])
    turned = {name: (value.flip(2) * across) for name, value in batch.items() if name in ("points", "back")}
    turned |= {"valid": batch["valid"].flip(2), "back_colours": batch["back_colours"].flip(2), "pixels": batch["pixels"].flip(3)}
    always, never = behind(flip=1.0), behind()
    for objective in (always, never):
        assert objective.model.back is not None
        objective.model.back.head.weight.data += 0.1
    torch.testing.assert_close(always(batch)["loss"], never(batch | turned)["loss"])


def test_one_part_learns_and_then_the_others() -> None:
    def learns(objective: torch.nn.Module) -> set[bool]:
        """Return whether the trained parameters are those of the back."""
        return {name.startswith("model.back.") for name, value in objective.named_parameters() if value.requires_grad}

    assert learns(behind()) == {True}
    assert learns(MCCSettings(degrees=0).build(MCC(BACK_CONFIG), ObjectiveContext())) == {False}


def test_a_few_steps_distinguish_a_slab_from_a_sheet() -> None:
    """Red things are thick and blue ones thin."""
    objective = behind()
    optimiser = torch.optim.AdamW([value for value in objective.parameters() if value.requires_grad], lr=0.02)
    red = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(4, 1, 1, 1)
    _, batch = make("back")
    points = batch["points"] * torch.tensor([1.0, 1.0, 0.1])
    colours = torch.cat([red, torch.zeros(4, 1, 1, 1), 1 - red], dim=1)
    batch |= {"pixels": colours.expand(4, 3, 40, 40), "back_colours": uniform(8, 8, 3)}
    batch |= {"points": points, "back": points + torch.tensor([0.0, 0.0, 1.0]) * (0.1 + 1.9 * red)}
    for _ in range(40):
        optimiser.zero_grad()
        objective(batch)["loss"].backward()
        optimiser.step()
    assert objective(batch)["error_thickness"] < 0.3 < behind()(batch)["error_thickness"]


def test_what_cannot_be_trained_is_named() -> None:
    with pytest.raises(ValueError, match=r"model.config.back: the objective back trains this part"):
        BackSettings().build(MCC(MCC_CONFIG), ObjectiveContext())
    with pytest.raises(ValueError, match=r"degrees: 180, where a network with model.config.back needs 0"):
        MCCSettings().build(MCC(BACK_CONFIG), ObjectiveContext())
