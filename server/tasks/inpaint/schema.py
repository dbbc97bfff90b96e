"""The tables of inpainting: its options, the plan that is made of them, and its answers."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from models.bundle_schema import FillMethod
from models.systems.diffmae.sampler_presets import PresetName, SamplerName, SpacingName
from server.media import masks
from server.media.compositing import Blend
from server.tasks.options import RequestOptions

Method = Literal["auto", "network", "exemplar", "network-exemplar"]
METHODS: tuple[FillMethod, ...] = ("network", "exemplar", "network-exemplar")
"""Methods that `auto` becomes one of; jobs carry the index."""
MOST_SAMPLES = 8
MOST_SEED = 2**63 - 1
MOST_GROWTH = 512
MOST_FEATHER = 128


class InpaintOptions(RequestOptions, frozen=True, kw_only=True):
    mask: Annotated[
        str | None,
        Meta(
            max_length=100,
            pattern=r"^\s*(box|center|random)",
            description="What is to be filled, in place of the part `mask`.",
            extra={"values": masks.FORMS, "words": masks.FORMS, "default": "the part `mask`; without it the image's own pixels of alpha 0"},
        ),
    ] = None
    method: Annotated[
        Method,
        Meta(
            description="What fills the hole: the network; patches copied from around it; or patches from the network's result on. "
            "`auto`: the bundle's rules by the hole's thickness and the crop's side, else the network."
        ),
    ] = "auto"
    preset: Annotated[
        PresetName | None,
        Meta(description="Sampler and steps by name; those given explicitly win.", extra={"default": "the bundle's, else `standard`"}),
    ] = None
    steps: Annotated[
        int | None, Meta(ge=1, le=1000, description="Denoising steps.", extra={"values": "1 to 1000", "default": "the preset's"})
    ] = None
    sampler: Annotated[SamplerName | None, Meta(description="How steps follow each other.", extra={"default": "the preset's"})] = None
    eta: Annotated[float | None, Meta(ge=0, le=1, description="Noise that `ddim` adds.", extra={"values": "0 to 1", "default": "0"})] = None
    spacing: Annotated[SpacingName | None, Meta(description="Which times are visited.", extra={"default": "uniform"})] = None
    seed: Annotated[
        int | None,
        Meta(
            ge=0,
            le=MOST_SEED,
            description="Of the first sample; the others have the following ones.",
            extra={"values": "0 to 2^63 - 1", "default": "random, below 2^53; returned in the response"},
        ),
    ] = None
    temperature: Annotated[
        float | None,
        Meta(
            ge=0,
            le=1,
            description="Share of the drawn noise that is used: less gives calmer fillings that differ less; at 0 all are the same.",
            extra={"values": "0 to 1", "default": "the bundle's, else 1"},
        ),
    ] = None
    samples: Annotated[int, Meta(ge=1, le=MOST_SAMPLES, description="How many different fillings.")] = 1
    grow: Annotated[int, Meta(ge=0, le=MOST_GROWTH, description="Pixels by which the mask is widened.")] = 0
    feather: Annotated[int, Meta(ge=0, le=MOST_FEATHER, description="Width in pixels of a soft edge, inside the widened mask.")] = 0
    blend: Annotated[
        Blend | None,
        Meta(
            description="How what was made meets the image: `membrane` moves its colours so that they fit at the edge.",
            extra={"default": "`membrane`; with `feather` `none`"},
        ),
    ] = None
    inject_known: Annotated[bool, Meta(description="Let known pixels of partly masked patches guide the others.")] = True
    size: Annotated[
        Literal["fit", "crop", "tile"] | None,
        Meta(
            description="What the network sees: the whole image, a crop around the mask, or one window after the other.",
            extra={"default": "`crop` for images above the network's size, else `fit`"},
        ),
    ] = None
    deterministic: Annotated[bool, Meta(description="The same bytes on one machine, at the cost of sharing no batch.")] = False


class InpaintPlan(msgspec.Struct, frozen=True):
    """Fields with a default came later: of a stored plan that lacks one it says what was done then."""

    mask: str | None
    steps: int
    sampler: SamplerName
    eta: float
    spacing: SpacingName
    seed: int
    samples: int
    grow: int
    feather: int
    inject_known: bool
    size: Literal["fit", "crop", "tile"] | None
    deterministic: bool
    temperature: float = 1.0
    blend: Blend = "none"
    method: Method = "network"

    def seed_of(self, sample: int) -> int:
        """After the last seed comes the first."""
        return (self.seed + sample) % (MOST_SEED + 1)


class Filled(msgspec.Struct, frozen=True):
    """`image` is a PNG in base64."""

    image: bytes
    seed: int


class InpaintAnswer(msgspec.Struct, frozen=True):
    """`masked_pixels` counts the filled ones; patches that were copied without the network took 0 steps of the sampler `none`."""

    width: int
    height: int
    masked_pixels: int
    steps: int
    sampler: str
    method: str
    results: list[Filled]


class InpaintPreview(msgspec.Struct, frozen=True):
    """The first sample after `step` steps: what the network works on at that moment, in its own size, as a PNG in base64; `box`: where that
    lies in the image, as left, top, width, height in pixels."""

    step: int
    box: tuple[int, int, int, int]
    image: bytes
