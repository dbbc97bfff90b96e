"""One folder and one line in the registry make a system that imports, loads, answers, exports and is listed."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models import registry
from models.checkpoints import families, import_checkpoint, read_checkpoint
from models.checkpoints.export_bundle import export_bundle
from models.flops import forward_cost
from models.loading import load
from models.registry import architectures, resolve, sizes, systems
from tests.support.bundles.vit import seal

MODEL = """
from dataclasses import dataclass
import torch
from torch import nn
from models.layers.forward import normalise, classification_arrays

@dataclass(frozen=True)
class ToyConfig:
    image_size: int = 8
    classes: int = 3

SIZES = {"toy_small": ToyConfig(), "toy_large": ToyConfig(image_size=32)}

class Toy(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.head = nn.Linear(3 * config.image_size**2, config.classes)

    def forward(self, images):
        return self.head(images.flatten(1))

def classify(model, arrays, options, preprocess):
    return classification_arrays(model(normalise(arrays["pixels"], preprocess, torch.float32)), 1, 1)
"""

PUBLISHED = """
from models.checkpoints.family import Family, shape_of, squeeze
from models.checkpoints.family import KeyTable

def config(weights, settings):
    classes, pixels = shape_of(weights, "head.weight", 2)
    return {"classes": classes, "image_size": round((pixels / 3) ** 0.5)}

FAMILY = Family(name="toys", architecture="toy", table=KeyTable({"toy.out.*": "head.*"}), config=config, preprocess=squeeze, head_fields=())
"""

SYSTEM = """
from models.registry import Architecture, BundleDefaults, DummyForward, SizeTable, System

SYSTEM = System(
    architectures=(
        Architecture(
            name="toy",
            model="toy.model:Toy",
            bundle_defaults=BundleDefaults(lambda config: "classify", classes=lambda config: config.classes),
            dummy_forward=DummyForward("image", lambda config: 1, "models.layers.forward:images"),
            forwards={"classify": "toy.model:classify"},
            merges=False,
        ),
    ),
    sizes=(SizeTable("Toy", "toy", "no paper", "toy.model:SIZES"),),
    families={"toys": "toy.published:FAMILY"},
)
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "toy"
    folder.mkdir()
    for name, text in {"__init__": "", "model": MODEL, "published": PUBLISHED, "system": SYSTEM}.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "SYSTEMS", (*registry.SYSTEMS, "toy.system"))


@pytest.mark.usefixtures("toy")
def test_a_folder_and_a_line_are_a_system(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save({"toy.out.weight": torch.randn(3, 192), "toy.out.bias": torch.randn(3)}, tmp_path / "toy.pth")
    spec, weights = import_checkpoint(
        tmp_path / "toy.pth", family=None, labels=["a", "b", "c"], overrides={}, name="toy", version="1", license="CC0-1.0"
    )
    assert (spec.architecture, spec.task, spec.provenance["family"], spec.merges) == ("toy", "classify", "toys", False)
    written = seal(tmp_path / "bundles", spec, weights)

    outputs = load(written).forward({"pixels": np.zeros((2, 8, 8, 3), np.uint8)}, {})
    assert outputs["logits"].shape == (2, 3)
    assert outputs["logits"].any()

    export_bundle(written, tmp_path / "again.pth")
    again = read_checkpoint(tmp_path / "again.pth")
    assert torch.equal(again["toy.out.weight"], load_file(written.weights_path)["head.weight"])

    assert {name: size.system for name, size in sizes().items() if size.architecture == "toy"} == {"toy_small": "Toy", "toy_large": "Toy"}
    assert forward_cost("toy", sizes()["toy_large"].config).flops == 2 * 3 * 3 * 32**2


def test_every_entry_names_code_that_is_there() -> None:
    for system in systems():
        for architecture in system.architectures:
            assert architecture.config.__name__ == f"{resolve(architecture.model).__name__}Config"
            assert all(callable(resolve(code)) for code in (*architecture.forwards.values(), *architecture.steps.values()))
            assert architecture.dummy_forward is None or callable(resolve(architecture.dummy_forward.call))
        assert all(table.architecture in architectures() for table in system.sizes)
    assert {name: family.name for name, family in families().items()} == {name: name for name in registry.family_names()}
    assert {family.architecture for family in families().values()} <= architectures().keys()


def test_vectors_are_float32_for_every_architecture() -> None:
    tasks = {"embed", "autoencode", "zero-shot"}
    for name, architecture in architectures().items():
        is_encoder = name in VECTORS or name == "onnx"
        assert tasks & architecture.forwards.keys() == (tasks & architecture.precise_tasks if is_encoder else set())
        assert bool(architecture.pools({})) == (name in VECTORS)
        assert architecture.precise_tasks <= {*architecture.forwards, *architecture.steps} - {"classify"}
        assert architecture.steps.keys() - {"classify"} <= architecture.precise_tasks


def test_no_name_is_registered_twice() -> None:
    names = [architecture.name for system in systems() for architecture in system.architectures]
    tables = [name for system in systems() for table in system.sizes for name in resolve(table.configs)]
    assert len(names) == len(set(names)) and len(tables) == len(set(tables))
    assert len(registry.family_names()) == len(set(registry.family_names()))


def test_every_folder_with_an_entry_is_listed() -> None:
    folders = Path(import_module("models.systems").__path__[0])
    assert {f"models.systems.{entry.parent.name}.system" for entry in folders.glob("*/system.py")} == set(registry.SYSTEMS)


VECTORS = {"vit", "mae", "maws_clip", "flip", "cit", "clip", "siglip"}
"""Architectures that turn images into vectors."""

ENTRIES = """
import sys
from models.bundle import BundleSpec
from models.registry import architectures, family_names
assert len(architectures()) > 10 and len(family_names()) > 20
assert len([entry for entry in architectures().values() if entry.pools({}) and entry.token_vectors({"tower": "swag"})]) == 6
print([name for name in sys.modules if name == "torch" or name.startswith("kernels") or name.endswith(".model")])
"""


def test_reading_all_entries_imports_no_model_and_no_torch() -> None:
    """A gateway asks them whether a bundle's tokens merge and how vectors are pooled; a worker imports the models of its own bundles."""
    run = subprocess.run([sys.executable, "-c", ENTRIES], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


ONE_BUNDLE = """
import sys
from models.loading import load
from models.registry import architectures
architectures()["vit"].build(architectures()["vit"].config(image_size=16, width=8, depth=1, heads=1))
ends = (".model", ".checkpoint", ".tracker", ".text_encoder")
print(sorted(name for name in sys.modules if name.startswith("models.") and name.endswith(ends)))
"""


def test_a_worker_of_one_bundle_imports_the_code_of_one_system() -> None:
    run = subprocess.run([sys.executable, "-c", ONE_BUNDLE], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['models.systems.vit.model']"
