"""Vectors of MAE's encoder, which sees every patch: against its masked forward pass with nothing masked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.layers.masked_encoder import Masking
from models.loading import LoadedModel
from models.registry import architectures
from models.systems.mae.model import MAE
from tests.golden.case import GOLDEN, read_case
from tests.golden.checks import are_units, cosines, load_case, pixels_of, random_pixels

CASE = read_case(GOLDEN / "mae/pretrain_pixel")
IMAGES = CASE.inputs["img"]
MERGE = (20, 0, 9)


@pytest.fixture
def model(tmp_path: Path) -> LoadedModel:
    return load_case(CASE, tmp_path, "mae_pretrained", {"heads": "6", "decoder_heads": "3"})


def encode_unmasked(model: LoadedModel) -> torch.Tensor:
    """Encode by the path that the recorded latents verify, in another order of patches: (B, 1 + 64, 48)."""
    assert isinstance(model.model, MAE)
    masking = Masking.from_noise(CASE.inputs["noise"], 64)
    encoded = model.model.encode_visible(IMAGES, masking.ids_keep)
    return torch.cat([encoded[:, :1], encoded[:, 1:].gather(1, masking.ids_restore.unsqueeze(-1).expand(-1, -1, 48))], dim=1)


def test_vectors_are_those_of_the_encoder_with_nothing_masked(model: LoadedModel) -> None:
    encoded = encode_unmasked(model)
    for pool, expected in {None: encoded[:, 0], "cls": encoded[:, 0], "mean": encoded[:, 1:].mean(dim=1)}.items():
        outputs = model.forward(pixels_of(IMAGES), {"pool": pool})
        assert are_units(outputs["embedding"])
        assert (cosines(outputs["embedding"], expected) >= 0.99999).all()
        assert outputs["tokens"].tolist() == [[65, 65]] * 2
    tokens = model.forward(pixels_of(IMAGES), {"output": "tokens"})
    assert are_units(tokens["vectors"])
    assert (cosines(tokens["vectors"], encoded[:, 1:]) >= 0.99999).all()
    assert tokens["owners"].tolist() == [list(range(64))] * 2


def test_merged_tokens_count_by_their_size_in_the_mean(model: LoadedModel) -> None:
    seen: list[torch.Tensor] = []
    model.model.get_submodule("norm").register_forward_hook(lambda module, inputs, output: seen.append(output))
    tokens = model.forward(pixels_of(IMAGES), {"output": "tokens", "merge": MERGE})
    sizes = torch.from_numpy(tokens["sizes"])
    assert sizes.shape == (2, 35) and sizes.sum(dim=1).tolist() == [64, 64]
    assert [np.bincount(owners, minlength=35).tolist() for owners in tokens["owners"]] == sizes.tolist()
    mean = (seen[0][:, 1:] * sizes.unsqueeze(-1)).sum(dim=1) / 64
    pooled = model.forward(pixels_of(IMAGES), {"pool": "mean", "merge": MERGE})
    assert (cosines(pooled["embedding"], mean) >= 0.9999999).all()
    assert pooled["tokens"].tolist() == tokens["tokens"].tolist() == [[65, 36]] * 2


def test_neither_decoder_nor_mask_token_takes_part(model: LoadedModel) -> None:
    before = model.forward(random_pixels(2, 32), {})["embedding"]
    for name, parameter in model.model.named_parameters():
        if name.startswith("decoder") or name == "mask_token":
            parameter.fill_(torch.nan)
    assert np.array_equal(model.forward(random_pixels(2, 32), {})["embedding"], before)


@pytest.mark.parametrize("options", [{"merge": MERGE}, {"pool": "mean"}], ids=str)
def test_a_vector_does_not_depend_on_its_batch(model: LoadedModel, options: dict[str, Any]) -> None:
    arrays = random_pixels(5, 32)
    joint = model.forward(arrays, options)["embedding"]
    alone = np.concatenate([model.forward({"pixels": image[None]}, options)["embedding"] for image in arrays["pixels"]])
    assert (cosines(alone, joint) >= 0.9999999).all()


def test_its_pools_are_known_without_loading_it() -> None:
    assert architectures()["mae"].pools({}) == ("cls", "mean")
    assert architectures()["mae"].token_vectors({})
