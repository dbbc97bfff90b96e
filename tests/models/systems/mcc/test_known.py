"""An MCC whose queries know both sides of an object: where a camera sees them, how far they are from what it saw, and what lies behind."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import Tensor, nn

from models.bundle_schema import QuerySpace
from models.registry import read_config
from models.systems.mcc.init_attention import init_nearest_attention
from models.systems.mcc.model import MCC, MCCConfig
from models.systems.mcc.photo_pipeline import PhotographMCCConfig
from models.systems.mcc.query_geometry import (
    FEATURE_COUNT,
    BackSurface,
    BackSurfaceConfig,
    BackSurfaceNet,
    Projection,
    decode_geometry,
    fit_projection,
    geometry_channels,
    nearest_pixels,
    pixel_centres,
    query_features,
)
from models.systems.mcc.query_geometry import SceneGeometry as KnownSides
from models.systems.mcc.scene_inputs import normalise_points
from models.systems.mcc.steps import ReconstructionSteps
from models.systems.mcc.system import latent_values
from tests.models.systems.mcc.test_mcc_steps import CPU, agree, find_occupied, run

SIZE = 32
STEEP = 2e-5
"""Rounding of a probability, between batches of other shapes: distances are known to some bits, and features rise fast with them."""
CONFIG = MCCConfig(
    image_size=48,
    patch_size=6,
    width=48,
    depth=1,
    heads=4,
    window=4,
    window_heads=4,
    decoder_width=96,
    decoder_depth=1,
    decoder_heads=4,
    regress_colour=True,
    drop_path=0.0,
    back=BackSurfaceConfig(widths=(8, 16)),
)


def ball(distance: float = 4.0, focal: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first and the last point on the ray of each pixel of a ball of radius 1, and whether there are any.

    The points are (n, n, 3), in the camera's frame. distance: of the ball's centre."""
    rays = torch.cat([pixel_centres(SIZE, torch.zeros(1, dtype=torch.float64)) / focal, torch.ones(SIZE**2, 1)], dim=1).view(SIZE, SIZE, 3)
    a, half = rays.square().sum(dim=-1), rays[..., 2] * distance
    rest = half.square() - a * (distance**2 - 1)
    root = rest.clamp(min=0).sqrt()
    front, back = (rays * ((half + sign * root) / a).unsqueeze(-1) for sign in (-1, 1))
    return front, back, rest > 0


def error_in_pixels(projection: Projection, points: Tensor, valid: Tensor) -> float:
    places = projection.project(points.view(1, -1, 3).float()).view(SIZE, SIZE, 2)
    expected = pixel_centres(SIZE, places).view(SIZE, SIZE, 2)
    return float((places - expected)[valid].abs().max()) * SIZE / 2


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("lens", ["pinhole", "parallel"])
def test_camera_is_fitted_despite_wrong_depths(lens: str, noise: float) -> None:
    front, back, valid = ball()
    rays = front / front[..., 2:]
    if lens == "parallel":
        flat = torch.cat([pixel_centres(SIZE, front).view(SIZE, SIZE, 2), torch.zeros(SIZE, SIZE, 1)], dim=2)
        along = torch.tensor([0.0, 0.0, 1.0]).expand_as(front)
        front, back = flat + front[..., 2:] * along, flat + back[..., 2:] * along
        rays = along
    front = front + noise * torch.randn(SIZE, SIZE, 1, generator=torch.Generator().manual_seed(0)) * rays
    _, scale, centre = normalise_points(front[valid])
    scaled = torch.tensor([1.2, 0.9, 1.1])  # as augmentation does
    seen, behind = ((points / scale - centre) * scaled for points in (front, back))
    projection = fit_projection(seen[None].float(), valid[None])
    assert error_in_pixels(projection, seen, valid) < 0.01
    assert error_in_pixels(projection, behind, valid) < 0.01
    found = projection.rays(pixel_centres(SIZE, seen)[None].float()).view(SIZE, SIZE, 3)
    expected = rays * scaled / (rays * scaled).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found[valid], expected[valid].float(), atol=1e-3, rtol=0)


def test_a_wall_that_faces_the_camera_is_seen_in_its_pixels() -> None:
    wall = torch.cat([pixel_centres(SIZE, torch.zeros(1)).view(SIZE, SIZE, 2), torch.zeros(SIZE, SIZE, 1)], dim=2)
    everywhere = torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    projection = fit_projection(wall[None], everywhere)
    assert error_in_pixels(projection, wall, everywhere[0]) < 0.01
    torch.testing.assert_close(projection.rays(torch.zeros(1, 1, 2)), torch.tensor([[[0.0, 0.0, 1.0]]]), atol=1e-3, rtol=0)


def test_a_map_without_points_gives_numbers() -> None:
    nothing = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    projection = fit_projection(torch.zeros(1, SIZE, SIZE, 3), nothing)
    assert projection.project(torch.randn(1, 9, 3)).isfinite().all() and nearest_pixels(nothing)[1].min() >= 2 * SIZE


def test_the_nearest_pixel_is_the_nearest_of_all() -> None:
    valid = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(1)) < torch.tensor([0.5, 0.1, 0.03]).view(3, 1, 1)
    index, distance = nearest_pixels(valid)
    place = torch.stack(torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij"), dim=-1).view(-1, 2).float()
    for sample in range(3):
        assert valid[sample].flatten()[index[sample]].all()
        every = torch.cdist(place, place)[:, valid[sample].flatten()].min(dim=1).values.view(12, 12)
        torch.testing.assert_close(distance[sample], every)


class Truth(BackSurfaceNet):
    """A network that answers the truth."""

    def __init__(self, thickness: Tensor, colours: Tensor) -> None:
        nn.Module.__init__(self)
        self.answer = BackSurface(thickness, colours)

    def forward(self, images: Tensor, seen: Tensor, valid: Tensor) -> BackSurface:
        return self.answer


def test_a_query_knows_where_it_lies_between_both_sides() -> None:
    front, back, valid = ball()
    scale, centre = 0.5, torch.tensor([0.0, 0.0, 7.0])
    seen, behind = ((points / scale - centre).float()[None] for points in (front, back))
    seen = seen.masked_fill(~valid[None, ..., None], 0.0)
    lost = valid[None].clone()
    lost[0, 14, 17] = False  # by the sensor
    thickness = (behind - seen).norm(dim=-1).masked_fill(~lost, 0.0)
    images = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 48, 48)
    colours = torch.tensor([0.0, 0.0, 1.0]).expand(1, SIZE, SIZE, 3)
    channels = geometry_channels(Truth(thickness, colours), images, seen, lost, side=8)
    assert channels.shape == (1, 65, 16 * 11) and (channels[:, 0] == 0).all()
    sides = KnownSides(*decode_geometry(channels, 8), torch.zeros(1, 4, 8, 8))
    middle = 4 / scale - 7.0  # of the ball, whose radius is 2
    queries = torch.tensor([[0.0, 0.0, middle + z] for z in (-2.0, 2.0, 0.0, -3.0, 3.0)] + [[2.3, 0.0, middle]])
    on_front, on_back, inside, before, beyond, adjacent = query_features(sides, queries[None])[0]
    assert on_front.shape == (FEATURE_COUNT,)
    near_front, near_back = slice(4, 8, 2), slice(5, 8, 2)  # pixels are 0.13 wide
    assert (on_front[near_front] > 0.7).all() and (on_back[near_back] > 0.7).all()
    assert on_front[1:8:2].max() < 0.01 and inside[:8].max() < 0.01
    behind_front, behind_back = 8, 9  # the steepest
    assert [bool(one[behind_front] > 0.9) for one in (inside, before, beyond)] == [True, False, True]
    assert [bool(one[behind_back] > 0.9) for one in (inside, before, beyond)] == [False, False, True]
    body = 16
    assert inside[body] > 0.99 and max(before[body], beyond[body], adjacent[body]) < 0.01
    assert inside[14] > 0.9 and adjacent[14] < -0.9  # the outline
    assert on_front[-3:].tolist() == pytest.approx([0.5, -0.5, -0.5], abs=0.05)
    assert on_back[-3:].tolist() == pytest.approx([-0.5, -0.5, 0.5], abs=0.05)


def scene(seed: int) -> dict[str, Tensor]:
    front, _, valid = ball(3.0 + seed)
    points, _, _ = normalise_points(front.masked_fill(~valid.unsqueeze(-1), torch.inf))
    pixels = torch.randint(0, 256, (48, 48, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return {"pixels": pixels, "seen": points.float(), "asks": torch.tensor([10**7, 1000])}


@pytest.fixture(scope="module")
def knowing() -> MCC:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MCC(CONFIG).eval()
        init_nearest_attention(model)
        assert model.back is not None and model.knowing is not None
        for parameter in (*model.back.parameters(), *model.knowing.parameters(), model.decoder_pred.bias):
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def test_cached_scenes_answer_alone_in_a_batch_and_again(knowing: MCC) -> None:
    requested = {"spacing": 0.3, "space": QuerySpace(reach=0.6).model_dump(), "threshold": 0.5}
    steps, jobs = ReconstructionSteps(knowing, CPU), [scene(seed) for seed in range(3)]
    joint = run(steps, jobs, [requested | {"scene": str(number)} for number in range(3)])
    for job, answer in zip(jobs, joint, strict=True):
        [alone] = run(ReconstructionSteps(knowing, CPU), [job], [requested])
        assert len(find_occupied(alone, 0.5)) > 0
        agree(alone, answer, 0.5, STEEP)
        [again] = run(
            ReconstructionSteps(knowing, CPU), [{"latent": answer["latent"], "seen": job["seen"], "asks": job["asks"]}], [requested]
        )
        agree(alone, again, 0.5, STEEP)
    assert joint[0]["latent"].numel() == latent_values(dataclasses.asdict(CONFIG))


def test_what_lies_behind_changes_the_answer(knowing: MCC) -> None:
    job = scene(0)
    images = job["pixels"].permute(2, 0, 1)[None] / 255
    queries = torch.randn(1, 200, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        latent = knowing.encode(images, job["seen"][None])
        thicker = latent.clone()
        thicker[:, 1:, 2 * CONFIG.width :].unflatten(2, (16, 11))[..., 7] += 1
        one, other = (
            knowing.predict_occupancy(knowing.decode_queries(knowing.cache_scene(inputs), queries)) for inputs in (latent, thicker)
        )
    assert (one - other).abs().max() > 0.1


@pytest.mark.parametrize("kind", [MCCConfig, PhotographMCCConfig])
def test_a_bundle_says_it_in_its_config(kind: type[MCCConfig]) -> None:
    """A pipeline of photographs has the config of its member for shapes."""
    answer = json.loads(json.dumps(dataclasses.asdict(CONFIG)))
    assert read_config(kind, answer) == kind(**{field.name: getattr(CONFIG, field.name) for field in dataclasses.fields(MCCConfig)})
    with pytest.raises(ValueError, match="back: widths"):
        read_config(kind, answer | {"back": {"widths": [8, 10]}})


def test_a_map_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match="back: the map of seen points is 32 wide, which is not a multiple of 64"):
        dataclasses.replace(CONFIG, back=BackSurfaceConfig(widths=(8,) * 7))
