from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from models.bundle import Bundle
from models.bundle_schema import Preprocess
from models.checkpoints import import_checkpoint
from tests.support import vocabularies
from tests.support.bundles.vit import seal

Pixels = NDArray[np.uint8]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Randomise the weights so that each one counts, the same in each run: fresh ones are zeros and ones in biases, norms and scales."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "logit_scale" not in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * 0.15 if parameter.dim() > 1 else parameter * 0.5 + noise * 0.2)
    return model.eval()


def save(model: nn.Module, folder: Path, processor: Any = None, **options: Any) -> Path:
    """Save a model. processor: an image processor of the library, or the content of its file."""
    model.save_pretrained(folder, **options)
    if isinstance(processor, dict):
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    elif processor is not None:
        processor.save_pretrained(folder)
    return folder


def change(file: Path, **fields: Any) -> None:
    """Change fields of a file of JSON; None removes one."""
    content = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def import_folder(folder: Path, **overrides: str) -> Bundle:
    spec, weights = import_checkpoint(folder, family=None, labels=None, overrides=overrides, name="test", version="1", license=None)
    root = folder.parent / f"{folder.name}-bundles"
    root.mkdir()
    return seal(root, spec, weights)


def noise(count: int, *shape: int) -> Pixels:
    """Draw noise: (count, *shape, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, *shape, 3), dtype=np.uint8)


def normalise(pixels: Pixels, preprocess: Preprocess) -> Tensor:
    """Normalise (B, ..., H, W, 3) to (B, ..., 3, H, W) float32, as the library does."""
    mean, std = (torch.tensor(values) for values in (preprocess.mean, preprocess.std))
    return ((torch.from_numpy(pixels).float() / 255 - mean) / std).movedim(-1, -3).contiguous()


SENTENCES = ["a photo of a red car", "the dog sleeps", "dont stop its 2024", "ha ha haha", "unicode facade"] * 20
TOWER = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


@pytest.fixture(scope="package")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub has it."""
    folder = tmp_path_factory.mktemp("siglip")
    tokenizer = transformers.SiglipTokenizer(str(vocabularies.siglip(folder, 60, SENTENCES)))
    text = TOWER | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}
    config = transformers.SiglipConfig(text_config=text, vision_config=TOWER | {"image_size": 32, "patch_size": 8})
    images = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}
    model = randomise(transformers.SiglipModel(config))
    model.logit_scale.data.fill_(1.5)
    model.logit_bias.data.fill_(-2.5)
    return save(model, folder, images)


@pytest.fixture(scope="package")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub has it."""
    folder = tmp_path_factory.mktemp("clip")
    vocabularies.clip(folder)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    text = TOWER | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPConfig(text_config=text, vision_config=TOWER | {"image_size": 32, "patch_size": 8}, projection_dim=24)
    images = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    save(randomise(transformers.CLIPModel(config)), folder, images)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder
