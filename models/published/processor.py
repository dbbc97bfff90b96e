"""`preprocessor_config.json` of transformers: how images become a network's input, as fields of `Preprocess`.

Defaults are those of the library's image processors, by their types: files need not hold them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.published.container import CheckpointError
from models.published.family import RGB, Fields
from models.published.transforms import Stated

FILE = "preprocessor_config.json"
HALF: RGB = (0.5, 0.5, 0.5)
CLIP_MEAN: RGB = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: RGB = (0.26862954, 0.26130258, 0.27577711)
INTERPOLATIONS = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}
"""Pillow's numbers of `resample`, and their names."""
SCALE = 1 / 255


@dataclass(frozen=True)
class Usual:
    """Defaults of one type of image processor."""

    size: int
    square: bool
    """Whether `size` as a number is the side of a square; otherwise the short side's."""
    crop: int | None
    resample: int
    mean: RGB
    std: RGB


USUAL: Mapping[str, Usual] = {
    "ViT": Usual(224, True, None, 2, HALF, HALF),
    "DeiT": Usual(256, True, 224, 3, HALF, HALF),
    "VideoMAE": Usual(224, False, 224, 2, HALF, HALF),
    "Bit": Usual(224, False, 224, 3, CLIP_MEAN, CLIP_STD),
    "CLIP": Usual(224, False, 224, 3, CLIP_MEAN, CLIP_STD),
    "Siglip": Usual(224, True, None, 3, HALF, HALF),
}
"""Type without its ending → defaults."""
ENDINGS = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")
TYPES = {"vit": "ViT", "deit": "DeiT", "vit_mae": "ViT", "videomae": "VideoMAE", "dinov2": "Bit", "clip": "CLIP", "siglip": "Siglip"}
"""`model_type` of a config → the type of a processor that does not name it, as early files do not."""


@dataclass(frozen=True)
class Processor(Stated):
    """The preparation of images as a `preprocessor_config.json` states it."""

    image_size: int = 0
    preparation: Mapping[str, Any] | None = None
    """The other fields of `Preprocess`, for images of `image_size`."""
    smooth: bool = True
    """By Pillow, as images are."""

    def fields(self, size: int, given: Fields) -> Fields:
        """As for `Stated`. Where another size was set by hand, the short side changes in proportion."""
        found = dict(self.preparation or {})
        found["short_side"] = found["short_side"] * size // self.image_size
        return {key: value for key, value in found.items() if key not in given}


def read(content: Mapping[str, Any], model_type: str) -> Processor:
    """Raises CheckpointError that names a field which a bundle cannot express."""
    usual = _usual(content, model_type)
    _require(content, "do_resize", True)
    _require(content, "do_rescale", True)
    factor = content.get("rescale_factor", SCALE)
    if not isinstance(factor, int | float) or abs(factor - SCALE) > 1e-9:
        raise _refusal("rescale_factor", factor, "1/255")
    resample = content.get("resample", usual.resample)
    if resample not in INTERPOLATIONS:
        raise _refusal("resample", resample, "2 (bilinear) and 3 (bicubic)")
    squared, short_side = _size(content.get("size", usual.size), usual.square)
    crop = _crop(content, usual)
    if crop is None and not squared:
        raise _refusal("do_center_crop", False, "true where size is a shortest_edge: networks here see squares")
    side = short_side if crop is None else crop
    if side > short_side:
        raise _refusal("crop_size", side, f"at most size, {short_side}")
    normalised = content.get("do_normalize", True)
    return Processor(
        FILE,
        image_size=side,
        preparation={
            "short_side": short_side,
            "fit": ("squeeze" if side == short_side else "squeeze-crop") if squared else "crop",
            "interpolation": INTERPOLATIONS[resample],
            "mean": _colours(content, "image_mean", usual.mean) if normalised else (0.0, 0.0, 0.0),
            "std": _colours(content, "image_std", usual.std) if normalised else (1.0, 1.0, 1.0),
        },
    )


def _usual(content: Mapping[str, Any], model_type: str) -> Usual:
    stated = content.get("image_processor_type") or content.get("feature_extractor_type") or TYPES.get(model_type, "")
    name = next((str(stated).removesuffix(ending) for ending in ENDINGS if str(stated).endswith(ending)), str(stated))
    if name not in USUAL:
        raise _refusal("image_processor_type", stated, ", ".join(f"{known}ImageProcessor" for known in USUAL))
    return USUAL[name]


def _size(value: Any, square: bool) -> tuple[bool, int]:
    """Whether images are squeezed into a square, and its side, or that of the short side."""
    if isinstance(value, Mapping):
        known = {key: side for key, side in value.items() if side is not None}
        if known.keys() == {"height", "width"} and known["height"] == known["width"]:
            square, value = True, known["height"]
        elif known.keys() == {"shortest_edge"}:
            square, value = False, known["shortest_edge"]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _refusal("size", value, "a positive integer, equal height and width, or a shortest_edge")
    return square, value


def _crop(content: Mapping[str, Any], usual: Usual) -> int | None:
    if not content.get("do_center_crop", usual.crop is not None):
        return None
    squared, side = _size(content.get("crop_size", usual.crop), True)
    if not squared:
        raise _refusal("crop_size", content["crop_size"], "a positive integer, or equal height and width")
    return side


def _colours(content: Mapping[str, Any], name: str, usual: RGB) -> RGB:
    value = content.get(name, usual)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = (value, value, value)
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(isinstance(part, int | float) for part in value):
        raise _refusal(name, value, "three numbers")
    return (float(value[0]), float(value[1]), float(value[2]))


def _require(content: Mapping[str, Any], name: str, accepted: bool) -> None:
    if content.get(name, accepted) != accepted:
        raise _refusal(name, content[name], repr(accepted))


def _refusal(name: str, value: Any, accepted: str) -> CheckpointError:
    return CheckpointError(f"{FILE}: {name} {value!r} cannot be kept; accepted is {accepted}")
