"""The packed form of a model on a CPU answers as the model does."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode

from models.layers.block import Mlp
from models.layers.packed_linear import pack_linears, supports_packed_linear
from models.layers.patches import PatchEmbed, TubePatchEmbed
from models.merge_schedule import MergeSchedule
from models.systems.vit.model import ViT, ViTConfig

CPU = torch.device("cpu")
CONFIG = ViTConfig(image_size=32, patch_size=4, classes=5, width=32, depth=3, heads=4)

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN, so nothing is packed")  # type: ignore[no-untyped-call]
in_bfloat16 = pytest.mark.skipif(not supports_packed_linear(CPU, torch.bfloat16), reason="this CPU has no bfloat16 in oneDNN")
DTYPES = [pytest.param(torch.bfloat16, 0.03, marks=in_bfloat16), (torch.float32, 1e-5)]


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("r", [0, 9])
@pytest.mark.parametrize(("dtype", "rounding"), DTYPES)
def test_packing_changes_no_answer_beyond_rounding(qkv_bias: bool, r: int, dtype: torch.dtype, rounding: float) -> None:
    torch.manual_seed(0)
    model = ViT(ViTConfig(**{**vars(CONFIG), "qkv_bias": qkv_bias})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    pixels, merge = torch.randn(2, 3, 32, 32), MergeSchedule.from_list([r])
    with torch.inference_mode():
        exact = model(pixels, merge=merge).logits
        model.to(dtype)
        plain = model(pixels.to(dtype), merge=merge).logits.float()
        pack_linears(model)
        packed = model(pixels.to(dtype), merge=merge).logits.float()
    assert not any(isinstance(module, nn.Linear | nn.Conv2d) for module in model.blocks.modules())
    scale = exact.abs().max()
    assert (packed - plain).abs().max() < rounding * scale
    assert (packed - exact).abs().max() < rounding * scale


GELUS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": lambda x: F.gelu(x, approximate="tanh"),
    "none": lambda x: F.gelu(x),
    "quick": lambda x: x * torch.sigmoid(1.702 * x),
}


@in_bfloat16
@pytest.mark.parametrize("gelu", GELUS)
def test_the_gelu_stays_the_one_of_the_model(gelu: str) -> None:
    """The values are below -2, where the two differ most, and by more than rounding."""
    mlp = Mlp(64, 64, tanh_gelu=gelu == "tanh", quick_gelu=gelu == "quick")
    for layer in (mlp.fc1, mlp.fc2):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    x = torch.linspace(-3, -2, 64).bfloat16().unsqueeze(0)
    model = torch.nn.Sequential(mlp).bfloat16()
    pack_linears(model)
    with torch.inference_mode():
        distances = {name: float((model(x).float() - function(x.float())).abs().mean()) for name, function in GELUS.items()}
    right = distances.pop(gelu)
    assert right < min(distances.values()) / 2


@pytest.mark.parametrize(("dtype", "rounding"), [pytest.param(torch.bfloat16, 2**-8, marks=in_bfloat16), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    ("embed", "shape"),
    [
        (PatchEmbed(4, 3, 16), (2, 3, 12, 8)),
        (PatchEmbed((8, 2), 1, 16), (1, 1, 16, 6)),
        (PatchEmbed(4, 3, 16), (1, 3, 14, 9)),
        (TubePatchEmbed(2, 4, 3, 16), (2, 3, 6, 8, 12)),
    ],
    ids=["square", "oblong", "an edge that fills no patch", "tubes"],
)
def test_patches_are_those_of_the_convolution(
    embed: PatchEmbed | TubePatchEmbed, shape: tuple[int, ...], dtype: torch.dtype, rounding: float
) -> None:
    torch.manual_seed(0)
    pixels = torch.randn(shape).to(dtype)
    model = nn.Sequential(deepcopy(embed)).to(dtype)
    with torch.inference_mode():
        exact = deepcopy(model).float()(pixels.float())
        pack_linears(model)
        packed = model(pixels)
    assert not any(isinstance(module, nn.Conv2d | nn.Conv3d) for module in model.modules())
    assert packed.shape == exact.shape
    assert torch.allclose(packed.float(), exact, rtol=rounding, atol=rounding)  # one rounding of the sum


def test_patches_with_a_stride_of_their_own_stay_a_convolution() -> None:
    """Patches of an overlapping kind share pixels, so that no reshaping cuts them out."""
    embed = PatchEmbed(4, 3, 16, padding=2, stride=2)
    model = nn.Sequential(embed)
    pack_linears(model)
    assert model[0] is embed


def test_only_these_types_on_a_cpu_are_packed() -> None:
    assert not supports_packed_linear(CPU, torch.float16)
    for dtype in (torch.float32, torch.bfloat16):
        assert not supports_packed_linear(torch.device("cuda"), dtype)


def test_patches_in_float32_are_a_matrix_product_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution may run in TF32 there, and then near ties merge otherwise."""
    embed = PatchEmbed(4, 3, 16)
    monkeypatch.setattr(embed, "_multiply", lambda images: "multiplied")
    monkeypatch.setattr(embed.proj, "forward", lambda images: images)
    with FakeTensorMode():
        exact, short = (torch.empty(2, 3, 12, 8, dtype=dtype, device="cuda") for dtype in (torch.float32, torch.bfloat16))
        assert embed(exact) == "multiplied"
        assert isinstance(embed(short), torch.Tensor)
