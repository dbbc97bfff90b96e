"""The commands of docs/training.md: a folder of images becomes a bundle that can be served."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from models import bundle, loading
from models.bundle import Bundle
from tests.support.processes import opsin
from tests.training import tiny_recipe
from training.data.load_image import to_model_size

NETWORK = "image_size: 16, patch_size: 4, width: 32, depth: 2, heads: 2"
LADDER = "release.quality.ladder={min_throughput: 1.01, batch_size: 2, rounds: 3, rungs: [{name: r3, schedule: 3}]}"
FAST = "release.quality.ladder={min_throughput: 1.01, batch_size: 16, rounds: 3, rungs: [{name: r14, schedule: 14}]}"
"""A rung that leaves the starter's network 2 of 65 tokens: faster on any machine."""
SMALL = {
    "folder-finetune": [FAST, "phases.0.loop={epochs: 2, batch_size: 8}", "phases.0.schedule.warmup=0.5"],
    "folder": [
        LADDER,
        "preprocess.image_size=16",
        "preprocess.short_side=16",
        f"phases.0.model.config={{{NETWORK}, decoder_width: 8, decoder_depth: 1, decoder_heads: 2}}",
        f"phases.1.model={{architecture: vit, config: {{{NETWORK}, pool: mean}}}}",
        "phases.1.augment={crop_scale: [0.5, 1.0]}",
        "phases.1.objective={kind: supervised, merge: [0, 3]}",
        "phases.1.optimiser={lr: 0.01}",
        *(f"phases.{phase}.loop={{epochs: {epochs}, batch_size: 8}}" for phase, epochs in enumerate((2, 6))),
        *(f"phases.{phase}.schedule.warmup=0.5" for phase in range(2)),
    ],
}
"""Recipe → what makes it end in seconds."""
RUNGS = {"folder-finetune": "r14", "folder": "r3"}


def read_commands() -> list[list[str]]:
    """Return the commands of the section, as a shell would split them."""
    text = Path("docs/training.md").read_text(encoding="utf-8")
    section = text.split("## A folder of your own")[1].split("\n## ")[0]
    return [shlex.split(line) for line in re.findall(r"^opsin .*$", section, re.MULTILINE)]


def own_folder(folder: Path) -> None:
    """Images, with the recipes and the starter where the commands look for them."""
    tiny_recipe.draw(folder / "photos/train", 24)
    tiny_recipe.draw(folder / "photos/val", 6, seed=1)
    (folder / "training").symlink_to(Path("training").absolute())
    (folder / "bundles").mkdir()
    (folder / "bundles" / "flags").symlink_to(Path("bundles/flags").absolute())


def train(folder: Path, recipe: str, *changes: str) -> subprocess.CompletedProcess[str]:
    """Run the documented command of a recipe, shortened."""
    [command] = [words for words in read_commands() if f"training/recipes/{recipe}.yaml" in words and "--dry-run" not in words]
    done = opsin(*command[1:], *SMALL[recipe], *changes, folder=folder, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return done


class TrainedFolder(NamedTuple):
    folder: Path
    printed: str
    rung: str


@pytest.fixture(scope="module", params=SMALL)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrainedFolder:
    """The folder in which the documented command of a recipe ran, and what it printed."""
    folder = tmp_path_factory.mktemp("own")
    own_folder(folder)
    return TrainedFolder(folder, train(folder, request.param).stdout, RUNGS[request.param])


@pytest.fixture(scope="module")
def own_bundle(made: TrainedFolder) -> Bundle:
    return bundle.read(made.folder / "bundles/mine/1.0.0")


def test_the_bundle_classifies_images_that_it_has_not_seen(made: TrainedFolder, own_bundle: Bundle) -> None:
    model = loading.load(own_bundle)
    files = sorted((made.folder / "photos/val").rglob("*.png"))
    pixels = np.stack([to_model_size(Image.open(file).convert("RGB"), own_bundle.spec.image_preprocess) for file in files])
    predicted = model.forward({"pixels": pixels}, {})["logits"].argmax(axis=1)
    assert [own_bundle.spec.labels[label] for label in predicted] == [file.parent.name for file in files]


def test_the_card_and_the_spec_say_how_good_it_is(made: TrainedFolder, own_bundle: Bundle) -> None:
    assert own_bundle.spec.quality["test_accuracy"] == {"value": 1.0, "standard_error": 0.0, "n": 18}
    assert [rung.name for rung in own_bundle.spec.ladder] == [made.rung]
    card = (own_bundle.path / "README.md").read_text(encoding="utf-8")
    assert card in made.printed
    assert "top 5" not in card  # of three classes
    assert "labels an image with one of 3 classes" in card and "On 18 images that were not trained on" in card
    assert "<polyline" in (own_bundle.path / "training.svg").read_text(encoding="utf-8")


def test_the_other_documented_commands_work(made: TrainedFolder, own_bundle: Bundle) -> None:
    commands = [command for command in read_commands() if command[1] == "bundles"]
    assert commands
    for command in commands:
        done = opsin(*command[1:], folder=made.folder)
        assert done.returncode == 0, done.stderr
        assert "mine" in done.stdout


@pytest.mark.parametrize("made", ["folder-finetune"], indirect=True)
def test_a_training_says_that_its_bundle_merges(made: TrainedFolder, own_bundle: Bundle) -> None:
    assert own_bundle.spec.default_rung == "r14"
    assert "it merges tokens by default: rung r14" in made.printed and "release.merge=off" in made.printed
    plain = train(made.folder, "folder-finetune", "release.merge=off").stdout
    spec = bundle.read(made.folder / "bundles/mine/1.0.0").spec
    assert (spec.default_rung, [rung.name for rung in spec.ladder]) == (None, ["r14"])
    assert "Default rung: `off`" in plain and "it merges" not in plain
