"""HMR2 beyond its recorded cases (tests/golden/hmr2): crops against OpenCV's definition, bodies against what turning them must do."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from torch import Tensor

from models.checkpoints import CheckpointError, detect, families, read_checkpoint
from models.merge_schedule import MergeSchedule
from models.people.crops import ASPECT, SquareFrame, antialias_sigmas, crop, expand, image_focal, image_translation, project, square_boxes
from models.people.smpl import SMPLBody, SMPLParameters, rotations_from_6d
from models.systems.hmr2.model import HMR2, HMR2Config, QueryInit
from tests.golden.__main__ import run
from tests.golden.case import GOLDEN, read_case
from tests.golden.checks import full_sizes, loads_strictly, relative_deviation, round_trips
from tests.golden.replays.hmr2 import build

CASES = GOLDEN / "hmr2"
NETWORKS = ("tiny_forward", "tiny_meanshape_ief")

SMALL = HMR2Config(
    image_size=96, width=32, depth=2, heads=4, decoder_width=24, decoder_depth=2, decoder_heads=3, decoder_head_dim=8, decoder_hidden=40
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("case", ["preprocess", *NETWORKS])
def test_recorded_cases(case: str) -> None:
    assert run(CASES / case)


@pytest.mark.parametrize("name", full_sizes("hmr2"))
def test_the_published_size_loads_strictly(name: str) -> None:
    loads_strictly(full_sizes("hmr2")[name], "hmr2")


def test_the_published_body_loads_strictly() -> None:
    """Into `SMPLBody`, which a user's own file fills: an import leaves it behind."""
    [published] = full_sizes("hmr2").values()
    with torch.device("meta"):
        body = SMPLBody()
    ours = {key.removeprefix("smpl."): value for key, value in published.items() if key.startswith("smpl.")}
    body.load_state_dict(ours, strict=True, assign=True)
    retained = families()["hmr2"].clean(published)
    assert not any(key.startswith(("smpl.", "discriminator.")) for key in retained)


@pytest.mark.parametrize("case", NETWORKS)
def test_import_and_export_are_bit_exact(case: str) -> None:
    recorded = read_case(CASES / case)
    heads = {"heads": 4, "decoder_heads": recorded.config["smpl_head"]["TRANSFORMER_DECODER"]["heads"]}
    published = read_checkpoint(recorded.checkpoint)
    exported = round_trips(published, "hmr2", heads)
    assert exported.keys() == {key for key in published if key.startswith(("backbone.", "smpl_head."))}


def test_the_family_is_found_from_the_keys() -> None:
    [published] = full_sizes("hmr2").values()
    assert detect(published) == ["hmr2"]


@pytest.mark.parametrize("case", NETWORKS)
def test_bfloat16_deviates_by_less_than_fifteen_percent(case: str) -> None:
    recorded = read_case(CASES / case)
    model = build(recorded).bfloat16()
    with torch.no_grad():
        answer = model(recorded.inputs["img"].bfloat16())
    for got, name in ((answer.person.betas, "betas"), (answer.person.camera, "pred_cam"), (answer.translation, "pred_cam_t")):
        assert relative_deviation(got, recorded.outputs[name]) < 0.15, name
    assert relative_deviation(answer.person.rotations[:, 1:], recorded.outputs["body_pose"]) < 0.15


def test_zero_merging_is_plain_model_and_merging_drops_tokens() -> None:
    torch.manual_seed(0)
    model, crops = HMR2(SMALL).eval(), torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        plain, off, merged = (
            model(crops),
            model(crops, merge=MergeSchedule.from_list([0, 0])),
            model(crops, merge=MergeSchedule.constant(3)),
        )
    assert torch.equal(plain.person.rotations, off.person.rotations)
    assert (plain.tokens_out, merged.tokens_out) == (12, 6)
    assert torch.isfinite(merged.person.rotations).all()


def test_equal_tokens_merge_without_a_trace() -> None:
    """Proportional attention makes equal tokens one: an image without content, and no positions."""
    torch.manual_seed(0)
    model = HMR2(SMALL).eval()
    with torch.no_grad():
        model.backbone.pos_embed.zero_()
        model.backbone.patch_embed.proj.weight.zero_()
        plain, merged = model(torch.randn(1, 3, 96, 96)), model(torch.randn(1, 3, 96, 96), merge=MergeSchedule.constant(3))
    assert torch.allclose(plain.person.rotations, merged.person.rotations, atol=1e-5)
    assert torch.allclose(plain.translation, merged.translation, rtol=1e-4)


def test_the_sides_of_a_crop_are_not_looked_at() -> None:
    torch.manual_seed(0)
    model, crops = HMR2(SMALL).eval(), torch.randn(1, 3, 96, 96)
    other = crops.clone()
    other[..., :32] = 5.0
    other[..., -32:] = -5.0
    with torch.no_grad():
        assert torch.equal(model(crops).person.camera, model(other).person.camera)


@pytest.mark.parametrize("query", list(QueryInit))
def test_passes_accumulate(query: QueryInit) -> None:
    """A pass from a zero token always adds the same; from the estimate, the next one starts where the last one ended."""
    torch.manual_seed(0)
    once, thrice = HMR2(replace(SMALL, query=query)).eval(), HMR2(replace(SMALL, query=query, passes=3)).eval()
    thrice.load_state_dict(once.state_dict())
    crops = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        start, after = once.decoder.readout.init_betas, once(crops).person.betas
        expected = start + 3 * (after - start)
        got = thrice(crops).person.betas
    assert torch.allclose(got, expected, atol=1e-6) is (query is QueryInit.ZERO)


@pytest.mark.parametrize(("image_size", "patch_size", "ratio"), [(96, 16, 1), (96, 16, 2), (96, 16, 4), (80, 8, 1)])
def test_overlapping_patches_are_as_many_as_the_ratio_says(image_size: int, patch_size: int, ratio: int) -> None:
    """The published padding is made for patches of 16."""
    config = replace(SMALL, image_size=image_size, patch_size=patch_size, patch_ratio=ratio, depth=1)
    assert config.grid == (image_size // patch_size * ratio, (image_size - 64) // patch_size * ratio)
    with torch.no_grad():
        answer = HMR2(config).eval()(torch.randn(1, 3, image_size, image_size))
    assert answer.features.shape == (1, answer.tokens_in, 32)


def test_a_ratio_that_does_not_divide_the_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="patch_ratio: 3 does not divide patch_size 16"):
        replace(SMALL, patch_ratio=3)


def test_depth_is_in_proportion_to_the_focal_length() -> None:
    torch.manual_seed(0)
    model, crops = HMR2(SMALL).eval(), torch.randn(1, 3, 96, 96)
    other = HMR2(replace(SMALL, focal=1000.0)).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = model(crops).translation * torch.tensor([1, 1, 0.2])
        assert torch.allclose(other(crops).translation, expected)


def test_six_numbers_are_two_columns_of_a_rotation() -> None:
    turns = torch.from_numpy(Rotation.random(8, random_state=0).as_matrix()).float()
    six = torch.cat([turns[:, :, 0], turns[:, :, 1]], dim=1)
    assert torch.allclose(rotations_from_6d(six), turns, atol=1e-6)
    stretched = torch.cat([3 * six[:, :3], six[:, 3:] - 0.7 * six[:, :3]], dim=1)
    assert torch.allclose(rotations_from_6d(stretched), turns, atol=1e-5)


def synthetic_body() -> SMPLBody:
    return SMPLBody.from_checkpoint(read_checkpoint(CASES / "tiny_forward" / "checkpoint.pth"))


def test_global_rotation_turns_all_vertices_about_the_pelvis() -> None:
    body, turn = synthetic_body(), torch.from_numpy(Rotation.random(random_state=1).as_matrix()).float()
    at_rest = SMPLParameters(torch.eye(3).expand(1, 24, 3, 3).clone(), torch.zeros(1, 10), torch.zeros(1, 3))
    turned = replace(at_rest, rotations=torch.cat([turn.expand(1, 1, 3, 3), at_rest.rotations[:, 1:]], dim=1))
    pelvis = body.J_regressor[0] @ body.v_template
    sums = body.lbs_weights.sum(dim=1, keepdim=True)
    still = body(at_rest).vertices[0]
    assert torch.allclose(still, body.v_template * sums, atol=1e-5)
    expected = (body.v_template - pelvis) @ turn.T + pelvis
    assert torch.allclose(body(turned).vertices[0], expected * sums, atol=1e-4)


def test_a_batch_of_bodies_is_each_of_them() -> None:
    body = synthetic_body()
    turns = torch.from_numpy(Rotation.random(48, random_state=2).as_matrix()).float().view(2, 24, 3, 3)
    people = SMPLParameters(turns, torch.randn(2, 10, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 3))
    both = body(people)
    for row in range(2):
        alone = body(SMPLParameters(people.rotations[row : row + 1], people.betas[row : row + 1], people.camera[row : row + 1]))
        assert torch.allclose(both.keypoints[row : row + 1], alone.keypoints, atol=1e-5)


def test_low_precision_network_drives_full_precision_mesh() -> None:
    recorded = read_case(CASES / "tiny_forward")
    with torch.no_grad():
        person = build(recorded).bfloat16()(recorded.inputs["img"].bfloat16()).person
        posed = synthetic_body()(person)
    assert posed.vertices.dtype is torch.float32
    assert relative_deviation(posed.vertices, recorded.outputs["vertices"]) < 0.1


def opencv_crop(picture: np.ndarray, centre: np.ndarray, side: float, size: int) -> np.ndarray:
    """Pixel by pixel: OpenCV's bilinear warp, zeros outside. Its coordinates are integers: in 1/1024 pixel, for x the beginning and the
    offset each rounded, for y their sum; then in 1/32 pixel, halves rounded up."""
    height, width, channels = picture.shape
    padded = np.zeros((height + 2, width + 2, channels))
    padded[1:-1, 1:-1] = picture
    output = np.zeros((size, size, channels))
    for row in range(size):
        for column in range(size):
            start, offset = (centre.astype(float) - side / 2) * 1024, np.array([column, row]) * side / size * 1024
            x = (np.rint(start[0]) + np.rint(offset[0]) + 16) // 32 / 32
            y = (np.rint(start[1] + offset[1]) + 16) // 32 / 32
            if not (-1 <= x < width and -1 <= y < height):
                continue
            left, top = int(np.floor(x)), int(np.floor(y))
            fx, fy = x - left, y - top
            cell = padded[top + 1 : top + 3, left + 1 : left + 3]
            output[row, column] = (cell * np.outer([1 - fy, fy], [1 - fx, fx])[:, :, None]).sum(axis=(0, 1))
    return output


def test_crops_are_opencvs_with_scikit_images_smoothing() -> None:
    """A small square is enlarged as it is; a large one is smoothed first, over the whole picture with its edge repeated."""
    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    centres, sides = torch.tensor([[20.3, 31.7], [60.0, 5.0]]), torch.tensor([23.0, 81.0])
    small, large = crop(torch.from_numpy(picture), centres, sides, 16, blur=True).numpy()
    assert np.array_equal(small, np.floor(opencv_crop(picture, centres[0].numpy(), 23.0, 16) + 0.5))
    deviation = float(antialias_sigmas(sides, 16)[1])
    assert deviation > 0
    smooth = gaussian_filter(picture.astype(np.float64), (deviation, deviation, 0), mode="nearest", truncate=4.0)
    assert np.allclose(large, opencv_crop(smooth, centres[1].numpy(), 81.0, 16), atol=1e-3)


def test_columns_and_rows_are_what_opencv_samples() -> None:
    """Recorded from OpenCV 4.11: it rounds the tenth column and the tenth row of the same crop to different 32ths of a pixel."""
    stripes = (torch.arange(90) * 97 % 256).to(torch.uint8).expand(90, 90)
    place = torch.tensor([[51.11978, 51.11978]]), torch.tensor([46.822113]), 16
    across, down = (crop(picture.unsqueeze(2), *place)[0, :, :, 0] for picture in (stripes, stripes.T))
    assert across[0].tolist() == [129, 155, 184, 85, 134, 179, 40, 66, 95, 124, 150, 179, 205, 42, 87, 137]
    assert down[:, 0].tolist() == [129, 155, 184, 85, 134, 179, 40, 66, 95, 121, 150, 179, 205, 42, 87, 137]


def test_coordinates_between_two_of_opencvs_steps_are_rounded_up() -> None:
    """Stripes of one pixel, seen 1/64 pixel off: OpenCV samples 1/32 pixel off, where 8 of 255 of the neighbour show."""
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(20).expand(40, 40).unsqueeze(2)
    seen = crop(stripes, torch.tensor([[20 + 1 / 64, 20.0]]), torch.tensor([16.0]), 16)
    assert set(seen.flatten().tolist()) == {8, 247}


def test_boxes_grow_to_the_aspect_and_never_shrink() -> None:
    boxes = torch.tensor([[0.0, 0.0, 30.0, 30.0], [0.0, 0.0, 10.0, 400.0], [5.0, 5.0, 24.2, 30.6]])
    grown = expand(boxes)
    sides = grown[:, 2:] - grown[:, :2]
    assert torch.allclose(sides[:, 1] / sides[:, 0], torch.tensor(256 / 192).expand(3))
    assert (grown[:, :2] <= boxes[:, :2] + 1e-4).all() and (grown[:, 2:] >= boxes[:, 2:] - 1e-4).all()
    assert torch.equal(square_boxes(grown)[1], sides[:, 1])
    assert torch.allclose(square_boxes(boxes, ASPECT)[1], sides[:, 1])
    assert torch.equal(square_boxes(boxes)[1], torch.tensor([30.0, 400.0, 30.6 - 5.0]))


def test_all_cameras_show_a_body_at_the_same_place() -> None:
    """The same points through the crop's, the picture's and the tracker's camera: far from a body, perspective is nearly the same."""
    camera, box = torch.tensor([[0.9, 0.1, -0.2]]), torch.tensor([[40.0, 30.0, 120.0, 190.0]])
    width, height, points = 320, 240, torch.tensor([[[0.1, 0.2, 0.0], [-0.3, 0.1, 0.0]]])
    centre, side = square_boxes(box)
    focal = image_focal(width, height, 256)
    in_picture = project(points, image_translation(camera, centre, side, width, height, focal), focal) + torch.tensor([160.0, 120.0])
    in_crop = project(points, torch.tensor([[0.1, -0.2, 2 * 5000 / (256 * 0.9)]]), 5000.0)  # pixels of 256, from the centre
    assert torch.allclose(in_picture, centre + in_crop * side / 256, atol=0.5)
    frame = SquareFrame(width, height)
    in_frame = frame.project_joints(points, frame.translation(camera, box)) * frame.padded_side - torch.tensor([0.0, 40.0])
    assert torch.allclose(in_frame, in_picture, atol=0.5)


def test_lightning_file_with_yacs_loads_and_with_code_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """yacs need not be there: its class is a dict with attributes, and so is the stand-in."""
    settings_class = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    module = ModuleType("yacs.config")
    module.CfgNode = settings_class  # type: ignore[attr-defined]
    settings = settings_class(SIZE=256)
    settings.__dict__["__immutable__"] = True
    file = tmp_path / "model.ckpt"
    with monkeypatch.context() as with_yacs:
        with_yacs.setitem(sys.modules, "yacs", ModuleType("yacs"))
        with_yacs.setitem(sys.modules, "yacs.config", module)
        torch.save({"state_dict": {"w": torch.ones(2)}, "hyper_parameters": {"cfg": settings}}, file)
    assert torch.equal(read_checkpoint(file)["w"], torch.ones(2))

    torch.save({"state_dict": {"w": torch.ones(2)}, "hyper_parameters": Code()}, file)
    with pytest.raises(CheckpointError, match="refused"):
        read_checkpoint(file)


class Code:
    def __reduce__(self) -> tuple[object, tuple[bytes]]:
        return pickle.loads, (b"",)


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    model = HMR2(replace(SMALL, query=QueryInit.ESTIMATE, drop_path=0.0))
    answer = model(torch.randn(2, 3, 96, 96))
    total: Tensor = answer.person.rotations.sum() + answer.person.betas.sum() + answer.translation.square().sum()
    total.backward()
    untouched = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert untouched == []
