"""Images without depth, if a bundle has a member that estimates it: `POST /v1/reconstruct` on a running service."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.bundle import BundleError, write
from models.bundle_schema import QuerySpace
from models.loading import load
from models.systems.pipeline_bundles import write_photo_pipeline
from opsin import Client, Refused
from server.tasks.reconstruct.inputs import CONTEXT, REACH, photograph, to_depth
from tests.support.bundles.analytic_mcc import write_shell
from tests.support.bundles.onnx import SIDE, ball, write_teller
from tests.support.images import CAPTURE, FOV, WIDTH, arrays, depth, image, png
from tests.support.job_api import accepted_id, comes_to, result
from tests.support.processes import opsin
from tests.support.task_clients import JSON, Sculptor

PIXELS, THERE = ball()
PHOTOGRAPH = png(np.dstack([PIXELS, np.where(THERE, 255, 0).astype(np.uint8)]))
MASK = png(THERE.astype(np.uint8) * 255)
FOCAL = WIDTH / 2 / np.tan(np.radians(FOV) / 2)


def alone(**files: bytes) -> dict[str, Any]:
    return {"files": {"image": PHOTOGRAPH, **files}, "model": "photographed"}


def test_an_image_alone_becomes_the_shape_that_its_depth_has(sculptor: Sculptor) -> None:
    answer = sculptor.run(**alone(), format="npz", headers=JSON).json()
    assert answer["metric"] is False and answer["model"] == "photographed" and answer["scene"]
    answer = sculptor.run(**alone(), format="npz")
    assert answer.headers["x-metric"] == "false"
    found = arrays(answer.content)
    front = found["points"][found["seen"] > 0]
    assert np.median(front[:, 2]) == pytest.approx(1, abs=0.02)  # lengths are in units of the median depth
    true = depth()[THERE]
    assert len(front) == len(true)
    depths = front[np.lexsort((front[:, 0] / front[:, 2], np.round(front[:, 1] / front[:, 2] * FOCAL)))][:, 2]
    # both are affine in disparity, within the 200 steps of a byte and the smoothing between pixels
    assert np.corrcoef(1 / np.sort(depths), 1 / np.sort(true))[0, 1] > 0.995
    assert np.ptp(depths) == pytest.approx(REACH * np.sqrt(THERE.sum()) / FOCAL, rel=0.02)


def test_default_field_of_view_is_60_degrees_and_can_be_set(sculptor: Sculptor) -> None:
    def bounds(**options: Any) -> np.ndarray:
        answer = sculptor.ask(**alone(), format="npz", **options)
        assert answer.status_code == 200, answer.text
        found = arrays(answer.content)
        return np.ptp(found["points"][found["seen"] > 0], axis=0)

    usual = bounds(fov=None)
    np.testing.assert_allclose(usual, bounds(fov=60))
    np.testing.assert_allclose(usual, bounds(fov=None, fx=FOCAL), rtol=1e-5)
    assert bounds(fov=30)[0] == pytest.approx(usual[0] * np.tan(np.radians(15)) / np.tan(np.radians(30)), rel=0.1)


def test_a_mask_does_as_well_as_transparency(sculptor: Sculptor) -> None:
    masked = arrays(sculptor.run(**alone(image=png(PIXELS), mask=MASK), format="npz").content)
    clear = arrays(sculptor.run(**alone(), format="npz").content)
    np.testing.assert_allclose(masked["points"], clear["points"], atol=1e-5)


def test_with_depth_it_answers_as_its_member_for_shapes_does(sculptor: Sculptor) -> None:
    answer = sculptor.run(files=CAPTURE, model="photographed", format="npz", surface="network")
    assert "x-metric" not in answer.headers
    by_member = arrays(sculptor.run(files=CAPTURE, model="member", format="npz", surface="network").content)
    np.testing.assert_array_equal(arrays(answer.content)["cells"], by_member["cells"])
    assert sculptor.run(files=CAPTURE, model="photographed", headers=JSON).json()["metric"] is True


def test_jobs_and_kept_scenes_say_so_too(sculptor: Sculptor) -> None:
    job = accepted_id(sculptor.ask(**alone(), headers={"Prefer": "respond-async"}))
    comes_to(sculptor.gateway, job, "done")
    answer = result(sculptor.gateway, job, accept="application/json").json()
    assert answer["metric"] is False
    again = sculptor.gateway.http.get(f"/v1/scenes/{answer['scene']}", params={"threshold": 0.3})
    assert again.status_code == 200 and again.headers["x-metric"] == "false"


@pytest.mark.parametrize(
    ("files", "options", "field", "reason"),
    [
        ({"image": png(image())}, {}, "mask", "missing: of an image without depth, send a mask"),
        ({"image": png(PIXELS), "mask": png(np.zeros(THERE.shape, np.uint8))}, {}, "mask", "covers nothing"),
        ({"image": png(PIXELS), "mask": png(np.ones((9, 9), np.uint8) * 255)}, {}, "mask", "9 × 9 pixels, but the image"),
        ({"image": png(image(1, 500)), "mask": png(np.full((1, 500), 255, np.uint8))}, {}, "image", "its shorter side needs at least 9"),
        ({}, {"depth_scale": 1000}, "depth_scale", "is for `depth`, which was not sent"),
        ({}, {"fov": None, "fy": 50}, "fx", "missing: fy needs it"),
        ({}, {"fov": 1e-9}, "fov", "too few for a camera"),
        ({"mask": MASK}, {"fov": None, "fx": 1e8}, "fx", "too many for a camera"),
        ({}, {"spacing": 0.001}, "spacing", "cells"),
        ({}, {"model": "shell"}, "depth", "shell@1 names no member that estimates depth"),
        ({}, {"model": "hall"}, "depth", "hall@1 names no member that estimates depth"),
    ],
)
def test_what_cannot_be_done_is_refused(
    sculptor: Sculptor, files: dict[str, bytes], options: dict[str, Any], field: str, reason: str
) -> None:
    request = alone(**files) | options
    named, detail = sculptor.refusal(413 if field == "spacing" else 422, **request)
    assert named == field and reason in detail


def test_one_pixel_and_a_flat_image_have_a_shape_or_a_reason(sculptor: Sculptor) -> None:
    one = np.zeros(THERE.shape, np.uint8)
    one[20, 30] = 255
    field, detail = sculptor.refusal(422, **alone(image=png(PIXELS), mask=png(one)))
    assert field == "mask" and ("two are needed" in detail or "one and the same" in detail or "no point is left" in detail)
    flat = sculptor.run(**alone(image=png(np.full_like(PIXELS, 90)), mask=MASK), format="npz")
    found = arrays(flat.content)
    np.testing.assert_allclose(found["points"][found["seen"] > 0][:, 2], 1, atol=1e-3)


def test_the_client_and_the_command_send_an_image_alone(sculptor: Sculptor, tmp_path: Path) -> None:
    url = sculptor.gateway.url
    with Client(url) as client:
        found = client.reconstruct(PHOTOGRAPH, model="photographed", format="npz")
        assert not found.metric and found.count > 0
        with pytest.raises(Refused, match="names no member that estimates depth"):
            client.reconstruct(PHOTOGRAPH, model="shell")
        members = {model.name: model for model in client.models()}["photographed"]
        assert members.state == "ready"
    listed = {model["name"]: model for model in sculptor.gateway.http.get("/v1/models").json()["models"]}
    assert listed["photographed"]["members"] == {"shape": "member@1", "depth": "teller@1"} and listed["shell"]["members"] == {}
    file = tmp_path / "ball.png"
    file.write_bytes(PHOTOGRAPH)
    ran = opsin("reconstruct", file, "--model", "photographed", "--url", url, "-o", tmp_path / "ball.glb")
    assert "in units of the median depth" in ran.stdout
    assert (tmp_path / "ball.glb").read_bytes().startswith(b"glTF")


@pytest.mark.parametrize("output", ["disparity", "depth"])
def test_depth_unit_is_median_and_extent_half_the_object(tmp_path: Path, output: str) -> None:
    shape, teller = write_shell(tmp_path), write_teller(tmp_path, output=output)
    spec = write_photo_pipeline(tmp_path, "joined", "1", shape, teller).spec
    estimate = np.random.default_rng(0).normal(size=(SIDE, SIDE)).astype(np.float32)
    found = to_depth(estimate, THERE, spec, FOCAL)
    inside = found[THERE]
    assert np.isnan(found[~THERE]).all() and np.median(inside) == pytest.approx(1, abs=1e-3)
    assert np.ptp(inside) == pytest.approx(REACH * np.sqrt(THERE.sum()) / FOCAL, rel=1e-3)
    nearer = to_depth(-estimate, THERE, spec, FOCAL)[THERE]
    assert np.corrcoef(inside, nearer)[0, 1] < -0.95
    assert (to_depth(5 * estimate + 3, THERE, spec, FOCAL)[THERE] == pytest.approx(inside, abs=1e-4)) and inside.min() > 0


def test_the_network_sees_the_square_around_the_object(tmp_path: Path) -> None:
    spec = write_photo_pipeline(tmp_path, "joined", "1", write_shell(tmp_path), write_teller(tmp_path)).spec
    mask = np.zeros((100, 200), np.bool_)
    mask[40:60, 100:140] = True
    rows = np.repeat(np.arange(100, dtype=np.uint8)[:, None], 200, axis=1)
    columns = np.repeat(np.arange(200, dtype=np.uint8)[None], 100, axis=0)
    image = Image.fromarray(np.dstack([rows, columns, rows]))
    seen, half = photograph(image, mask, spec).astype(int), 20 + CONTEXT * 40
    assert seen.shape == (SIDE, SIDE, 3)
    assert seen[0, 0, :2] == pytest.approx([50 - half, 120 - half], abs=1.5)
    assert seen[-1, -1, :2] == pytest.approx([50 + half, 120 + half], abs=1.5)
    mask[:, 100:140] = True  # now its square is wider than the image is high
    seen = photograph(image, mask, spec).astype(int)
    assert not seen[:3].any() and not seen[-3:].any() and seen[SIDE // 2, :, 1].min() > 50


def test_a_long_strip_takes_no_more_memory_than_it_has(tmp_path: Path) -> None:
    spec = write_photo_pipeline(tmp_path, "joined", "1", write_shell(tmp_path), write_teller(tmp_path)).spec
    mask = np.ones((2, 1_000_000), np.bool_)  # its square would have 10¹² pixels
    assert photograph(Image.new("RGB", (1_000_000, 2), "white"), mask, spec).shape == (SIDE, SIDE, 3)
    estimate = np.tile(np.arange(SIDE, dtype=np.float32), (SIDE, 1))
    found = to_depth(estimate, mask, spec, 1000.0)
    assert found.shape == mask.shape and (np.diff(found[0]) <= 0).all() and found[0, 0] > found[0, -1]


def test_members_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    shape, teller = write_shell(tmp_path), write_teller(tmp_path)
    with pytest.raises(BundleError, match="shell@1 is for task reconstruct; a bundle for depth is needed"):
        write_photo_pipeline(tmp_path, "joined", "1", shape, shape)
    with pytest.raises(BundleError, match="is of architecture onnx_depth; mcc is needed"):
        write_photo_pipeline(tmp_path, "joined", "1", teller, teller)
    with pytest.raises(BundleError, match="is for scenes; a photograph's depth is predicted for single objects"):
        write_photo_pipeline(tmp_path, "joined", "1", write_shell(tmp_path, "hall", space=QuerySpace(region="half-ball")), teller)
    assert not (tmp_path / "joined").exists()
    made = write_photo_pipeline(tmp_path, "joined", "1", shape, teller)
    changed = made.spec.model_copy(update={"config": {**made.spec.config, "depth_size": SIDE * 2}})
    with pytest.raises(BundleError, match="are not those of its member teller@1"):
        load(write(tmp_path, changed, made.weights_path, overwrite=True))


def test_a_starter_is_copied_next_to_its_pipeline(tmp_path: Path) -> None:
    site, bundles = tmp_path / "site", tmp_path / "bundles"
    write_shell(site / "opsin_starters", "reconstruct")
    (site / "opsin_starters-1.0.0.dist-info").mkdir()
    (site / "opsin_starters-1.0.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: opsin-starters\nVersion: 1.0.0\n")
    write_teller(bundles)
    words = ["bundles", "join", "objects", "--shape", "reconstruct", "--depth", "teller", "--bundles", str(bundles)]
    environment = os.environ | {"PYTHONPATH": str(site), "OPSIN_STARTERS": "true"}
    ran = subprocess.run([sys.executable, "-m", "opsin", *words], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0] == f"{bundles / 'reconstruct' / '1'}  copied from the starters"
    assert "shape" in (bundles / "objects/1.0.0/bundle.json").read_text() and (bundles / "reconstruct/1/bundle.json").is_file()
    for refused, reason in (
        (["--shape", "reconstruct"], "--depth: missing; a pipeline has --pose and --actions, or --shape and --depth"),
        (["--shape", "reconstruct", "--depth", "teller", "--rate", "5"], "--rate: not for a pipeline with --shape and --depth"),
        ([], "--pose and --actions: missing"),
        (["--shape", "nothing", "--depth", "teller"], "no bundle 'nothing' in"),
    ):
        ended = opsin("bundles", "join", "other", "--bundles", str(bundles), *refused)
        assert ended.returncode == 2 and reason in ended.stderr and not (bundles / "other").exists()
