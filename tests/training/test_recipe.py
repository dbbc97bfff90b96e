from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training import tiny_recipe
from training import recipe
from training.errors import RecipeError
from training.shipped_files import locate

LIKE_FLIP = {"image_size": 16, "short_side": 16, "interpolation": "tf1-bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
SHIPPED = sorted(Path("training/recipes").rglob("*.yaml"))


def change(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def apply(content: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        place: Any = content
        for name in parents:
            place = place[int(name) if isinstance(place, list) else name]
        place[last] = value

    return apply


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_recipes_are_valid(file: Path) -> None:
    assert recipe.read(file).name


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (change("phases.1.loop.epoch", 3), "phases.1.loop.epoch: Extra inputs"),
        (change("phases.0.objective.kind", "gan"), "phases.0.objective.kind: 'gan' is unknown; known are mae, supervised, "),
        (change("phases.0.objective.ratio", 3), "phases.0.objective.ratio: Extra inputs"),
        (change("phases.0.optimiser.base_lr", 0.1), "phases.0.optimiser: give one of lr and base_lr"),
        (change("phases.1.start", "pretraining"), "phases.1.start: pretraining is neither an earlier phase (pretrain) nor a path"),
        (change("phases.0.initial", "whitened"), "phases.0.initial: whitened is for the objective proxies alone"),
        (change("phases.1.initial", "neighbours"), "phases.1.initial: neighbours would be overwritten by the weights of pretrain"),
        (change("phases.1.name", "pretrain"), "phases.1.name: pretrain is the name of an earlier phase too"),
        (change("model.architecture", "cnn"), "model: architecture 'cnn' is unknown; known are vit, mae"),
        (change("model.config.depht", 1), "model: depht: unknown; the fields are"),
        (change("model.size", "mae_tiny"), "model: size 'mae_tiny' of mae is unknown; known are mae_vit_base_patch16"),
        (change("model.config.patch_size", 0), "model: config: a number is 0 that divides another"),
        (change("data.kind", "tape"), "data.kind: 'tape' is unknown; known are folder, webdataset, "),
        (change("phases.1.objective.merge", [{"speed": 3}]), "a merge schedule is"),
        (change("preprocess.image_size", 8), "phases.0: preprocess.image_size 8 is not the model's image_size 16"),
        (change("preprocess", LIKE_FLIP), "only the service prepares pictures so"),
        (change("name", "Mine"), "name: 'Mine': use a-z, 0-9"),
        (change("version", "../1"), "version: '../1': use a-z, 0-9"),
        (change("release.phase", "third"), "release.phase: unknown phase third; the phases are"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_recipe_is_refused_with_file_field_and_reason(
    tmp_path: Path, mistake: Callable[[dict[str, Any]], None], message: str
) -> None:
    content = tiny_recipe.recipe(tmp_path) | {"release": {"task": "classify"}}
    mistake(content)
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError) as refused:
        recipe.read(file)
    assert str(file) in str(refused.value)
    assert message in str(refused.value)


def test_a_recipe_that_is_not_there_or_not_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read") as missing:
        recipe.read(tmp_path / "none.yaml")
    named = str(missing.value).partition("training/recipes/NAME.yaml, where NAME is one of: ")[2].split(", ")
    assert len(named) > 20 and all(locate(Path(f"training/recipes/{name}.yaml")).is_file() for name in named)
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(RecipeError, match="not YAML"):
        recipe.read(tmp_path / "broken.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: Grün".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin\.yaml: not YAML"):
        recipe.read(tmp_path / "latin.yaml")
    (tmp_path / "endless.yaml").write_text("data: &data {parts: [*data]}")
    with pytest.raises(RecipeError, match=r"endless\.yaml: not YAML"):
        recipe.read(tmp_path / "endless.yaml", ["seed=1"])


def test_shipped_files_are_found_anywhere_unless_shadowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("training/recipes/folder.yaml")
    assert recipe.read(folder).name == "mine"
    assert locate(Path("bundles/flags/1.0.0")).is_dir()
    folder.parent.mkdir(parents=True)
    folder.write_text("name: mine\n")
    with pytest.raises(RecipeError, match=re.escape(f"{folder}: ")):
        recipe.read(folder)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_recipe_is_read_from_any_folder(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = recipe.read(file)
    monkeypatch.chdir(tmp_path)
    without_paths = {"phases": {"__all__": {"data"}}}
    assert recipe.read(file).model_dump(include={"phases"}, exclude=without_paths) == before.model_dump(
        include={"phases"}, exclude=without_paths
    )


@pytest.fixture
def tiny_recipe_file(tmp_path: Path) -> Path:
    return tiny_recipe.write(tiny_recipe.recipe(tmp_path), tmp_path / "tiny.yaml")


def test_single_fields_are_overridden_by_their_dotted_names(tiny_recipe_file: Path) -> None:
    changed = recipe.read(tiny_recipe_file, ["phases.0.loop.batch_size=8", "phases.0.optimiser.betas=[0.8, 0.9]", "name=other"])
    assert (changed.phases[0].loop.batch_size, changed.phases[0].optimiser.betas, changed.name) == (8, (0.8, 0.9), "other")
    assert changed.phases[1] == recipe.read(tiny_recipe_file).phases[1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phases.0.loop.batch_size", "overrides have the form FIELD=VALUE"),
        ("phases.7.loop.batch_size=8", "the recipe has no phases.7"),
        ("phases.0.loop.batch=8", "phases.0.loop.batch: Extra inputs"),
        ("name.first=8", "the recipe has no"),
        ("augment={crop_scale: [-1, 1]}", "augment.crop_scale.0: Input should be greater than 0"),
        ("augment={rand_augment: abc}", "augment.rand_augment: 'abc' is not in timm's notation"),
        ("phases.0.loop.epochs=1e+308", "phases.0.loop.epochs: Input should be less than"),
        ("phases.0.loop=[1", "the value is not YAML"),
        ("name=2026-13-45", "the value is not YAML"),
        ("phases.0.optimiser.betas=[0.9, 1.5]", "phases.0.optimiser.betas.1: Input should be less than 1"),
    ],
)
def test_a_wrong_override_is_refused(tiny_recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        recipe.read(tiny_recipe_file, [override])
