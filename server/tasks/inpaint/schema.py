"""Schema of inpainting: its options, its plan, and its answers."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from models.bundle_schema import FillMethod
from models.systems.diffmae.system import PresetName, SamplerName, SpacingName
from server.media import masks
from server.media.compositing import Blend
from server.tasks.options import RequestOptions

Method = Literal["auto", "network", "exemplar", "network-exemplar"]
METHODS: tuple[FillMethod, ...] = ("network", "exemplar", "network-exemplar")
"""Methods that `auto` is resolved to; jobs carry the index."""
MAX_SAMPLES = 8
MAX_SEED = 2**63 - 1
MAX_GROW_PIXELS = 512
MAX_FEATHER_PIXELS = 128


class InpaintOptions(RequestOptions, frozen=True, kw_only=True):
    mask: Annotated[
        str | None,
        Meta(
            max_length=100,
            pattern=r"^\s*(box|center|random)",
            description="Pixels to fill, instead of the part `mask`.",
            extra={"values": masks.FORMS, "words": masks.FORMS, "default": "the part `mask`; without it the image's own pixels of alpha 0"},
        ),
    ] = None
    method: Annotated[
        Method,
        Meta(
            description="Source of the filling: the network; patches copied from around the hole; or patches guided by the network. "
            "`auto`: the bundle's rules by the hole's thickness and the crop's side, else the network."
        ),
    ] = "auto"
    preset: Annotated[
        PresetName | None,
        Meta(description="Sampler and steps by name; explicit ones take precedence.", extra={"default": "the bundle's, else `standard`"}),
    ] = None
    steps: Annotated[
        int | None, Meta(ge=1, le=1000, description="Denoising steps.", extra={"values": "1 to 1000", "default": "the preset's"})
    ] = None
    sampler: Annotated[SamplerName | None, Meta(description="Sampling method.", extra={"default": "the preset's"})] = None
    eta: Annotated[float | None, Meta(ge=0, le=1, description="Noise that `ddim` adds.", extra={"values": "0 to 1", "default": "0"})] = None
    spacing: Annotated[SpacingName | None, Meta(description="Spacing of the sampled times.", extra={"default": "uniform"})] = None
    seed: Annotated[
        int | None,
        Meta(
            ge=0,
            le=MAX_SEED,
            description="Random seed of the first sample; the others have the following ones.",
            extra={"values": "0 to 2^63 - 1", "default": "random, below 2^53; returned in the response"},
        ),
    ] = None
    temperature: Annotated[
        float | None,
        Meta(
            ge=0,
            le=1,
            description="Share of the random noise that is used: less gives calmer fillings that differ less; at 0 all are the same.",
            extra={"values": "0 to 1", "default": "the bundle's, else 1"},
        ),
    ] = None
    samples: Annotated[int, Meta(ge=1, le=MAX_SAMPLES, description="Number of different fillings.")] = 1
    grow: Annotated[int, Meta(ge=0, le=MAX_GROW_PIXELS, description="Pixels by which the mask is widened.")] = 0
    feather: Annotated[int, Meta(ge=0, le=MAX_FEATHER_PIXELS, description="Width in pixels of a soft edge, inside the widened mask.")] = 0
    blend: Annotated[
        Blend | None,
        Meta(
            description="Transition to the image: `membrane` shifts the colours of the filling so that they match at the edge.",
            extra={"default": "`membrane`; with `feather` `none`"},
        ),
    ] = None
    inject_known: Annotated[bool, Meta(description="Let known pixels of partly masked patches guide the others.")] = True
    size: Annotated[
        Literal["fit", "crop", "tile"] | None,
        Meta(
            description="Input of the network: the whole image, a crop around the mask, or one window after the other.",
            extra={"default": "`crop` for images above the network's size, else `fit`"},
        ),
    ] = None
    deterministic: Annotated[bool, Meta(description="Whether one machine returns the same bytes each time; such jobs share no batch.")] = (
        False
    )


class InpaintPlan(msgspec.Struct, frozen=True):
    """Plan of inpainting. Fields with a default were added later: it is the behaviour of stored plans that lack them."""

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
        """Return a sample's seed; after the largest seed comes 0."""
        return (self.seed + sample) % (MAX_SEED + 1)


class Filled(msgspec.Struct, frozen=True):
    """A filled image as PNG in base64, with its seed."""

    image: bytes
    seed: int


class InpaintAnswer(msgspec.Struct, frozen=True):
    """Filled images. `masked_pixels` is the size of the hole; patches copied without the network took 0 steps of the sampler `none`."""

    width: int
    height: int
    masked_pixels: int
    steps: int
    sampler: str
    method: str
    results: list[Filled]


class InpaintPreview(msgspec.Struct, frozen=True):
    """The first sample after `step` steps: the network's canvas, in its own size, as a PNG in base64.

    `box`: position of the canvas in the image, as left, top, width, height in pixels."""

    step: int
    box: tuple[int, int, int, int]
    image: bytes
