"""Small ViT and null-model bundles, always the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from models.bundle import Bundle, BundleSpec, write
from models.bundle_schema import Clip, FileDigest, Preprocess, Rung
from models.loading import LoadedModel, LoadedStepwiseModel, load
from models.systems.diffmae.model import DiffMAE, DiffMAEConfig
from models.systems.vit.model import ViT, ViTConfig
from server.worker.executors import Arrays
from tests.support.images import decode, picture

UNSEALED = FileDigest(sha256="0" * 64, bytes=0)
"""`write` fills in the real ones."""
TINY = ViTConfig(image_size=32, patch_size=8, classes=10, width=32, depth=2, heads=2)


def write_tiny_vit(root: Path, name: str = "tiny", version: str = "1") -> Bundle:
    """Write a ViT with random weights whose answers differ from image to image: 10 classes, 32 x 32 pixels, 17 tokens."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViT(TINY)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    ladder = [Rung(name="full", schedule=0), Rung(name="fast", schedule=4)]
    config = dataclasses.asdict(TINY)
    return _write(root, name, version, "vit", config, TINY.image_size, TINY.classes, model.state_dict(), ladder=ladder)


def write_tiny_encoder(root: Path, name: str = "encoder", version: str = "1", *, seed: int = 0, overwrite: bool = False) -> Bundle:
    """Write the same ViT without a head: vectors of 32 numbers."""
    config = dataclasses.replace(TINY, classes=0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ViT(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    spec = BundleSpec(
        name=name,
        version=version,
        task="embed",
        architecture="vit",
        config=dataclasses.asdict(config),
        preprocess=Preprocess(image_size=TINY.image_size, short_side=TINY.image_size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        license="CC0-1.0",
        ladder=[Rung(name="fast", schedule=4)],
        weights=UNSEALED,
    )
    return seal(root, spec, model.state_dict(), overwrite=overwrite)


def write_null(
    root: Path, name: str = "null", version: str = "1", milliseconds: float = 5.0, architecture: str = "null", **extra: Any
) -> Bundle:
    """Write a model that computes nothing and takes `milliseconds` per batch. extra: fields of its config, such as `steps`."""
    config = {"milliseconds": milliseconds, "classes": 10, "tokens": 197, **extra}
    return _write(root, name, version, architecture, config, 32, 10, {})


def write_unserved(root: Path, name: str = "sketcher", version: str = "1") -> Bundle:
    """Write a bundle of a task that no version serves."""
    preprocess = Preprocess(image_size=16, short_side=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    spec = BundleSpec(
        name=name,
        version=version,
        task="depth",
        architecture="mae",
        config={},
        preprocess=preprocess,
        license="CC0-1.0",
        weights=UNSEALED,
    )
    return seal(root, spec, {})


def write_tiny_diffmae(root: Path, name: str = "painter", version: str = "1", clip: Clip | None = None, **changes: Any) -> Bundle:
    """Write a DiffMAE with random weights that fills 16 x 16 pixels in patches of 4: its output depends on everything. changes: of its
    config."""
    small = DiffMAEConfig(image_size=(16, 16), patch_size=4, width=24, depth=2, heads=2, time_width=8)
    config = dataclasses.replace(small, decoder_width=16, decoder_depth=2, decoder_heads=2, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DiffMAE(config)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    spec = BundleSpec(
        name=name,
        version=version,
        task="inpaint",
        architecture="diffmae",
        config=dataclasses.asdict(config),
        preprocess=Preprocess(image_size=16, short_side=16, mean=config.mean, std=config.std),
        clip=clip,
        license="CC0-1.0",
        weights=UNSEALED,
    )
    return seal(root, spec, model.state_dict())


def expected_scores(bundle: Bundle, seeds: range) -> np.ndarray:
    """Return softmax scores (len(seeds), classes) of a tiny ViT for the images of these seeds, computed off-line in float32."""
    pixels = np.stack([decode(picture(seed)) for seed in seeds])
    logits = load(bundle).forward({"pixels": pixels}, {"merge": [0, 0]})["logits"]
    return torch.from_numpy(logits).softmax(-1).numpy()


def _write(
    root: Path,
    name: str,
    version: str,
    architecture: str,
    config: dict[str, Any],
    size: int,
    classes: int,
    weights: dict[str, torch.Tensor],
    **extra: Any,
) -> Bundle:
    spec = BundleSpec(
        name=name,
        version=version,
        task="classify",
        architecture=architecture,
        config=config,
        preprocess=Preprocess(image_size=size, short_side=size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        labels=[f"class {index}" for index in range(classes)],
        license="CC0-1.0",
        weights=UNSEALED,
        **extra,
    )
    return seal(root, spec, weights)


def seal(root: Path, spec: BundleSpec, weights: dict[str, torch.Tensor], *, overwrite: bool = False) -> Bundle:
    with TemporaryDirectory() as folder:
        file = Path(folder, "model.safetensors")
        save_file(weights, file)
        return write(root, spec, file, overwrite=overwrite)


STEPS = (2, 5, 9)


def write_toy(root: Path, name: str = "toy", milliseconds: float = 0.0, steps: tuple[int, ...] = STEPS, width: int = 8) -> Bundle:
    return write_null(root, name, milliseconds=milliseconds, steps=steps, width=width)


def pixels(number: int, choice: int) -> np.ndarray:
    """Draw (32, 32, 3) uint8, different for each number; `choice` is the index of its number of steps."""
    made = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
    made[0, 0, 0] = choice
    return made


def steps_of(bundle: Bundle) -> LoadedStepwiseModel:
    steps = load(bundle).steps
    assert steps is not None
    return steps


def answer_alone(model: LoadedModel | LoadedStepwiseModel, picture: np.ndarray, seed: int = 0) -> Arrays:
    """Return the answer of a job that takes all its steps by itself."""
    steps = model.steps if isinstance(model, LoadedModel) else model
    assert isinstance(steps, LoadedStepwiseModel)
    [state] = steps.start([{"pixels": picture}], [{"seed": seed}])
    while True:
        [outcome] = steps.step([state], [False])
        if hasattr(outcome, "outputs"):
            return dict(outcome.outputs)
        state = outcome.state
