"""`torch.compile` takes every system in whole: one graph without a break, which computes what the model does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.checkpoints import import_checkpoint
from models.flops import RandomInputMaker, prepare_forward
from models.merge_schedule import MergeSchedule
from models.registry import ForwardCall, InputMaker, architectures, read_config
from models.systems.diffmae.sampling import DummyMaskedBatch
from models.systems.mcc.queries import random_scene_inputs
from tests.golden.case import GOLDEN
from tests.golden.checks import RECORDED

BACKEND = "aot_eager"
"""Captures and takes apart as the compilers do, and needs none: no machine code is made."""

SCHEDULE = MergeSchedule.from_list([1, 2])


def load_recording(family: str) -> tuple[str, nn.Module]:
    """Architecture and model."""
    case, _, settings = RECORDED[family]
    spec, weights = import_checkpoint(
        GOLDEN / case / "checkpoint.pth", family=family, labels=None, overrides=settings, name="test", version="1", license="CC0-1.0"
    )
    architecture = architectures()[spec.architecture]
    model = architecture.build(read_config(architecture.config, spec.config))
    model.load_state_dict(weights)
    return spec.architecture, model.eval().requires_grad_(False)


def tensors(answer: Any) -> Iterator[Tensor]:
    """Return all tensors of an answer."""
    if isinstance(answer, Tensor):
        yield answer
    elif dataclasses.is_dataclass(answer):
        yield from (tensor for field in dataclasses.fields(answer) for tensor in tensors(getattr(answer, field.name)))
    elif isinstance(answer, tuple | list):
        yield from (tensor for part in answer for tensor in tensors(part))


def compiles(call: ForwardCall) -> None:
    torch._dynamo.reset()
    with torch.inference_mode():
        expected, got = list(tensors(call())), list(tensors(torch.compile(call, backend=BACKEND, fullgraph=True)()))
    assert expected
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("family", RECORDED)
def test_a_system_is_one_graph(family: str) -> None:
    torch.manual_seed(0)
    compiles(prepare_forward(*load_recording(family), batch=2))


@pytest.mark.slow
def test_so_is_the_appearance_network_of_which_there_is_one_size() -> None:
    torch.manual_seed(0)
    architecture = architectures()["phalp_appearance"]
    model = architecture.build(architecture.config()).eval().requires_grad_(False)
    compiles(prepare_forward("phalp_appearance", model, batch=1))


def pictures(model: Any, make: InputMaker) -> ForwardCall:
    pixels = make.normal(3, *model.config.image_shape)
    return lambda: model(pixels, merge=SCHEDULE)


def clips(model: Any, make: InputMaker) -> ForwardCall:
    pixels = make.normal(3, model.config.frames, model.config.image_size, model.config.image_size)
    return lambda: model(pixels, merge=SCHEDULE)


def sound_and_clips(model: Any, make: InputMaker) -> ForwardCall:
    config = model.config
    audio = make.normal(1, config.audio_frames, config.mel_bins)
    video = make.normal(3, config.frames, config.image_size, config.image_size)
    return lambda: model(audio, video, merge=SCHEDULE)


def picture_towers(model: Any, make: InputMaker) -> ForwardCall:
    pixels = make.normal(3, model.config.image_size, model.config.image_size)
    return lambda: model.encode_images(pixels, merge=SCHEDULE)


def crops(model: Any, make: InputMaker) -> ForwardCall:
    pixels = make.normal(3, model.config.image_size, model.config.image_size)
    return lambda: model(pixels, merge=SCHEDULE)


def holes(model: Any, make: InputMaker) -> ForwardCall:
    inputs = DummyMaskedBatch.draw(model.config, make)
    return lambda: model.encode(inputs.pixels, inputs.split, merge=SCHEDULE)


def scenes(model: Any, make: InputMaker) -> ForwardCall:
    images, seen = random_scene_inputs(model.config, make)
    return lambda: model.encode(images, seen, merge=SCHEDULE)


MERGED: Mapping[str, Callable[[Any, InputMaker], ForwardCall]] = {
    "timm": pictures,
    "minrev": pictures,
    "mae_st": clips,
    "mavil": sound_and_clips,
    "maws_clip": picture_towers,
    "flip": picture_towers,
    "cit": picture_towers,
    "hmr2": crops,
    "diffmae": holes,
    "mcc": scenes,
}
"""Family → its encoder at work with tokens that merge."""


SOON = {"timm", "minrev"}
"""Families that are not left to the slow tests. Images of half of the others go through the blocks of timm's ViT, too."""


@pytest.mark.parametrize("family", [pytest.param(family, marks=() if family in SOON else pytest.mark.slow) for family in MERGED])
def test_so_is_one_whose_tokens_merge(family: str) -> None:
    torch.manual_seed(0)
    _, model = load_recording(family)
    compiles(MERGED[family](model, RandomInputMaker(2, torch.float32, torch.device("cpu"))))
