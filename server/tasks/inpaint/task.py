"""Image and mask → the image with its hole filled.

The worker gets the region that the network works on (`server/media/crop_regions.py`): pixels uint8 (h, w, 3), missing uint8 (h, w), windows
int32 (W, 2). If patches are copied, it gets detail uint8 (h, w, 3) and detail_missing uint8 (h, w), the region at its own scale, as well
or, without the network, instead. To be returned unchanged: box int32 (4,), left, top, width and height of the region, and method uint8 (),
the index in METHODS. It answers filled uint8 (samples, h, w, 3).

The files `image` and `mask` as they were sent, uint8 (bytes,), `mask` empty if there was none, stay with the gateway, or return with the
outputs of a job that outlives it, so that any gateway can compose the result from outputs and plan at any time.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from models.bundle import BundleSpec
from models.bundle_schema import FillMethod
from models.media import patchmatch
from models.systems.diffmae.system import PRESETS, SamplerName
from server.media import compositing, crop_regions, masks
from server.media.crop_regions import Region
from server.media.images import BYTES_PER_PIXEL, ImageDecoder, OpenedImage, TooManyPixels
from server.media.limits import naming_part
from server.media.masks import PixelBox, PixelMask
from server.tasks import base
from server.tasks.base import JSON, Arrays, FileAnswer, Item, Outputs, RequestPart, Shapes, Tensor
from server.tasks.inpaint.schema import METHODS, Filled, InpaintAnswer, InpaintOptions, InpaintPlan, InpaintPreview, Method
from server.tasks.options import ExcessiveOption, InvalidOption

PNG = "image/png"
MAX_TOTAL_STEPS = 4000
"""Maximum of steps times samples times windows of one request."""
COPYING_STEPS = 100
"""Number of steps of a starter's network that take as long as copying patches into one sample: about half a second."""
DRAWN_SEEDS = 2**53
"""Upper limit of random seeds, which JavaScript can read exactly."""
NETWORK_OPTIONS = ("preset", "steps", "sampler", "eta", "spacing", "temperature")
"""Options of the network."""
SMALL_ARRAYS_BYTES = 64
"""Size of the answer's other arrays."""
PATCH_SIZE = 16
"""Default of an architecture whose config has none."""
PRESENTER = ImageDecoder(2**48)
"""Decoder for composing results: its input was already decoded once, within the limits of that time."""
# bytes of a pixel of the image, in addition to the image
MASK_BYTES_PER_PIXEL = 2
"""A mask, and one that is grown from it; or bright and transparent pixels of the mask's image."""
TILED_BYTES_PER_PIXEL = 4
"""The network's input, at the image's own scale."""
COPY_BYTES_PER_PIXEL = 16
"""A crop that patches are copied from: itself, its mask, and the mask's thickness."""
RAMP_BYTES_PER_PIXEL = 1
PNG_BYTES_PER_PIXEL = 4
"""Size of a PNG of noise; those of photographs take half of it."""


NO_MASK = (
    "missing: send the part `mask`, an image of the same size that is white where it is to be filled; or the option, such as `center` or "
    "`box:X,Y,W,H`; or an image whose own pixels are transparent there"
)


class InpaintTask(
    base.Task[InpaintOptions, InpaintPlan],
    base.Plans[InpaintOptions, InpaintPlan],
    base.OffersFiles[InpaintOptions, InpaintPlan],
    base.ControlsBatching[InpaintPlan],
    base.TakesSteps[InpaintPlan],
    base.Previews[InpaintPlan],
    base.EchoesArrays,
    base.PresentsElsewhere[InpaintPlan],
    base.OffersTensors[InpaintPlan],
):
    """Fill holes in images.

    The mask has the size of the upright image; its pixels of at least 128 are filled, or its transparent ones where it has any. Every byte
    outside of them stays as it was. With `Accept: application/json`, or several samples, the answer is JSON.
    """

    name = "inpaint"
    parts = (
        RequestPart("image", "image", "JPEG, PNG, WebP, GIF, BMP or TIFF, detected by content."),
        RequestPart("mask", "image", "An image of the same size, white where it is to be filled.", required=False),
    )
    options = InpaintOptions
    plan_type = InpaintPlan
    answer = InpaintAnswer
    example = InpaintAnswer(
        width=640,
        height=480,
        masked_pixels=8214,
        steps=100,
        sampler="ddim",
        method="network",
        results=[Filled(b"\x89PNG\r\n\x1a\n", seed=4127539016253314)],
    )
    media_types = (PNG, JSON)
    echoed_arrays = unread_arrays = ("image", "mask")

    def plan(self, options: InpaintOptions, spec: BundleSpec) -> InpaintPlan:
        if spec.clip is not None:
            raise InvalidOption("model", f"{spec.id} fills holes in clips; this route takes images")
        if options.mask is not None:
            _parse(options.mask)
        if options.feather and options.blend == "membrane":
            raise InvalidOption("blend", "membrane: not with `feather`, which blends in its own way")
        method = _method(options, spec)
        sampler, steps = _sampling(options, spec)
        if options.eta is not None and sampler != "ddim":
            raise InvalidOption("eta", f"{options.eta:g}: it is for the sampler `ddim`; {sampler} has none")
        if steps * options.samples > MAX_TOTAL_STEPS:
            field = "steps" if options.steps is not None else "samples"
            raise ExcessiveOption(field, f"{steps} steps of {options.samples} samples: at most {MAX_TOTAL_STEPS} steps in one request")
        fields = msgspec.structs.asdict(options)
        del fields["preset"]
        chosen = {
            "steps": steps,
            "sampler": sampler,
            "eta": options.eta or 0.0,
            "spacing": options.spacing or "uniform",
            "seed": secrets.randbelow(DRAWN_SEEDS) if options.seed is None else options.seed,
            "temperature": next(share for share in (options.temperature, spec.temperature, 1.0) if share is not None),
            "blend": options.blend or ("none" if options.feather else "membrane"),
            "method": method,
        }
        return InpaintPlan(**(fields | chosen))

    def prepare(self, item: Item, plan: InpaintPlan, spec: BundleSpec, decoder: ImageDecoder) -> list[Arrays]:
        """Raise InvalidOption if mask and image do not go together, or ExcessiveOption."""
        if plan.mask is not None and "mask" in item:
            raise InvalidOption("mask", "given both as a part and as text: send one of them")
        image, mask = _open(item["image"], item.get("mask", b""), decoder)
        if plan.samples * image.pixels > decoder.max_pixels:
            raise TooManyPixels(
                f"{plan.samples} samples of {image.size[0]} × {image.size[1]} pixels are together above the limit of "
                f"{decoder.max_pixels / 1e6:g} megapixels (OPSIN_MAX_PIXELS)"
            )
        scratch = crop_regions.SCALING_BYTES * min(image.pixels, 2 * crop_regions.STRIP_PIXELS)
        if plan.method != "network":
            scratch += COPY_BYTES_PER_PIXEL * min(image.pixels, patchmatch.MAX_PIXELS)
        with decoder.budget.reserve(_memory(image, mask, TILED_BYTES_PER_PIXEL if plan.size == "tile" else 0, scratch)):
            sent = _sent_mask(mask)
            picture = image.load_upright(transparency=True)
            hole = _hole(picture, sent, plan, spec)
            region = crop_regions.choose_region(plan.size, hole, _native(spec))
            fine = None if plan.method == "network" or not region.windows else crop_regions.detail(hole, region)
            method = _method_of(hole, region, fine, plan, spec)
            if method != "exemplar" and plan.steps * plan.samples * len(region.windows) > MAX_TOTAL_STEPS:
                raise ExcessiveOption(
                    "size",
                    f"{len(region.windows)} windows of {plan.steps} steps of {plan.samples} samples: at most {MAX_TOTAL_STEPS} steps",
                )
            seen = _network_inputs(picture, hole, region, fine, method)
            del picture, sent, hole
        box = region.box
        return [
            {
                **seen,
                "method": np.array(METHODS.index(method), np.uint8),
                "box": np.array([box.left, box.top, box.width, box.height], np.int32),
                "image": np.frombuffer(item["image"], np.uint8),
                "mask": np.frombuffer(item.get("mask", b""), np.uint8),
            }
        ]

    def offered_media_types(self, request: InpaintOptions | InpaintPlan) -> tuple[str, ...]:
        """Return the media types. A file is one image."""
        return self.media_types if request.samples == 1 else (JSON,)

    def bucket(self, plan: InpaintPlan, spec: BundleSpec, shapes: Shapes) -> str:
        """Return the bucket: holes, samplers and times of any kind share steps; copying patches takes other steps, and longer ones."""
        return "x".join(map(str, _native(spec))) + ("-copied" if "detail" in shapes else "")

    def arguments(self, plan: InpaintPlan, shapes: Shapes) -> dict[str, Any]:
        names = ("sampler", "steps", "eta", "spacing", "seed", "samples", "inject_known", "deterministic", "temperature")
        return {name: getattr(plan, name) for name in names}

    def memory_to_present(self, outputs: Sequence[Outputs], plan: InpaintPlan) -> int:
        pixel = (
            (BYTES_PER_PIXEL if plan.samples > 1 else 0)
            + PNG_BYTES_PER_PIXEL * plan.samples
            + (RAMP_BYTES_PER_PIXEL if plan.feather else 0)
        )
        opened = (_open(one["image"].tobytes(), one["mask"].tobytes(), PRESENTER) for one in outputs)
        return max(_memory(image, mask, pixel, compositing.blending_bytes(image.pixels)) for image, mask in opened)

    def present(self, outputs: Sequence[Outputs], plan: InpaintPlan, spec: BundleSpec, media_type: str) -> InpaintAnswer | FileAnswer:
        answer = _answer(outputs[0], plan, spec)
        if media_type == PNG and plan.samples == 1:
            return FileAnswer(answer.results[0].image, {"X-Seed": str(plan.seed), "X-Steps": str(answer.steps), "X-Method": answer.method})
        return answer

    def preview(self, arrays: Outputs, plan: InpaintPlan, spec: BundleSpec) -> InpaintPreview:
        left, top, width, height = arrays["box"].tolist()
        return InpaintPreview(int(arrays["step"]), (left, top, width, height), compositing.to_png(Image.fromarray(arrays["filled"])))

    def result_bound(self, plan: InpaintPlan, spec: BundleSpec, arrays: Arrays) -> int:
        """Bound the files and one canvas, or one crop that patches are copied into, for each sample, and one for a preview."""
        sample = max(arrays[name].nbytes if name in arrays else 0 for name in ("pixels", "detail"))
        return arrays["image"].nbytes + arrays["mask"].nbytes + (plan.samples + 1) * sample + SMALL_ARRAYS_BYTES

    def steps(self, plan: InpaintPlan, arrays: Arrays | None) -> int:
        if arrays is None and plan.method == "auto":
            return plan.samples * min(plan.steps, COPYING_STEPS)
        method = plan.method if arrays is None else METHODS[int(arrays["method"])]
        network_steps = 0 if method == "exemplar" else plan.steps * max(1, 0 if arrays is None else len(arrays["windows"]))
        return plan.samples * (network_steps + (0 if method == "network" else COPYING_STEPS))

    def samples(self, spec: BundleSpec) -> Sequence[Arrays]:
        """Return noise with a hole of a quarter of its area in the middle."""
        height, width = _native(spec)
        frames = () if spec.clip is None else (spec.clip.frames,)
        missing = np.zeros((*frames, height, width), np.uint8)
        missing[..., height // 4 : height // 4 + height // 2, width // 4 : width // 4 + width // 2] = 1
        pixels = np.random.default_rng(0).integers(0, 256, (*frames, height, width, 3), np.uint8)
        return ({"pixels": pixels, "missing": missing, "windows": np.zeros((1, 2), np.int32)},)

    def tensors(self, spec: BundleSpec) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return the tensors. The outputs have one column for each sample."""
        inputs = tuple(Tensor(part.name, "BYTES", (1,)) for part in self.parts)
        return inputs, (Tensor("image", "BYTES", (1,), is_file=True), Tensor("seed", "INT64", (1,)))

    def to_tensors(self, outputs: Sequence[Outputs], plan: InpaintPlan, spec: BundleSpec) -> tuple[Arrays, dict[str, Any]]:
        answers = [_answer(one, plan, spec) for one in outputs]
        images = np.empty((len(answers), plan.samples), object)
        images[:] = [[filled.image for filled in answer.results] for answer in answers]
        seeds = np.array([[filled.seed for filled in answer.results] for answer in answers], np.int64)
        first = answers[0]
        return {"image": images, "seed": seeds}, {"steps": first.steps, "sampler": first.sampler, "method": first.method}


def _answer(outputs: Outputs, plan: InpaintPlan, spec: BundleSpec) -> InpaintAnswer:
    """Compose the finished samples of one image."""
    image, mask = _open(outputs["image"].tobytes(), outputs["mask"].tobytes(), PRESENTER)
    sent = _sent_mask(mask)
    picture = image.load_upright(transparency=True)
    profile = picture.info["icc_profile"]
    hole = _hole(picture, sent, plan, spec)
    del sent
    box, results = PixelBox(*outputs["box"].tolist()), []
    for sample, made in enumerate(outputs["filled"]):
        composed = picture.copy() if len(outputs["filled"]) > 1 else picture
        compositing.compose(composed, made, box, hole, plan.feather, plan.blend)
        results.append(Filled(compositing.to_png(composed, profile), plan.seed_of(sample)))
    method = METHODS[int(outputs["method"])] if "method" in outputs else "network"
    steps, sampler = (0, "none") if method == "exemplar" else (plan.steps, plan.sampler)
    return InpaintAnswer(picture.width, picture.height, int(np.count_nonzero(hole)), steps, sampler, method, results)


def _open(image: bytes, mask: bytes, decoder: ImageDecoder) -> tuple[OpenedImage, OpenedImage | None]:
    """Read the headers of image and mask, None without one. Raises ImageError that names the part, and InvalidOption."""
    opened = decoder.open(image)
    if not mask:
        return opened, None
    with naming_part("mask"):
        sent = decoder.open(mask)
    if sent.size != opened.size:
        raise InvalidOption(
            "mask", f"{sent.size[0]} × {sent.size[1]} pixels, but the image, upright, has {opened.size[0]} × {opened.size[1]}"
        )
    return opened, sent


def _memory(image: OpenedImage, mask: OpenedImage | None, pixel: int, scratch: int) -> int:
    """Return the peak memory of processing an image. pixel: bytes a pixel besides the image and its masks. scratch: bytes for some of its
    rows at a time."""
    masks_of_it = MASK_BYTES_PER_PIXEL * image.pixels
    decoding = image.memory(transparency=True) + (0 if mask is None else image.pixels)
    decoding_mask = 0 if mask is None else mask.memory(transparency=True) + masks_of_it
    return max(decoding_mask, decoding, (BYTES_PER_PIXEL + pixel) * image.pixels + masks_of_it + scratch)


def _sent_mask(mask: OpenedImage | None) -> PixelMask | None:
    """Decode the mask. Return None without one. Raises ImageError that names the part."""
    if mask is None:
        return None
    with naming_part("mask"):
        return masks.mask_from_image(mask.load_upright(transparency=True))


def _hole(image: Image.Image, sent: PixelMask | None, plan: InpaintPlan, spec: BundleSpec) -> PixelMask:
    """Return the pixels to fill, (H, W) of the upright image. Raises InvalidOption."""
    height, width = image.height, image.width
    if sent is None and plan.mask is None:
        mask = masks.mask_from_alpha(image)
        if not mask.any():
            raise InvalidOption("mask", NO_MASK)
    else:
        mask = sent if sent is not None else _mask_from_description(plan, spec, height, width)
    return masks.grow(mask, plan.grow)


def _mask_from_description(plan: InpaintPlan, spec: BundleSpec, height: int, width: int) -> PixelMask:
    """Parse the mask's description. Random cells are the network's patches, if it sees the whole image."""
    assert plan.mask is not None
    description = _parse(plan.mask)
    if isinstance(description, PixelBox):
        try:
            return description.mask(height, width)
        except ValueError as error:
            raise InvalidOption("mask", str(error)) from error
    native = _native(spec)
    patch = int(spec.config.get("patch_size", PATCH_SIZE))
    return description.mask(height, width, patch / min(native[0] / height, native[1] / width), plan.seed)


def _parse(text: str) -> PixelBox | masks.AreaShare:
    try:
        return masks.parse(text.strip())
    except ValueError as error:
        raise InvalidOption("mask", str(error)) from error


def _method(options: InpaintOptions, spec: BundleSpec) -> Method:
    """Return the method, `auto` if the hole decides. Raises InvalidOption."""
    network_option = next((name for name in NETWORK_OPTIONS if getattr(options, name) is not None), None)
    if options.method == "exemplar" and network_option is not None:
        value = getattr(options, network_option)
        raise InvalidOption(network_option, f"{value}: it is for the network; the method exemplar copies patches of the image instead")
    if options.method in ("exemplar", "network-exemplar") and not patchmatch.installed():
        raise InvalidOption("method", f"{options.method}: the package patchmatch-cython is not installed; use auto or network")
    if options.method == "auto" and (network_option is not None or not spec.fill or not patchmatch.installed()):
        return "network"
    return options.method


def _method_of(hole: PixelMask, region: Region, fine: Region | None, plan: InpaintPlan, spec: BundleSpec) -> FillMethod:
    """Return the method for this hole. fine: source of copied patches; None if nothing is missing. Raises InvalidOption."""
    if fine is None:
        return "network" if plan.method == "auto" else plan.method
    box = region.box
    missing = masks.resize(box.crop(hole), *fine.scaled)
    has_sources = patchmatch.has_sources(missing)
    if plan.method == "auto":
        thickness = masks.thickness(missing) * box.height / missing.shape[0]
        rule = next((rule for rule in spec.fill if rule.fits(thickness, max(box.height, box.width))), None)
        return rule.method if rule is not None and has_sources else "network"
    if not has_sources:
        side = patchmatch.PATCH
        raise InvalidOption("method", f"{plan.method}: no known {side} × {side} pixels around the hole that could be copied; use network")
    return plan.method


def _network_inputs(image: Image.Image, hole: PixelMask, region: Region, fine: Region | None, method: FillMethod) -> Arrays:
    """Return the arrays to work on; without a hole those of the network, which then takes no step."""
    seen: Arrays = {}
    if method != "exemplar" or fine is None:
        pixels, missing = crop_regions.canvas(image, hole, region)
        windows = np.array(region.windows, np.int32).reshape(-1, 2)
        seen |= {"pixels": pixels, "missing": missing.astype(np.uint8), "windows": windows}
    if method != "network" and fine is not None:
        detail, missing = crop_regions.canvas(image, hole, fine)
        seen |= {"detail": detail, "detail_missing": missing.astype(np.uint8)}
    return seen


def _sampling(options: InpaintOptions, spec: BundleSpec) -> tuple[SamplerName, int]:
    """Return sampler and steps, by default those of the preset. Raises InvalidOption."""
    preset = PRESETS[options.preset or spec.preset or "standard"]
    max_steps = int(spec.config.get("schedule", {}).get("steps", PRESETS["full"].steps))
    if options.steps is not None and options.steps > max_steps:
        raise InvalidOption("steps", f"{options.steps}: {spec.id} was trained with {max_steps}")
    if options.sampler == "one-step":
        if options.steps not in (None, 1):
            raise InvalidOption("steps", f"{options.steps}: the sampler one-step takes 1")
        return "one-step", 1
    if options.sampler is None and preset.sampler == "one-step" and options.steps not in (None, 1):
        return "ddim", options.steps
    return options.sampler or preset.sampler, options.steps or min(preset.steps, max_steps)


def _native(spec: BundleSpec) -> tuple[int, int]:
    """Return the height and width that the network takes."""
    pictures = spec.image_preprocess
    return pictures.image_size, pictures.image_width or pictures.image_size
