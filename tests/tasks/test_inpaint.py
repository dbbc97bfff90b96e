"""The task `inpaint`: pure functions of options, files and a bundle's spec. The network is a rule here: it paints everything green."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image, ImageCms

from models.bundle import BundleSpec
from models.bundle_schema import Clip, FileDigest, Preprocess
from models.media import patchmatch
from server.media.images import CorruptImage, ImageDecoder, NotAnImage, TooManyPixels
from server.tasks.base import JSON, Arrays, FileAnswer
from server.tasks.inpaint.schema import MAX_SEED, METHODS, InpaintAnswer, InpaintOptions, InpaintPlan
from server.tasks.inpaint.task import COPYING_STEPS, InpaintTask
from server.tasks.options import ExcessiveOption, InvalidOption, option_rows
from tests.support.images import decode, encode, noise

TASK = InpaintTask()
DECODER = ImageDecoder(max_pixels=1_000_000)
GREEN = (10, 200, 30)
PNG = "image/png"
NOTHING = np.empty(0)


def spec(**changes: Any) -> BundleSpec:
    fields = {
        "name": "painter",
        "version": "1",
        "task": "inpaint",
        "architecture": "diffmae",
        "config": {"patch_size": 4, "schedule": {"steps": 1000}},
        "preprocess": Preprocess(image_size=16, short_side=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        "license": "CC0-1.0",
        "weights": FileDigest(sha256="0" * 64, bytes=1),
    }
    return BundleSpec(**fields | changes)


SPEC = spec()


def plan(bundle: BundleSpec = SPEC, **options: Any) -> InpaintPlan:
    return TASK.plan(InpaintOptions(**options), bundle)


def white(height: int, width: int, box: tuple[int, int, int, int] | None = None) -> Image.Image:
    """Return a mask that is black but for a box (left, top, right, bottom)."""
    mask = Image.new("L", (width, height), 0)
    if box is not None:
        mask.paste(255, box)
    return mask


def paint(arrays: Arrays, samples: int = 1) -> Arrays:
    """Return what a worker would answer: the hole in green."""
    pixels, missing = ("detail", "detail_missing") if "detail" in arrays else ("pixels", "missing")
    filled = np.where(arrays[missing][..., np.newaxis] > 0, np.array(GREEN, np.uint8), arrays[pixels])
    returned = {name: arrays[name] for name in ("box", "method", "image", "mask")}
    return {"filled": np.stack([filled] * samples), **returned}


def prepare(image: bytes, mask: bytes | str | None, chosen: InpaintPlan) -> Arrays:
    [arrays] = TASK.prepare({"image": image} | ({"mask": mask} if isinstance(mask, bytes) else {}), chosen, SPEC, DECODER)
    return arrays


def fill(image: bytes, mask: bytes | str | None = None, **options: Any) -> bytes:
    """Return the answer as a file. mask: a file, or words."""
    chosen = plan(**options | ({"mask": mask} if isinstance(mask, str) else {}))
    arrays = prepare(image, mask, chosen)
    answer = TASK.present([paint(arrays)], chosen, SPEC, PNG)
    assert isinstance(answer, FileAnswer)
    return answer.content


def test_presets_choose_sampler_and_explicit_options_win() -> None:
    def chosen(**options: Any) -> tuple[str, int]:
        planned = plan(**options)
        return planned.sampler, planned.steps

    assert chosen() == chosen(preset="standard") == ("ddim", 100)
    assert (chosen(preset="draft"), chosen(preset="fast"), chosen(preset="full")) == (("one-step", 1), ("ddim", 10), ("ancestral", 1000))
    assert chosen(preset="full", steps=50) == ("ancestral", 50)
    assert chosen(preset="full", sampler="ddim") == ("ddim", 1000)
    assert chosen(sampler="one-step") == chosen(sampler="one-step", steps=1) == ("one-step", 1)
    assert chosen(preset="draft", steps=10) == ("ddim", 10)


@pytest.mark.parametrize(
    ("options", "field", "reason"),
    [
        ({"sampler": "one-step", "steps": 2}, "steps", "2: the sampler one-step takes 1"),
        ({"eta": 0.5, "sampler": "ancestral"}, "eta", "it is for the sampler `ddim`"),
        ({"eta": 0.0, "preset": "draft"}, "eta", "it is for the sampler `ddim`"),
        ({"mask": "box:1,2,3"}, "mask", "use `box:X,Y,W,H` in pixels"),
        ({"mask": "center:2"}, "mask", "use `box:X,Y,W,H` in pixels"),
        ({"blend": "membrane", "feather": 2}, "blend", "membrane: not with `feather`"),
        ({"method": "exemplar", "steps": 3}, "steps", "3: it is for the network"),
        ({"method": "exemplar", "preset": "fast"}, "preset", "fast: it is for the network"),
        ({"method": "exemplar", "temperature": 0.0}, "temperature", "it is for the network"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(options: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(InvalidOption, match=reason) as caught:
        plan(**options)
    assert caught.value.field == field and not isinstance(caught.value, ExcessiveOption)


@pytest.mark.parametrize(("options", "field"), [({"steps": 1000, "samples": 5}, "steps"), ({"preset": "full", "samples": 8}, "samples")])
def test_more_than_4000_steps_are_too_many(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ExcessiveOption, match="at most 4000 steps in one request") as caught:
        plan(**options)
    assert caught.value.field == field
    assert plan(steps=1000, samples=4).samples == 4


def test_a_bundle_of_a_short_schedule_takes_fewer_steps() -> None:
    short = spec(config={"schedule": {"steps": 50}})
    assert plan(short).steps == plan(short, preset="full").steps == 50
    with pytest.raises(InvalidOption, match="51: painter@1 was trained with 50"):
        plan(short, steps=51)


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [
        ("steps", ["1", 1000], ["0", 1001, 10**6, -1, 1.5, "many"]),
        ("seed", ["0", str(MAX_SEED), MAX_SEED], [-1, MAX_SEED + 1, "x", 1e300]),
        ("samples", [1, 8], [0, 9]),
        ("eta", ["0", 0.5, 1], [-0.1, 1.1, "nan", "inf"]),
        ("grow", [0, 512], [-1, 513]),
        ("feather", [0, 128], [-1, 129]),
        ("sampler", ["ddim", "ancestral", "one-step"], ["ddpm", "onestep", ""]),
        ("spacing", ["uniform", "logsnr"], ["log"]),
        ("size", ["fit", "crop", "tile"], ["grid"]),
        ("preset", ["draft", "full"], ["best"]),
        ("blend", ["membrane", "none"], ["poisson", ""]),
        ("method", ["auto", "network", "exemplar", "network-exemplar"], ["copy", ""]),
        ("mask", ["center", "box:0,0,1,1", "random:0.5"], ["iVBORw0KGgo=", "everything"]),
        ("deterministic", ["true", False], ["maybe"]),
    ],
)
def test_what_options_may_be(name: str, accepted: list[Any], refused: list[Any]) -> None:
    [row] = [row for row in option_rows(InpaintOptions) if row.name == name]
    for value in accepted:
        row.read([value])
    for value in refused:
        with pytest.raises(InvalidOption, match="must be") as caught:
            row.read([value])
        assert caught.value.field == name


def test_drawn_seed_fits_javascript_and_samples_follow_it() -> None:
    seeds = {plan().seed for _ in range(20)}
    assert len(seeds) == 20 and max(seeds) < 2**53
    last = plan(seed=MAX_SEED, samples=2)
    assert [last.seed_of(sample) for sample in range(2)] == [MAX_SEED, 0]


def test_plans_can_be_stored() -> None:
    stored = plan(mask="center", seed=MAX_SEED, eta=0.25)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(stored), type=TASK.plan_type) == stored


def test_jobs_of_all_options_share_bucket_with_own_arguments() -> None:
    assert TASK.bucket(plan(steps=3, samples=2), SPEC, {}) == TASK.bucket(plan(deterministic=True), SPEC, {})
    assert TASK.arguments(plan(steps=3, samples=2, seed=9, inject_known=False), {}) == {
        "sampler": "ddim",
        "steps": 3,
        "eta": 0.0,
        "spacing": "uniform",
        "seed": 9,
        "samples": 2,
        "inject_known": False,
        "deterministic": False,
        "temperature": 1.0,
    }


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")


def image_of(mode: str, height: int, width: int, seed: int) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.random.default_rng(seed).integers(0, 65536, (height, width), np.uint16))
    if mode == "RGBA":
        return noise(height, width, 4, seed)
    return noise(height, width, 3, seed).convert(mode)


@pytest.mark.parametrize("seed", range(24))
def test_every_byte_outside_the_filled_pixels_is_the_input_s(seed: int) -> None:
    """Over random modes, sizes, rotations, masks and options. The reference is the decoder's own upright 8-bit decode."""
    generator = np.random.default_rng(seed)
    mode = MODES[seed % len(MODES)]
    height, width = generator.integers(1, 70, 2).tolist()
    image = image_of(mode, height, width, seed)
    exif = Image.Exif()
    turn = int(generator.integers(1, 9))
    exif[0x0112] = turn
    kind = "TIFF" if mode == "CMYK" else "PNG"
    upright = (width, height) if turn < 5 else (height, width)
    file = encode(image, kind, exif=exif)
    mask = (generator.random(upright[::-1]) < generator.choice([0.02, 0.3, 1])).astype(np.uint8) * 255
    options = {"grow": int(generator.integers(0, 3)), "feather": int(generator.integers(0, 4))}
    if generator.random() < 0.5:
        options["blend"] = "none"
    method, size = str(generator.choice(["network", "exemplar", "network-exemplar"])), str(generator.choice(["fit", "crop", "tile"]))
    try:
        answer = decode(fill(file, encode(Image.fromarray(mask)), size=size, method=method, **options))
    except InvalidOption as refused:
        assert refused.field == "method", "nothing can be copied"
        answer = decode(fill(file, encode(Image.fromarray(mask)), size=size, method="network", **options))
    with DECODER.decode(file, transparency=True) as original:
        expected = np.asarray(original)
    filled = np.zeros(mask.shape, bool)
    for y, x in np.argwhere(mask):
        reach = options["grow"]
        filled[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1] = True
    assert answer.shape == expected.shape
    assert np.array_equal(answer[~filled], expected[~filled])
    if filled.any() and not options["feather"] and "blend" in options:
        assert (np.abs(answer[filled][:, :3].astype(int) - GREEN) <= 60).mean() > 0.9, "the hole is painted green"


@pytest.mark.parametrize(
    "mask", [white(9, 11), Image.new("RGBA", (11, 9), (255, 255, 255, 1)), Image.new("1", (11, 9), 0)], ids=lambda mask: mask.mode
)
def test_where_nothing_is_to_be_filled_the_image_comes_back(mask: Image.Image) -> None:
    image = noise(9, 11)
    assert np.array_equal(decode(fill(encode(image), encode(mask))), np.asarray(image))


def test_without_a_mask_the_image_s_own_transparency_counts() -> None:
    pixels = np.array(noise(20, 20, 4))
    pixels[..., 3] = 255
    pixels[3:9, 4:8, 3] = 0
    answer = decode(fill(encode(Image.fromarray(pixels))))
    hole = pixels[..., 3] == 0
    assert np.array_equal(answer[~hole], pixels[~hole])
    assert (answer[hole][:, 3] == 255).all(), "what is filled is opaque"
    with pytest.raises(InvalidOption, match="missing") as caught:
        fill(encode(noise(20, 20)))
    assert caught.value.field == "mask"


@pytest.mark.parametrize("words", ["box:3,4,5,2", "center:0.3", "random:0.5"])
def test_masks_in_words(words: str) -> None:
    image = noise(24, 18)
    answer = decode(fill(encode(image), words, seed=4))
    changed = (answer != np.asarray(image)).any(axis=2)
    assert 0 < changed.sum() < changed.size


def test_masks_that_do_not_go_with_the_image_are_refused() -> None:
    image = encode(noise(10, 20))
    with pytest.raises(InvalidOption) as caught:
        fill(image, encode(white(20, 10)))
    other_size = caught.value
    assert (other_size.field, str(other_size)) == ("mask", "10 × 20 pixels, but the image, upright, has 20 × 10")
    with pytest.raises(InvalidOption) as caught:
        fill(image, "box:15,0,6,1")
    outside = caught.value
    assert outside.field == "mask" and "leaves the image of 20 × 10 pixels" in str(outside)


def test_a_mask_is_given_once() -> None:
    with pytest.raises(InvalidOption) as caught:
        prepare(encode(noise(10, 20)), encode(white(10, 20)), plan(mask="center"))
    twice = caught.value
    assert (twice.field, str(twice)) == ("mask", "given both as a part and as text: send one of them")


def test_a_turned_mask_fits_a_turned_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = encode(noise(10, 20), "JPEG", exif=exif)
    assert decode(fill(image, encode(white(20, 10, (0, 0, 3, 3))))).shape == (20, 10, 3)
    assert decode(fill(image, encode(white(10, 20, (0, 0, 3, 3)), "PNG", exif=exif))).shape == (20, 10, 3)


@pytest.mark.parametrize(("damaged", "kind"), [(b"no image at all", NotAnImage), (encode(noise(9, 9))[:60], CorruptImage)])
def test_errors_of_the_mask_name_it(damaged: bytes, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        fill(encode(noise(9, 9)), damaged)
    assert caught.value.part == "mask"  # type: ignore[attr-defined]


def test_samples_count_as_pixels() -> None:
    image = encode(noise(400, 400))
    with pytest.raises(TooManyPixels, match="8 samples of 400 × 400 pixels are together above the limit of 1 megapixels"):
        prepare(image, None, plan(samples=8))
    assert prepare(image, None, plan(samples=6, mask="center"))


def test_windows_count_as_steps() -> None:
    image = encode(noise(100, 100))
    with pytest.raises(ExcessiveOption, match=r"\d+ windows of 1000 steps of 1 samples: at most 4000 steps") as caught:
        fill(image, "center", size="tile", steps=1000)
    assert caught.value.field == "size"


def test_copied_patches_take_no_steps_and_no_windows() -> None:
    image = encode(noise(900, 900))
    with pytest.raises(ExcessiveOption, match="windows of 100 steps"):
        prepare(image, None, plan(mask="center:0.3", size="tile", method="network-exemplar"))
    assert "pixels" not in prepare(image, None, plan(mask="center:0.3", size="tile", method="exemplar"))


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1)])
@pytest.mark.parametrize("mode", ["fit", "crop", "tile"])
def test_extreme_sizes_are_filled_too(size: tuple[int, int], mode: str) -> None:
    height, width = size
    mask = white(height, width)
    mask.putpixel((width // 2, height // 2), 255)
    assert decode(fill(encode(noise(height, width)), encode(mask), size=mode)).shape == (height, width, 3)


@pytest.mark.parametrize("size", ["crop", "tile"])
def test_what_is_made_lands_where_it_was_seen(size: str) -> None:
    """A network that made exactly what was there would give the image back."""
    image, chosen = noise(50, 60), plan(size=size, blend="none")
    arrays = prepare(encode(image), encode(white(50, 60, (37, 21, 44, 29))), chosen)
    left, top, width, height = arrays["box"].tolist()
    made = np.asarray(image)[top : top + height, left : left + width]
    answer = TASK.present([paint(arrays) | {"filled": made[np.newaxis]}], chosen, SPEC, PNG)
    assert isinstance(answer, FileAnswer) and np.array_equal(decode(answer.content), np.asarray(image))


def test_what_is_made_at_another_scale_lands_where_it_was_seen() -> None:
    """A ramp comes back within the three levels that two resamplings cost."""
    across, down = np.meshgrid(np.linspace(0, 255, 80), np.linspace(0, 255, 64))
    ramp = np.stack([across, down, (across + down) / 2], axis=2).astype(np.uint8)
    chosen = plan(size="fit", blend="none")
    arrays = prepare(encode(Image.fromarray(ramp)), encode(white(64, 80, (30, 20, 50, 40))), chosen)
    height, width = arrays["pixels"].shape[:2]
    made = np.asarray(Image.fromarray(ramp).resize((width, height), Image.Resampling.BICUBIC))
    answer = TASK.present([paint(arrays) | {"filled": made[np.newaxis]}], chosen, SPEC, PNG)
    assert isinstance(answer, FileAnswer) and np.abs(decode(answer.content).astype(int) - ramp).max() <= 3


def test_several_samples_are_json_whatever_is_accepted() -> None:
    chosen = plan(samples=3, seed=5, steps=7)
    image = noise(12, 10)
    arrays = prepare(encode(image), encode(white(12, 10, (0, 0, 4, 4))), chosen)
    for media_type in (PNG, JSON):
        answer = TASK.present([paint(arrays, 3)], chosen, SPEC, media_type)
        assert isinstance(answer, InpaintAnswer)
        assert (answer.width, answer.height, answer.masked_pixels, answer.steps, answer.sampler) == (10, 12, 16, 7, "ddim")
        assert answer.method == "network"
        assert [result.seed for result in answer.results] == [5, 6, 7]
    one = plan(seed=5, steps=7)
    file = TASK.present([paint(arrays)], one, SPEC, PNG)
    assert isinstance(file, FileAnswer) and file.headers == {"X-Seed": "5", "X-Steps": "7", "X-Method": "network"}


def test_a_colour_profile_of_rgb_is_kept() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    answer = Image.open(io.BytesIO(fill(encode(noise(9, 9), icc_profile=profile), encode(white(9, 9, (0, 0, 2, 2))))))
    assert answer.info["icc_profile"] == profile


def test_only_the_first_picture_of_an_animation_is_filled() -> None:
    frames = [noise(9, 9, seed=seed).quantize(16) for seed in (1, 2)]
    gif = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    answer = decode(fill(gif, encode(white(9, 9))))
    with DECODER.decode(gif, transparency=True) as first:
        assert np.array_equal(answer, np.asarray(first))


def test_the_room_for_a_result_is_enough() -> None:
    for options in ({"steps": 2}, {"samples": 4}, {"size": "tile"}, {"method": "exemplar", "samples": 3}, {"method": "network-exemplar"}):
        chosen = plan(**options)
        arrays = prepare(encode(noise(50, 60)), encode(white(50, 60, (5, 5, 40, 40))), chosen)
        bound = TASK.result_bound(chosen, SPEC, arrays)
        assert sum(array.nbytes for array in paint(arrays, chosen.samples).values()) + arrays.get("pixels", NOTHING).nbytes <= bound


def test_a_preview_is_a_small_png() -> None:
    seen = np.array(noise(16, 12))
    preview = TASK.preview({"filled": seen, "step": np.array(7), "box": np.array([4, 8, 32, 24])}, plan(), SPEC)
    assert (preview.step, preview.box) == (7, (4, 8, 32, 24)) and np.array_equal(decode(preview.image), seen)


def test_bundles_of_clips_are_no_use_here() -> None:
    with pytest.raises(InvalidOption, match="painter@1 fills holes in clips; this route takes images"):
        plan(spec(clip=Clip(frames=4, stride=1)))


def test_tensors_have_a_column_for_each_sample() -> None:
    chosen = plan(samples=2, seed=5, steps=7)
    arrays = prepare(encode(noise(9, 9)), encode(white(9, 9, (0, 0, 4, 4))), chosen)
    tensors, parameters = TASK.to_tensors([paint(arrays, 2)] * 3, chosen, SPEC)
    assert tensors["image"].shape == (3, 2) and tensors["seed"].tolist() == [[5, 6]] * 3
    assert parameters == {"steps": 7, "sampler": "ddim", "method": "network"}


def test_a_bundle_names_its_usual_temperature() -> None:
    assert (plan().temperature, plan(temperature=0.5).temperature) == (1.0, 0.5)
    calm = spec(temperature=0.0)
    assert (plan(calm).temperature, plan(calm, temperature=1.0).temperature) == (0.0, 1.0)
    assert TASK.arguments(plan(calm), {})["temperature"] == 0.0
    assert b"temperature" in calm.to_bytes() and b"temperature" not in SPEC.to_bytes()


def test_plans_of_older_gateway_are_presented_as_by_it() -> None:
    stored = msgspec.to_builtins(plan())
    del stored["temperature"], stored["blend"], stored["method"]
    older = plan(temperature=1.0, blend="none", method="network")
    assert msgspec.convert(stored, InpaintPlan) == msgspec.structs.replace(older, seed=stored["seed"])
    arrays = prepare(encode(noise(12, 10)), encode(white(12, 10, (0, 0, 4, 4))), older)
    answer = TASK.present([{name: array for name, array in paint(arrays).items() if name != "method"}], older, SPEC, JSON)
    assert isinstance(answer, InpaintAnswer) and answer.method == "network"


def test_a_filling_meets_the_image_unless_a_feather_blends_it() -> None:
    assert [plan(**options).blend for options in ({}, {"blend": "none"}, {"feather": 3}, {"feather": 3, "blend": "none"})] == [
        "membrane",
        "none",
        "none",
        "none",
    ]
    grey = Image.new("RGB", (16, 16), (90, 100, 110))
    file, hole = encode(grey), encode(white(16, 16, (4, 4, 12, 12)))
    assert np.array_equal(decode(fill(file, hole)), np.asarray(grey)), "one colour beside another is no longer seen"
    assert tuple(decode(fill(file, hole, blend="none"))[8, 8]) == GREEN


ANYWHERE = [{"method": "exemplar", "thickness": 20}, {"method": "network-exemplar", "side": 100}]
RULED = spec(fill=ANYWHERE)


def method_of(bundle: BundleSpec, image: Image.Image, mask: Image.Image, **options: Any) -> str:
    """Return the method that fills the hole."""
    [arrays] = TASK.prepare({"image": encode(image), "mask": encode(mask)}, plan(bundle, **options), bundle, DECODER)
    assert ("pixels" in arrays, "detail" in arrays) == {
        "network": (True, False),
        "exemplar": (False, True),
        "network-exemplar": (True, True),
    }[METHODS[int(arrays["method"])]], "a job carries what its method works on, and nothing else"
    return METHODS[int(arrays["method"])]


def test_the_hole_decides_by_the_bundle_s_rules() -> None:
    image = noise(90, 90)
    assert method_of(RULED, image, white(90, 90, (20, 20, 60, 36))) == "exemplar", "16 pixels thick"
    assert method_of(RULED, image, white(90, 90, (20, 20, 50, 50))) == "network-exemplar", "30 pixels thick"
    assert method_of(RULED, noise(200, 200), white(200, 200, (50, 50, 90, 90))) == "network", "no rule is for larger crops"
    assert method_of(RULED, image, white(90, 90)) == "network", "nothing is to be filled"
    assert method_of(SPEC, image, white(90, 90, (20, 20, 60, 36))) == "network", "a bundle without rules"


@pytest.mark.parametrize("option", [{"steps": 3}, {"preset": "fast"}, {"sampler": "ddim"}, {"eta": 0.0}, {"spacing": "uniform"}])
def test_options_of_the_network_choose_the_network(option: dict[str, Any]) -> None:
    image, mask = noise(90, 90), white(90, 90, (20, 20, 60, 36))
    assert method_of(RULED, image, mask, **option) == "network"
    assert method_of(RULED, image, mask, method="network-exemplar", **option) == "network-exemplar"


def test_uncopyable_hole_is_filled_by_network_or_refused() -> None:
    image, mask = noise(30, 30), white(30, 30, (4, 4, 26, 26))
    assert method_of(RULED, image, mask) == "network"
    with pytest.raises(InvalidOption, match="exemplar: no known 5 × 5 pixels around the hole") as caught:
        method_of(RULED, image, mask, method="exemplar")
    assert caught.value.field == "method"


def test_without_the_package_that_copies_the_network_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patchmatch, "PACKAGE", "a_package_that_is_not_there")
    assert method_of(RULED, noise(90, 90), white(90, 90, (20, 20, 60, 36))) == "network"
    for method in ("exemplar", "network-exemplar"):
        with pytest.raises(InvalidOption, match="the package patchmatch-cython is not installed;") as caught:
            plan(method=method)
        assert caught.value.field == "method"


def test_an_answer_without_the_network_has_no_steps() -> None:
    chosen = plan(method="exemplar", seed=4)
    arrays = prepare(encode(noise(40, 40)), encode(white(40, 40, (9, 9, 19, 19))), chosen)
    file = TASK.present([paint(arrays)], chosen, SPEC, PNG)
    assert isinstance(file, FileAnswer) and file.headers == {"X-Seed": "4", "X-Steps": "0", "X-Method": "exemplar"}
    answer = TASK.present([paint(arrays)], chosen, SPEC, JSON)
    assert isinstance(answer, InpaintAnswer) and (answer.steps, answer.sampler, answer.method) == (0, "none", "exemplar")


def test_copy_source_is_bounded_at_scale_of_image() -> None:
    chosen = plan(method="exemplar", size="fit")
    [arrays] = TASK.prepare({"image": encode(noise(40, 60))}, plan(method="exemplar", mask="center", size="fit"), SPEC, DECODER)
    assert arrays["detail"].shape == (40, 60, 3)
    large = Image.new("RGB", (2000, 1500))
    [arrays] = TASK.prepare(
        {"image": encode(large), "mask": encode(white(1500, 2000, (500, 500, 800, 800)))}, chosen, SPEC, ImageDecoder(4_000_000)
    )
    assert 0.9 * 2**20 < arrays["detail_missing"].size <= 2**20
    assert np.count_nonzero(arrays["detail_missing"]) <= 2**17


def test_copied_patches_share_no_batch_with_steps_of_the_network() -> None:
    pixels, detail = {"pixels": (16, 16, 3)}, {"detail": (40, 60, 3)}
    assert TASK.bucket(plan(), SPEC, pixels) != TASK.bucket(plan(), SPEC, pixels | detail)


def test_job_steps_sum_all_samples_and_windows() -> None:
    options = plan(steps=3, samples=2, size="tile", sampler="ddim")
    image, mask = encode(noise(60, 200)), encode(white(60, 200, (2, 2, 196, 56)))
    [arrays] = InpaintTask().prepare({"image": image, "mask": mask}, options, SPEC, ImageDecoder(1_000_000))
    assert len(arrays["windows"]) > 1
    assert InpaintTask().steps(options, arrays) == 3 * 2 * len(arrays["windows"])


@pytest.mark.parametrize(("method", "of_network"), [("exemplar", 0), ("network-exemplar", 3)])
def test_copying_counts_as_steps_of_each_sample(method: str, of_network: int) -> None:
    arrays = {"method": np.array(METHODS.index(method), np.uint8), "windows": np.zeros((1, 2), np.int32)}
    options = plan(steps=3, samples=2, sampler="ddim")
    assert InpaintTask().steps(options, arrays) == 2 * (of_network + COPYING_STEPS)
