"""Inpainting for the client: the options, the request, and the answer."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from opsin import display
from opsin.api_request import ApiRequest, CallOptions, build_request, check_names
from opsin.image_encoding import ImageLike, encode, encode_mask
from opsin.results import Timing, common_fields

if TYPE_CHECKING:
    from numpy.typing import NDArray

MASK_EXPRESSIONS = ("box:", "center", "random:")
"""The first words of masks that are expressions, such as `center:0.5`."""


class InpaintOptions(CallOptions, total=False):
    """Options of an inpainting; None is the service's default. `docs/tasks/inpainting.md` explains each of them."""

    model: str | None
    """`name` or `name@version`."""
    method: Literal["auto", "network", "exemplar", "network-exemplar"] | None
    preset: Literal["draft", "fast", "standard", "full"] | None
    steps: int | None
    sampler: Literal["ddim", "ancestral", "one-step"] | None
    eta: float | None
    spacing: Literal["uniform", "logsnr"] | None
    seed: int | None
    temperature: float | None
    samples: int | None
    grow: int | None
    feather: int | None
    blend: Literal["membrane", "none"] | None
    inject_known: bool | None
    size: Literal["fit", "crop", "tile"] | None
    deterministic: bool | None


@dataclass(frozen=True, slots=True)
class Filled:
    """One sample: the image with its hole filled."""

    png: bytes = field(repr=False)
    seed: int

    @property
    def image(self) -> NDArray[np.uint8]:
        """The pixels: uint8 (H, W, 3), or (H, W, 4) if the image has transparency. Needs Pillow."""
        try:
            from PIL import Image
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("decoding the image needs Pillow (pip install pillow); `png` and `save` do not") from error
        return np.asarray(Image.open(BytesIO(self.png)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as PNG."""
        Path(path).write_bytes(self.png)

    def _repr_png_(self) -> bytes:
        return self.png


@dataclass(frozen=True, slots=True)
class Inpainting(display.HtmlResult):
    """The samples of one image, and how they were computed."""

    samples: tuple[Filled, ...]
    width: int
    height: int
    masked_pixels: int
    """Number of filled pixels."""
    steps: int
    sampler: str
    method: str
    """Method that filled the hole: `network`, `exemplar` or `network-exemplar`."""
    timing: Timing
    model: str
    version: str
    request_id: str
    note: str = ""
    """Warning about the bundle's answers; see `Classification.note`."""

    @property
    def image(self) -> NDArray[np.uint8]:
        """The first sample: uint8 (H, W, 3), or (H, W, 4) if the image has transparency. Needs Pillow."""
        return self.samples[0].image

    @property
    def seed(self) -> int:
        """Seed of the first sample; the others have the following ones."""
        return self.samples[0].seed

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the first sample as PNG."""
        self.samples[0].save(path)

    def _repr_png_(self) -> bytes:
        """Return the first sample, for front ends without HTML."""
        return self.samples[0].png

    def _repr_html_(self) -> str:
        style = "display:inline-block;margin:0 1em 1em 0"
        figures = "".join(
            f'<figure style="{style}">{display.render_image(sample.png)}<figcaption>seed {sample.seed}</figcaption></figure>'
            for sample in self.samples
        )
        method_text = (
            "with patches from around the hole" if self.method == "exemplar" else f"in {self.steps} steps of {escape(self.sampler)}"
        )
        facts = f"{self.masked_pixels:,} pixels filled {method_text}, {self.timing.total_ms:.0f} ms"
        return f"<div>{figures}</div>{display.render_small_print(facts, self.note)}"


def inpaint_request(image: ImageLike, mask: ImageLike | None, options: InpaintOptions) -> ApiRequest:
    """Return the request. mask: an image, or an expression such as `center:0.5`; write a file of such a name as `./center:0.5`."""
    check_names("inpaint", options, InpaintOptions)
    request_options: dict[str, Any] = dict(options)
    parts = {"image": encode(image)}
    if isinstance(mask, str) and mask.startswith(MASK_EXPRESSIONS):
        request_options["mask"] = mask
    elif mask is not None:
        parts["mask"] = encode_mask(mask)
    return build_request("/v1/inpaint", request_options, parts=parts)


def inpainting(answer: Mapping[str, Any]) -> Inpainting:
    """Read the body of `POST /v1/inpaint`."""
    return Inpainting(
        samples=tuple(Filled(base64.b64decode(result["image"]), result["seed"]) for result in answer["results"]),
        width=answer["width"],
        height=answer["height"],
        masked_pixels=answer["masked_pixels"],
        steps=answer["steps"],
        sampler=answer["sampler"],
        method=answer.get("method", "network"),
        **common_fields(answer),
    )
