from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from training import recipe
from training.recipe import RecipeError

LIKE_FLIP = {"image_size": 16, "short_side": 16, "interpolation": "tf1-bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
SHIPPED = sorted(Path("training/recipes").glob("*.yaml"))


def change(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def apply(content: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for name in parents:
            content = content[name]
        content[last] = value

    return apply


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_shipped_recipes_are_valid(file: Path) -> None:
    assert recipe.read(file).name


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (change("finetune.epoch", 3), "finetune.epoch"),
        (change("data.held_out", "none"), "none is none of the artworks"),
        (change("data.labels.BB", "AAland"), "two have the same name"),
        (change("data.left_out.AA", "forgotten"), "AA: labels have these codes"),
        (change("data.clip_art.pictures.stray", "XX"), "XX: no label has this code"),
        (change("finetune.merge", [{"speed": 3}]), "a merge schedule is"),
        (change("preprocess.image_size", 8), "preprocess.image_size 8 is not model.image_size 16"),
        (change("preprocess", LIKE_FLIP), "only the service prepares pictures so"),
        (change("pretrain.mask_ratio", 1.5), "pretrain.mask_ratio"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_recipe_is_refused_with_file_field_and_reason(
    tiny_recipe: dict[str, Any], tmp_path: Path, mistake: Callable[[dict[str, Any]], None], said: str
) -> None:
    content = copy.deepcopy(tiny_recipe)
    mistake(content)
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError) as refused:
        recipe.read(file)
    assert str(file) in str(refused.value)
    assert said in str(refused.value)


def test_a_recipe_that_is_not_there_or_not_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        recipe.read(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(RecipeError, match="not YAML"):
        recipe.read(tmp_path / "broken.yaml")
