"""3D in the playground: a picture with depth, the shape as it arrives, turning it, keeping it."""

from __future__ import annotations

import io
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import BrowserContext, FilePayload, Locator, Page, expect

from tests.browser.chromium import quiet_page
from tests.reconstruct.service import CAPTURE, npy, png, points
from tests.service import Service, eventually

pytestmark = pytest.mark.browser


def open_3d(page: Page, sample: str | None = "mug") -> Locator:
    page.get_by_role("tab", name="3D").click()
    panel = page.get_by_role("tabpanel", name="3D")
    if sample is not None:
        panel.get_by_role("button", name=f"A {sample}, with depth").click()
        expect(panel.get_by_role("button", name="Run")).to_be_enabled()
    return panel


def run(panel: Locator) -> None:
    panel.get_by_role("button", name="Run").click()
    expect(panel.locator("p.line")).to_contain_text("Done in")


def seen(panel: Locator) -> NDArray[np.int64]:
    """What is on the screen, of the shape."""
    return np.asarray(Image.open(io.BytesIO(panel.locator(".space canvas").screenshot())).convert("RGB")).astype(int)


def download(page: Page, panel: Locator, name: str, folder: Path) -> bytes:
    with page.expect_download() as download:
        panel.get_by_role("button", name=name).click()
    download.value.save_as(folder / "file")
    return (folder / "file").read_bytes()


def file(name: str, content: bytes) -> FilePayload:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": content}


def test_a_sample_becomes_a_mesh_and_points_that_can_be_kept(page: Page, tmp_path: Path) -> None:
    panel = open_3d(page)
    run(panel)
    mesh = trimesh.load(io.BytesIO(download(page, panel, "Download GLB", tmp_path)), file_type="glb").to_geometry()
    ply = download(page, panel, "Download PLY", tmp_path)
    cells = np.frombuffer(ply.partition(b"end_header\n")[2], np.dtype([("place", "<f4", 3), ("colour", "u1", 3)]))
    assert len(mesh.faces) > 1000
    assert f"{len(cells):,} points" in (panel.locator(".shape .caption").last.text_content() or "")
    radii = np.linalg.norm(cells["place"] - cells["place"].mean(axis=0), axis=1)
    assert radii.max() / radii.min() == pytest.approx(1, abs=0.5)  # the shell is thin


def test_the_shape_is_seen_and_turns_with_a_drag(page: Page) -> None:
    panel = open_3d(page)
    run(panel)
    canvas = panel.locator(".space canvas")
    before = seen(panel)
    assert len(np.unique(before.reshape(-1, 3), axis=0)) > 200  # shaded colours, no bare ground
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 220, box["y"] + 140, steps=5)
    page.mouse.up()
    dragged = seen(panel)
    assert (np.abs(dragged - before).max(axis=2) > 20).mean() > 0.05
    canvas.press("ArrowLeft")
    turned = seen(panel)
    assert (np.abs(turned - dragged).max(axis=2) > 20).any()
    panel.get_by_role("button", name="Reset view").click()
    page.mouse.move(0, 0)
    assert np.abs(seen(panel) - before).max() <= 8


def test_points_and_mesh_can_be_changed_without_asking_again(page: Page) -> None:
    panel = open_3d(page)
    run(panel)
    mesh = seen(panel)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/v1/reconstruct" in request.url else None)
    panel.get_by_text("Points", exact=True).click()
    points_seen = seen(panel)
    assert (points_seen != mesh).any()
    panel.get_by_label("Point size").press("End")
    assert (seen(panel) != points_seen).any()
    panel.get_by_label("Grid").uncheck()
    assert asked == []


def test_levels_arrive_and_stop_keeps_the_last_one(page: Page, service: Service) -> None:
    panel = open_3d(page)
    panel.get_by_label(re.compile("^Mode(?!l)")).select_option("dense")
    panel.get_by_label("Spacing").fill("0.03")
    panel.get_by_role("button", name="Run").click()
    expect(panel.locator(".shape")).to_contain_text("points shown")
    expect(panel.locator("p.line")).to_contain_text("Level ")
    panel.get_by_role("button", name="Stop").click()
    expect(panel.locator("p.line")).to_contain_text("Stopped at level")
    expect(panel.locator(".shape")).to_contain_text("Stopped at level")
    expect(panel.locator(".space canvas")).to_be_visible()
    expect(panel.get_by_role("button", name="Run")).to_be_enabled()
    idle = {"queued": 0, "running": 0}
    eventually(lambda: httpx.get(f"{service.url}/v1/status").json()["jobs"] == idle, "the work has ended in the service, too")


def test_what_the_service_keeps_is_removed_when_the_page_is_left(page: Page, service: Service) -> None:
    panel = open_3d(page)
    with page.expect_response("**/v1/reconstruct") as accepted:
        run(panel)
    job = service.url + accepted.value.headers["location"]
    assert httpx.get(job).json()["state"] == "done"
    page.goto(f"{service.url}/status")
    eventually(lambda: httpx.get(job).status_code == 404, "the job is gone")


def test_a_picture_and_its_depth_may_be_chosen_together_or_one_by_one(page: Page) -> None:
    panel = open_3d(page, None)
    expect(panel.locator("p.line")).to_have_text("Choose a picture with its depth map, or one of the samples.")
    panel.locator("input[type=file]").set_input_files([file("depth.png", CAPTURE["depth"]), file("image.png", CAPTURE["image"])])
    expect(panel.locator(".picture .caption")).to_contain_text("image.png; depth.png, 64 × 48")
    run(panel)
    panel.locator("input[type=file]").set_input_files([file("points.npy", npy(points()))])
    expect(panel.locator(".picture .caption")).to_contain_text("points.npy, 64 × 48")
    expect(panel.get_by_label("Field of view").last).to_be_hidden()
    run(panel)


def test_depth_alone_waits_for_its_picture(page: Page) -> None:
    panel = open_3d(page, None)
    panel.locator("input[type=file]").set_input_files([file("depth.png", CAPTURE["depth"])])
    expect(panel.locator("p.line")).to_have_text("Choose the picture of this depth map.")
    expect(panel.get_by_role("button", name="Run")).to_be_disabled()


def test_the_focal_length_is_sent_in_place_of_the_field_of_view(page: Page) -> None:
    panel = open_3d(page)
    panel.get_by_text("Focal length in pixels").click()
    expect(panel.locator("p.line")).to_have_text("Tell fx, the focal length.")
    panel.get_by_label("fx").fill("439.6")
    run(panel)
    panel.get_by_text("The same call").click()
    expect(panel.locator(".calls")).to_contain_text("fx=439.6")
    expect(panel.locator(".calls")).to_contain_text("--intrinsics 439.6,439.6")
    expect(panel.locator(".calls")).not_to_contain_text("fov")


def test_a_map_of_another_aspect_is_refused_with_the_services_words(refused: Page) -> None:
    panel = open_3d(refused)
    panel.locator("input[type=file]").set_input_files([file("wide.png", png(np.full((20, 90), 900, np.uint16)))])
    panel.get_by_role("button", name="Run").click()
    expect(panel.get_by_role("alert")).to_contain_text("depth")
    expect(panel.get_by_role("alert")).to_contain_text("90")
    panel.get_by_role("button", name="A duck, with depth").click()
    run(panel)
    expect(panel.get_by_role("alert")).to_be_hidden()


def test_nothing_occupied_is_said(page: Page) -> None:
    panel = open_3d(page)
    panel.get_by_label("Threshold").fill("0.999")
    run(panel)
    expect(panel.locator(".shape")).to_contain_text("Nothing is occupied. A lower threshold may find something.")


def test_without_webgl_the_points_are_drawn_as_a_picture(context: BrowserContext, service: Service) -> None:
    with quiet_page(context) as page:
        page.add_init_script(
            "const get = HTMLCanvasElement.prototype.getContext;"
            "HTMLCanvasElement.prototype.getContext = function (kind, ...more) {"
            "  return kind.startsWith('webgl') ? null : get.call(this, kind, ...more); };"
        )
        page.goto(service.url)
        panel = open_3d(page)
        run(panel)
        expect(panel.locator(".shape")).to_contain_text("This browser has no WebGL")
        before = seen(panel)
        assert len(np.unique(before.reshape(-1, 3), axis=0)) > 200
        panel.locator(".space canvas").press("ArrowRight")
        assert (seen(panel) != before).any()
        loaded = page.evaluate("() => performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert not any("vendor" in name for name in loaded)
