"""3D in the playground: a picture with depth, the shape as it arrives, turning it, keeping it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from playwright.sync_api import BrowserContext, FilePayload, Locator, Page, Request, expect

from tests.browser.pages import PATIENCE_MS, quiet_page
from tests.browser.tabs import LONG_SPACING, differs, download, drag, open_3d, pixels_of, run, start, still
from tests.support.images import CAPTURE, npy, png, points
from tests.support.serve_process import Service
from tests.support.waiting import eventually

pytestmark = pytest.mark.browser


def space(panel: Locator) -> Locator:
    """Return the canvas that shows the shape."""
    return panel.locator(".space canvas")


def colours(pixels: NDArray[np.int64]) -> int:
    return len(np.unique(pixels.reshape(-1, 3), axis=0))


def file(name: str, content: bytes) -> FilePayload:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": content}


@pytest.fixture(scope="module")
def done(context: BrowserContext, service: Service) -> Iterator[tuple[Locator, NDArray[np.int64]]]:
    """The panel with the complete mug, and the pixels that show it."""
    with quiet_page(context) as page:
        page.goto(service.url)
        panel = open_3d(page)
        run(panel)
        panel.get_by_role("button", name="Reset view").click()
        page.mouse.move(0, 0)
        yield panel, still(space(panel))


@pytest.fixture
def panel(done: tuple[Locator, NDArray[np.int64]]) -> Locator:
    """The panel in its state at the end of the run."""
    panel, at_first = done
    panel.get_by_text("Mesh", exact=True).click()
    panel.get_by_role("button", name="Reset view").click()
    panel.page.mouse.move(0, 0)
    eventually(lambda: np.abs(pixels_of(space(panel)) - at_first).max() <= 8, "it is seen as at first")
    return panel


def test_mesh_and_points_can_be_kept_and_are_one_shape(panel: Locator, tmp_path: Path) -> None:
    mesh = trimesh.load(download(panel, "Download GLB", tmp_path)).to_geometry()
    ply = download(panel, "Download PLY", tmp_path).read_bytes()
    cells = np.frombuffer(ply.partition(b"end_header\n")[2], np.dtype([("place", "<f4", 3), ("colour", "u1", 3), ("seen", "u1")]))
    assert len(mesh.faces) > 500
    expect(panel.locator(".shape .caption").last).to_contain_text(f"{len(cells):,} points")
    expect(panel.locator(".shape .caption").last).to_contain_text("estimated points are tinted blue")
    assert set(cells["seen"]) == {0, 1}
    places = cells["place"] * (1, -1, -1)  # glTF looks along -z
    sides = places.max(axis=0) - places.min(axis=0)
    assert mesh.bounds == pytest.approx(np.stack([places.min(axis=0), places.max(axis=0)]), abs=float(sides.max()) / 5)  # one cell more


def test_the_shape_is_seen_and_turns_with_a_drag(panel: Locator) -> None:
    page, canvas = panel.page, space(panel)
    before = still(canvas)
    assert colours(before) > 200  # shaded, no bare ground
    drag(canvas, (100, 100), (220, 140), steps=5)
    eventually(lambda: differs(pixels_of(canvas), before) > 0.05, "the drag has turned it")
    dragged = still(canvas)
    canvas.press("ArrowLeft")
    eventually(lambda: differs(pixels_of(canvas), dragged) > 0, "the key has turned it")
    panel.get_by_role("button", name="Reset view").click()
    page.mouse.move(0, 0)
    eventually(lambda: np.abs(pixels_of(canvas) - before).max() <= 8, "it is seen as at first")


def test_points_and_mesh_can_be_changed_without_asking_again(panel: Locator) -> None:
    canvas = space(panel)
    mesh = still(canvas)
    sent: list[str] = []

    def listen(request: Request) -> None:
        if "/v1/reconstruct" in request.url:
            sent.append(request.url)

    panel.page.on("request", listen)
    panel.get_by_text("Points", exact=True).click()
    eventually(lambda: differs(pixels_of(canvas), mesh) > 0, "points are seen")
    points_seen = still(canvas)
    panel.get_by_label("Point size").press("End")
    eventually(lambda: differs(pixels_of(canvas), points_seen) > 0, "larger points are seen")
    panel.get_by_label("Grid").uncheck()
    panel.get_by_label("Grid").check()
    assert sent == []
    panel.page.remove_listener("request", listen)


def test_the_shape_turns_by_itself_while_turn_is_on(panel: Locator) -> None:
    before = still(space(panel))
    panel.get_by_label("Turn", exact=True).check()
    eventually(lambda: differs(pixels_of(space(panel)), before) > 0.01, "it has turned")
    panel.get_by_label("Turn", exact=True).uncheck()


def test_what_was_stopped_is_stopped_in_the_service_too(page: Page, service: Service) -> None:
    panel = open_3d(page, spacing=LONG_SPACING)
    panel.get_by_label(re.compile("^Mode(?!l)")).select_option("dense")
    start(panel)
    expect(panel.locator("p.line")).to_contain_text("Level ")
    panel.get_by_role("button", name="Stop").click()
    expect(panel.locator("p.line")).to_contain_text("Stopped at level")
    idle = {"queued": 0, "running": 0}
    eventually(
        lambda: httpx2.get(f"{service.url}/v1/status").json()["jobs"] == idle, "the work has ended in the service, too", PATIENCE_MS / 1000
    )


def test_what_the_service_keeps_is_removed_when_the_page_is_left(page: Page, service: Service) -> None:
    panel = open_3d(page)
    with page.expect_response("**/v1/reconstruct") as accepted:
        run(panel)
    job = service.url + accepted.value.headers["location"]
    assert httpx2.get(job).json()["state"] == "done"
    page.goto(f"{service.url}/status")
    eventually(lambda: httpx2.get(job).status_code == 404, "the job is gone")


def test_image_and_depth_may_be_chosen_together_or_separately(page: Page) -> None:
    panel = open_3d(page, None)
    expect(panel.locator("p.line")).to_have_text("Choose an image, or run one of the samples.")
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
    expect(panel.locator("p.line")).to_have_text("Choose the image of this depth map.")
    expect(panel.get_by_role("button", name="Run")).to_be_disabled()


def test_the_focal_length_is_sent_in_place_of_the_field_of_view(page: Page) -> None:
    panel = open_3d(page)
    panel.get_by_text("Focal length in pixels").click()
    expect(panel.locator("p.line")).to_have_text("Enter fx, the focal length.")
    panel.get_by_label("fx").fill("439.6")
    run(panel)
    panel.get_by_text("The same call").click()
    expect(panel.locator(".calls")).to_contain_text("fx=439.6")
    expect(panel.locator(".calls")).to_contain_text("--intrinsics 439.6,439.6")
    expect(panel.locator(".calls")).not_to_contain_text("fov")


def test_image_alone_is_enough_for_model_that_estimates_depth(page: Page) -> None:
    panel = open_3d(page)
    panel.get_by_role("button", name="One image of a mug, without depth").click()
    expect(panel.locator(".shape")).to_contain_text("median depths", timeout=PATIENCE_MS)
    panel.get_by_text("The same call").click()
    expect(panel.locator(".calls")).to_contain_text("shapes")
    expect(panel.locator(".calls")).not_to_contain_text("mug-depth.png")


def test_depth_of_other_aspect_is_refused_in_words_of_service(refused: Page) -> None:
    panel = open_3d(refused)
    panel.locator("input[type=file]").set_input_files([file("wide.png", png(np.full((20, 90), 900, np.uint16)))])
    start(panel)
    expect(panel.get_by_role("alert")).to_contain_text("depth")
    expect(panel.get_by_role("alert")).to_contain_text("90")
    panel.get_by_role("button", name="A duck, with depth").click()
    run(panel)
    expect(panel.get_by_role("alert")).to_be_hidden()


def test_what_was_seen_stays_however_high_the_threshold(page: Page) -> None:
    panel = open_3d(page)
    panel.get_by_label("Threshold").fill("0.999")
    run(panel)
    expect(panel.locator(".shape")).to_contain_text(re.compile(r"[\d,]+ points, [\d,]+ queries"))


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
        before = still(space(panel))
        assert colours(before) > 200
        space(panel).press("ArrowRight")
        eventually(lambda: differs(pixels_of(space(panel)), before) > 0, "the key has turned it")
        loaded = page.evaluate("() => performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert not any("vendor" in name for name in loaded)
