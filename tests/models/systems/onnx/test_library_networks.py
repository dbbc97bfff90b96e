"""Classifiers of timm and transformers answer here as they do in their libraries, each prepared by its own library there."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from benchmarks import reference
from tests.support.live_service import running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PICTURES = 10
MAX_DIFFERENCE = 1e-3
"""Largest difference of a logit."""
TIMM = ("resnet18", "resnet50", "mobilenetv3_large_100", "efficientnet_b0", "convnext_atto", "vit_tiny_patch16_224")
TRANSFORMERS = "transformers-vit"
SPREAD = 2.0
"""Standard deviation of the logits. Those of fresh weights are so alike that a wrong answer would pass for a right one."""
LABELS = 1000

Prepare = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Original:
    """A network in its own library."""

    name: str
    network: nn.Module
    prepare: Prepare
    """Image → (3, S, S), by the library."""
    library_files: dict[str, dict[str, Any]]
    """Files of JSON that the library saves with a network, by their names."""

    def logits(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Run the network on each image alone: (images, classes)."""
        with torch.inference_mode():
            return np.concatenate([answer(self.network, self.prepare(image)[None]).numpy() for image in images])


def answer(network: nn.Module, pixels: Tensor) -> Tensor:
    found = network(pixels)
    logits: Tensor = getattr(found, "logits", found)
    return logits


def original(name: str, images: Sequence[Image.Image]) -> Original:
    """Return a network whose outputs differ from image to image."""
    torch.manual_seed(0)
    made = _transformers_vit() if name == TRANSFORMERS else _timm(name)
    _enliven(made.network, torch.stack([made.prepare(image) for image in images]))
    return made


def _timm(name: str) -> Original:
    import timm
    from timm.data import create_transform, resolve_data_config

    network = timm.create_model(name)
    config = dict(network.pretrained_cfg)
    transform = create_transform(**resolve_data_config(config))
    content = {"architecture": name, "num_classes": config["num_classes"], "pretrained_cfg": config}
    return Original(name, network, transform, {"config.json": content})


def _transformers_vit() -> Original:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    sizes = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
    network = ViTForImageClassification(ViTConfig(**sizes, num_labels=LABELS))
    processor = ViTImageProcessorPil()

    def prepare(image: Image.Image) -> Tensor:
        pixels: Tensor = processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels

    saved = {"config.json": network.config, "preprocessor_config.json": processor}
    return Original(TRANSFORMERS, network, prepare, {file: json.loads(part.to_json_string()) for file, part in saved.items()})


def _enliven(network: nn.Module, pixels: Tensor) -> None:
    """Set scales and biases that start at 0 or 1, statistics of batches and the size of the logits. pixels: (images, 3, S, S)."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5) if name.endswith(("weight", "gamma")) else parameter.normal_(std=0.1)
        network.eval()
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # the mean of all batches
            norm.train()
        for _ in range(3 if norms else 0):  # each layer's statistics settle after those before it
            answer(network, pixels)
        network.eval()
        head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        logits = answer(network, pixels)
        centred = logits - logits.mean(dim=0)  # what differs from image to image
        head.weight.mul_(SPREAD / centred.std())
        head.bias.sub_(answer(network, pixels).mean(dim=0))


def export(made: Original, folder: Path) -> Path:
    """Write `model.onnx`, for any batch, and the library's files into a folder of the network's name."""
    network_folder = folder / made.name
    network_folder.mkdir(parents=True, exist_ok=True)
    for file, content in made.library_files.items():
        (network_folder / file).write_text(json.dumps(content))
    example = torch.zeros(2, *made.prepare(Image.new("RGB", (300, 300))).shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            made.network,
            (example,),
            network_folder / "model.onnx",
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
    return network_folder / "model.onnx"


@dataclass(frozen=True)
class Network:
    name: str
    bundles: Path
    """A folder of this bundle alone."""
    logits: NDArray[np.float32]
    """The original's: (pictures, classes)."""


def prepare(name: str, folder: Path, pictures: Sequence[Image.Image]) -> Network:
    """Export the network and import the file, as a user would."""
    made, bundles = original(name, pictures), folder / "bundles"
    graph = export(made, folder / "exported")
    command = [sys.executable, "-m", "opsin", "import", graph, "-o", bundles / name, "--license", "CC0-1.0"]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return Network(name, bundles, made.logits(pictures))


def largest_difference(url: str, network: Network, pictures: Sequence[bytes]) -> float:
    """Return the largest difference between served logits and the original's, up to a number that all logits of an image share."""
    found = []
    for picture in pictures:
        query = {"model": network.name, "top_k": network.logits.shape[1]}
        answer = httpx2.post(f"{url}/v1/classify", params=query, content=picture, timeout=60).raise_for_status().json()
        [result] = answer["results"]
        scores = {prediction["index"]: prediction["score"] for prediction in result["predictions"]}
        found.append(np.log([scores[index] for index in range(len(scores))]))
    return float(np.abs(centre(np.array(found)) - centre(network.logits)).max())


def centre(logits: NDArray[Any]) -> NDArray[np.float64]:
    centred: NDArray[np.float64] = logits - logits.mean(axis=1, keepdims=True, dtype=np.float64)
    return centred


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    reference.write_pictures(folder, PICTURES)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("name", [*TIMM, TRANSFORMERS])
def test_logits_are_those_of_the_library(name: str, pictures: list[Path], tmp_path: Path) -> None:
    network = prepare(name, tmp_path, [Image.open(path).convert("RGB") for path in pictures])
    assert network.logits.std(axis=0).mean() > 1  # the images differ
    with running(network.bundles) as service:
        assert largest_difference(service.url, network, [path.read_bytes() for path in pictures]) <= MAX_DIFFERENCE
