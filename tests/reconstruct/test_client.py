"""The client and the command reconstruct through a running service."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opsin import AsyncClient, Client, Reconstruction, Refused
from opsin.point_rendering import ColouredPointCloud, render_turntable
from tests.support.images import CAPTURE, FOV, HEIGHT, WIDTH, depth, image, millimetres, npy, points
from tests.support.processes import opsin
from tests.support.task_clients import Sculptor


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """`photo.png` with `depth.png` and `points.npy` next to it."""
    (tmp_path / "photo.png").write_bytes(CAPTURE["image"])
    (tmp_path / "depth.png").write_bytes(CAPTURE["depth"])
    (tmp_path / "points.npy").write_bytes(npy(points()))
    return tmp_path / "photo.png"


def test_the_client_gives_points_and_says_how_they_came_about(sculptor: Sculptor, tmp_path: Path) -> None:
    with Client(sculptor.gateway.url) as client:
        found = client.reconstruct(image(), depth(), fov=FOV, format="ply", surface="network")
        assert isinstance(found, Reconstruction) and found.scene is not None
        assert found.points.shape == (found.count, 3) and found.colours.dtype == np.uint8 and found.count > 100
        assert found.bounds is not None and np.allclose(found.bounds[0], found.points.min(axis=0))
        assert (found.model, found.version) == ("shell", "1") and 0 < found.queries < 30**3 and 0 < found.scale < 1
        finer = client.scene(found.scene, spacing=0.1, format="npz", surface="network")
        assert finer.count > 4 * found.count and finer.scene == found.scene
        found.save(tmp_path / "shell.ply")
    assert (tmp_path / "shell.ply").read_bytes() == found.file


def test_maps_come_in_every_form_and_the_answer_may_come_later(sculptor: Sculptor, capture: Path) -> None:
    with Client(sculptor.gateway.url) as client:
        job = client.reconstruct(capture, capture.with_name("depth.png"), wait=False, fov=FOV, format="npz")
        assert [event.name for event in job.events()][-1] == "done"
        expected = job.result()
        by_array = client.reconstruct(capture, millimetres(), fov=FOV, format="npz")
        by_points = client.reconstruct(capture, points=points(), mask=np.ones((HEIGHT, WIDTH), bool), format="npz")
    assert np.array_equal(by_array.points, expected.points) and by_points.count == pytest.approx(expected.count, rel=0.05)


async def test_the_asynchronous_client_does_the_same(sculptor: Sculptor, capture: Path) -> None:
    async with AsyncClient(sculptor.gateway.url) as client:
        found = await client.reconstruct(capture, points=capture.with_name("points.npy"), format="npz")
        job = await client.reconstruct(capture, points=points(), wait=False, format="npz")
        assert (await job.result()).count == found.count
        assert found.scene is not None and (await client.scene(found.scene, format="ply")).count == found.count


def test_invalid_or_refused_input_is_error_with_field(sculptor: Sculptor) -> None:
    with Client(sculptor.gateway.url) as client:
        with pytest.raises(Refused) as caught:
            client.reconstruct(image(), depth())
        assert (caught.value.status, caught.value.field) == (422, "fx")
        with pytest.raises(Refused) as caught:
            client.scene("0" * 32)
        assert caught.value.status == 404
        with pytest.raises(ValueError, match="depth: an array of 2 dimensions"):
            client.reconstruct(image(), points(), fov=FOV)
        with pytest.raises(ValueError, match="a GLB holds a mesh"):
            _ = client.reconstruct(image(), depth(), fov=FOV).points


def test_the_command_writes_a_mesh_and_a_picture(sculptor: Sculptor, capture: Path, tmp_path: Path) -> None:
    output, sides = tmp_path / "shape.glb", tmp_path / "sides.png"
    focal = WIDTH / 2 / np.tan(np.radians(FOV) / 2)
    camera = f"{focal},{focal},{WIDTH / 2},{HEIGHT / 2}"
    ran = opsin(
        "reconstruct", capture, "--depth", capture.with_name("depth.png"), "--intrinsics", camera, "-o", output, "--picture", sides,
        "--url", sculptor.gateway.url,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert output.read_bytes().startswith(b"glTF")
    first, second = ran.stdout.splitlines()
    assert first.startswith(f"{output}  ") and " points, " in first and " queries, " in first
    assert "/v1/scenes/" in second
    picture = np.asarray(Image.open(io.BytesIO(sides.read_bytes())))
    assert picture.shape == (256, 8 * 256, 3) and (picture != 255).any(axis=2).mean() > 0.1


def test_the_command_prints_json(sculptor: Sculptor, capture: Path, tmp_path: Path) -> None:
    ran = opsin(
        "reconstruct", capture, "--points", capture.with_name("points.npy"), "--json", folder=tmp_path, OPSIN_URL=sculptor.gateway.url
    )
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert (
        answer["file"] == capture.with_suffix(".glb").name
        and (tmp_path / answer["file"]).is_file()
        and answer["points"] > 100
        and answer["seconds"] > 0
    )


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        ([], 1, "names no member that estimates depth"),
        (["--depth", "DEPTH", "--points", "DEPTH"], 2, "--points: cannot be combined with --depth"),
        (["--depth", "nothing.png"], 2, "nothing.png: no such file"),
        (["--depth", "DEPTH", "--fov", "60", "-o", "shape.stl"], 2, "must end in .glb, .ply or .npz"),
        (["--depth", "DEPTH", "--intrinsics", "1,2,3"], 2, "use FX, FX,FY or FX,FY,CX,CY in pixels"),
        (["--depth", "DEPTH"], 1, "missing: depth needs fx"),
        (["--depth", "DEPTH", "--fov", "60", "-o", "no/such/folder/shape.ply"], 2, "no/such/folder/shape.ply: cannot be written"),
    ],
)
def test_a_command_that_cannot_work_says_why(sculptor: Sculptor, capture: Path, arguments: list[str], code: int, reason: str) -> None:
    paths = [str(capture.with_name("depth.png")) if argument == "DEPTH" else argument for argument in arguments]
    ran = opsin("reconstruct", capture, *paths, OPSIN_URL=sculptor.gateway.url)
    assert ran.returncode == code and reason in ran.stderr and len(ran.stderr.splitlines()) == 1


def test_a_turntable_shows_near_points_over_far_ones() -> None:
    """Red is in front of blue for the camera; half a turn on it is behind."""
    plane = np.stack(np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 40)), axis=-1).reshape(-1, 2)
    front, back = (np.column_stack([plane, np.full(len(plane), z)]).astype(np.float32) for z in (2.0, 2.2))
    colours = np.repeat(np.array([[255, 0, 0], [0, 0, 255]], np.uint8), len(plane), axis=0)
    points = np.concatenate([front, back])
    sides = render_turntable(ColouredPointCloud(points, colours, np.full(len(points), 0.06, np.float32)), angles=(0, 180), size=64)
    assert sides.shape == (64, 128, 3)
    first, turned = sides[32, 32], sides[32, 64 + 32]
    assert first[0] > 0 == first[2] and turned[2] > 0 == turned[0]
    nothing = ColouredPointCloud(np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), np.empty(0, np.float32))
    assert (render_turntable(nothing, angles=(0,), size=8) == 255).all()
