"""PHALP's appearance network, which no recorded case covers: against torchvision's ResNet-50 and torch's spectral normalisation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from models.checkpoints import detect, families, fit
from models.systems.phalp.hmar import AppearanceNet, AppearanceNetConfig, FlowDecoder, ResNet50, SpectralConv, SpectralResidualBlock
from tests.golden.checks import full_sizes, loads_strictly, relative_deviation, round_trips


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_the_published_size_loads_strictly() -> None:
    [published] = full_sizes("phalp").values()
    loads_strictly(published, "phalp_appearance")
    assert detect(published) == ["phalp_appearance"]


def test_names_of_the_file_load_and_round_trip_is_exact() -> None:
    torch.manual_seed(0)
    model = AppearanceNet(AppearanceNetConfig())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    in_file = {f"hmar.{name}": value for name, value in weights.items()}
    exported = round_trips({**in_file, "hmar.smplx_head.fc1.bias": torch.zeros(3)}, "phalp_appearance", {})
    assert exported.keys() == in_file.keys()
    assert fit(weights, families()["phalp_appearance"], {}).perfect  # as the published code names them once they are read


def test_the_published_loader_finds_its_names_in_an_export() -> None:
    """The published loader cuts five characters off every key that names one of its parts and writes `smpl` for `smplx`. It loads the
    names that it then knows."""
    with torch.device("meta"):
        weights = AppearanceNet(AppearanceNetConfig()).state_dict()
    exported = families()["phalp_appearance"].export(weights)
    parts = ("encoding_head", "texture_head", "backbone", "smplx_head")
    read = {key[5:].replace("smplx", "smpl") for key in exported if any(part in key for part in parts)}
    [published] = full_sizes("phalp").values()
    assert read == weights.keys() and read <= published.keys()


def test_the_backbone_is_torchvisions() -> None:
    torch.manual_seed(0)
    theirs, ours = torchvision.models.resnet50().eval(), ResNet50().eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert (missing, unexpected) == ([], ["fc.weight", "fc.bias"])
    pictures = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(pictures))))
        for got, layer in zip(ours(pictures), (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), strict=True):
            x = layer(x)
            assert torch.equal(got, x)


def test_convolutions_are_normalised_as_torch_does() -> None:
    torch.manual_seed(0)
    theirs = nn.utils.spectral_norm(nn.Conv2d(3, 5, 3, padding=1))
    theirs(torch.randn(1, 3, 8, 8))  # in training: finds the vectors
    ours = SpectralConv(3, 5, 3)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs.eval()(x), atol=1e-6)


def test_decoder_joins_running_map_before_backbones() -> None:
    """The running map comes first, then the backbone's: a wrong order has the same shape, and no recorded case shows it."""
    torch.manual_seed(0)
    decoder = FlowDecoder().eval()
    outputs: dict[str, Tensor] = {}
    joined: dict[str, Tensor] = {}
    for name, block in decoder.named_children():
        block.register_forward_hook(lambda module, inputs, output, name=name: outputs.update({name: output}))
        block.register_forward_pre_hook(lambda module, inputs, name=name: joined.update({name: inputs[0]}))
    maps = [torch.randn(1, 256 << stage, 16 >> stage, 16 >> stage) for stage in range(4)]
    with torch.no_grad():
        assert decoder(maps).shape == (1, 2, 64, 64)
    for running, lateral, level in (("G_middle_0", "2", 2), ("G_middle_1", "3", 1), ("up_0", "4", 0)):
        assert torch.equal(joined[f"G_middle_{lateral}"], maps[level])
        before = F.interpolate(outputs[running], scale_factor=2, mode="bilinear", align_corners=False)
        assert torch.equal(joined[f"G_middle_{lateral}_1"], torch.cat([before, outputs[f"G_middle_{lateral}"]], dim=1))


@pytest.mark.parametrize(("channels", "out"), [(6, 6), (6, 4), (4, 6)])
def test_a_block_adds_its_input_reshaped_where_it_must_be(channels: int, out: int) -> None:
    torch.manual_seed(0)
    block, x = SpectralResidualBlock(channels, out).eval(), torch.randn(1, channels, 5, 5)
    with torch.no_grad():
        block.conv_1.weight_orig.zero_()
        block.conv_1.weight_orig[0, 0, 0, 0] = 1e-30  # the normalisation has something to divide by
        shortcut = x if channels == out else block.conv_s(block.norm_s(x))
        middle = block.conv_0(F.leaky_relu(block.norm_0(x), 0.2))
        assert middle.shape[1] == min(channels, out)
        block.conv_1.weight_u.fill_(1.0)
        block.conv_1.weight_v.fill_(1e30)
        assert torch.allclose(block(x), shortcut, atol=1e-6)


def test_a_texture_shows_the_crop_and_its_code_has_4096_numbers() -> None:
    """If the crop is one colour and the mask covers it, whatever the flow takes from inside it is that colour; from outside, nothing."""
    torch.manual_seed(0)
    model = AppearanceNet(AppearanceNetConfig()).eval()
    crops = torch.cat([torch.full((1, 3, 256, 256), 1.5), torch.full((1, 1, 256, 256), 255.0)], dim=1)
    with torch.no_grad():
        model.texture_head.decoder.conv_img.weight.mul_(0.01)
        textures, codes = model(crops)
        assert torch.equal(textures, model.unwrap(crops))
    assert textures.shape == (1, 4, 256, 256)
    assert torch.allclose(textures[:, :3], torch.tensor(0.3))
    assert (textures[:, 3] == 1).all()
    assert codes.shape == (1, 4096)
    assert (codes >= 0).all()


@pytest.mark.slow
def test_bfloat16_codes_are_within_five_percent_at_same_places() -> None:
    """On a crop that changes slowly, so that a place next to the right one shows nearly the same."""
    torch.manual_seed(0)
    model = AppearanceNet(AppearanceNetConfig()).eval()
    for convolution in (module for module in model.modules() if isinstance(module, SpectralConv)):
        u, _, v = torch.linalg.svd(convolution.weight_orig.detach().flatten(1), full_matrices=False)
        convolution.weight_u.copy_(u[:, 0])  # as training leaves them
        convolution.weight_v.copy_(v[0])
    slope = torch.linspace(-1, 1, 256).expand(1, 3, 256, 256)
    crops = torch.cat([slope, torch.full((1, 1, 256, 256), 255.0)], dim=1)
    with torch.no_grad():
        textures, codes = model(crops)
        low_textures, low_codes = model.bfloat16()(crops.bfloat16())
    assert relative_deviation(low_textures, textures) < 0.05
    assert relative_deviation(low_codes, codes) < 0.05
