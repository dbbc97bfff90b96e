"""Reader of transformers' `preprocessor_config.json`, the preparation of images, as fields of `Preprocess`.

Defaults are those of the library's image processors, by their types: files may lack them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.bundle_schema import MAX_SIDE
from models.checkpoints.checkpoint_file import CheckpointError
from models.checkpoints.family import RGB, ConfigFields
from models.checkpoints.timm_transform import StatedTransform

FILE = "preprocessor_config.json"
HALF: RGB = (0.5, 0.5, 0.5)
CLIP_MEAN: RGB = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: RGB = (0.26862954, 0.26130258, 0.27577711)
INTERPOLATIONS = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}
"""Interpolations by Pillow's numbers of `resample` and by their names."""
SCALE = 1 / 255


@dataclass(frozen=True)
class ProcessorDefaults:
    size: int
    square: bool
    """Whether `size` as a number is the side of a square; otherwise of the short side."""
    crop: int | None
    resample: int
    mean: RGB
    std: RGB
    by_share: bool = False
    """Whether `size` is the network's: the short side is `size` / `crop_pct`, and images of MIN_SQUEEZED_SIZE and more are squeezed."""


DEFAULTS: Mapping[str, ProcessorDefaults] = {
    "ViT": ProcessorDefaults(224, True, None, 2, HALF, HALF),
    "DeiT": ProcessorDefaults(256, True, 224, 3, HALF, HALF),
    "VideoMAE": ProcessorDefaults(224, False, 224, 2, HALF, HALF),
    "Bit": ProcessorDefaults(224, False, 224, 3, CLIP_MEAN, CLIP_STD),
    "CLIP": ProcessorDefaults(224, False, 224, 3, CLIP_MEAN, CLIP_STD),
    "Siglip": ProcessorDefaults(224, True, None, 3, HALF, HALF),
    "Beit": ProcessorDefaults(224, True, None, 3, HALF, HALF),
    "ConvNext": ProcessorDefaults(384, False, None, 3, HALF, HALF, by_share=True),
    "MobileNetV1": ProcessorDefaults(256, False, 224, 2, HALF, HALF),
    "MobileNetV2": ProcessorDefaults(256, False, 224, 2, HALF, HALF),
}
"""Type without its ending → defaults."""
ENDINGS = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")
TYPES = {"vit": "ViT", "deit": "DeiT", "vit_mae": "ViT", "videomae": "VideoMAE", "dinov2": "Bit", "clip": "CLIP", "siglip": "Siglip"}
"""`model_type` of a config → the type of a processor that does not name it, as in early files."""
MIN_SQUEEZED_SIZE = 384
CROP_PCT = 224 / 256
"""Default of `crop_pct`, the share of the short side that is kept."""
CLIPS = ("videomae",)
"""Values of `model_type` whose frames are resized by `models.media.clip_sampling`."""
MAX_COLOUR = 1e6


@dataclass(frozen=True)
class Processor(StatedTransform):
    """Preparation of images of a `preprocessor_config.json`."""

    image_size: int = 0
    preparation: Mapping[str, Any] | None = None
    """The other fields of `Preprocess`, for images of `image_size`."""

    def fields(self, size: int, overrides: ConfigFields) -> ConfigFields:
        """Return the fields as `StatedTransform` does. If another size was set by hand, the short side changes in proportion."""
        fields = dict(self.preparation or {})
        fields["short_side"] = fields["short_side"] * size // self.image_size
        return {key: value for key, value in fields.items() if key not in overrides}


def read(content: Mapping[str, Any], model_type: str, file: str = FILE) -> Processor:
    """Read a preparation of images. Raises CheckpointError that names a field which a bundle cannot express. file: name of the file."""
    try:
        return _read({name: value for name, value in content.items() if value is not None}, model_type, file)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _read(content: Mapping[str, Any], model_type: str, file: str) -> Processor:
    default = _processor_defaults(content, model_type)
    for name in ("do_resize", "do_rescale"):
        if not _flag(content, name, True):
            raise _refusal(name, False, "True")
    factor = content.get("rescale_factor", SCALE)
    if not isinstance(factor, int | float) or not SCALE - 1e-9 <= factor <= SCALE + 1e-9:
        raise _refusal("rescale_factor", factor, "1/255")
    resample = content.get("resample", default.resample)
    if not isinstance(resample, int | str) or resample not in INTERPOLATIONS:
        raise _refusal("resample", resample, "2 (bilinear) and 3 (bicubic)")
    squared, short_side = _size(content.get("size", default.size), default.square)
    if model_type in CLIPS and squared:
        raise _refusal("size", content.get("size", default.size), "a shortest_edge, of frames of clips")
    if model_type in CLIPS and INTERPOLATIONS[resample] != "bilinear":
        raise _refusal("resample", resample, "2 (bilinear), of frames of clips")
    crop = _crop(content, default)
    if default.by_share and not squared:
        crop, short_side, squared = short_side, _short_side(short_side, content), short_side >= MIN_SQUEEZED_SIZE
    if crop is None and not squared:
        raise _refusal("do_center_crop", False, "true where size is a shortest_edge: networks here see squares")
    side = short_side if crop is None else crop
    if side > short_side:
        raise _refusal("crop_size", side, f"at most size, {short_side}")
    normalised = _flag(content, "do_normalize", True)
    return Processor(
        file,
        image_size=side,
        preparation={
            "short_side": short_side,
            "fit": ("squeeze" if side == short_side else "squeeze-crop") if squared else "crop",
            "interpolation": INTERPOLATIONS[resample],
            "mean": _colours(content, "image_mean", default.mean) if normalised else (0.0, 0.0, 0.0),
            "std": _colours(content, "image_std", default.std) if normalised else (1.0, 1.0, 1.0),
        },
    )


def _processor_defaults(content: Mapping[str, Any], model_type: str) -> ProcessorDefaults:
    type_name = content.get("image_processor_type") or content.get("feature_extractor_type") or TYPES.get(model_type, "")
    name = next((str(type_name).removesuffix(ending) for ending in ENDINGS if str(type_name).endswith(ending)), str(type_name))
    if name not in DEFAULTS:
        raise _refusal("image_processor_type", type_name, ", ".join(f"{accepted}ImageProcessor" for accepted in DEFAULTS))
    return DEFAULTS[name]


def _size(value: Any, square: bool) -> tuple[bool, int]:
    """Return True if images are squeezed into a square, and its side, or that of the short side."""
    if isinstance(value, Mapping):
        sides = {key: side for key, side in value.items() if side is not None}
        if sides.keys() == {"height", "width"} and sides["height"] == sides["width"]:
            square, value = True, sides["height"]
        elif sides.keys() == {"shortest_edge"}:
            square, value = False, sides["shortest_edge"]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_SIDE:
        raise _refusal("size", value, f"an integer from 1 to {MAX_SIDE}, equal height and width, or a shortest_edge")
    return square, value


def _short_side(side: int, content: Mapping[str, Any]) -> int:
    """Return the short side before a crop to `side`."""
    ratio = content.get("crop_pct", CROP_PCT)
    if type(ratio) not in (int, float) or not side / MAX_SIDE <= ratio <= 1:
        raise _refusal("crop_pct", ratio, "a share of an image, at most 1")
    return side if side >= MIN_SQUEEZED_SIZE else int(side / ratio)


def _crop(content: Mapping[str, Any], default: ProcessorDefaults) -> int | None:
    if not _flag(content, "do_center_crop", default.crop is not None):
        return None
    squared, side = _size(content.get("crop_size", default.crop), True)
    if not squared:
        raise _refusal("crop_size", content["crop_size"], "a positive integer, or equal height and width")
    return side


def _colours(content: Mapping[str, Any], name: str, default: RGB) -> RGB:
    value = content.get(name, default)
    values = value if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3 or not all(type(part) in (int, float) and abs(part) < MAX_COLOUR for part in values):
        raise _refusal(name, value, "three numbers")
    return (float(values[0]), float(values[1]), float(values[2]))


def _flag(content: Mapping[str, Any], name: str, default: bool) -> bool:
    value = content.get(name, default)
    if not isinstance(value, bool):
        raise _refusal(name, value, "true or false")
    return value


def _refusal(name: str, value: Any, accepted: str) -> ValueError:
    return ValueError(f"{name} {value!r} cannot be kept; accepted is {accepted}")
