"""Results in notebooks and in `show()`."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opsin.actions import video_actions
from opsin.bulk import Outcome, Outcomes
from opsin.image_encoding import png
from opsin.inpainting import inpainting
from opsin.reconstruction import Reconstruction, read_vertices, reconstruction
from opsin.results import classifications
from opsin.zero_shot import zero_shots
from server.media.meshes import Primitive, linear, to_glb, to_npz, to_ply
from tests.support.fake_servers import RESULT

POINTS = np.array([[0, 0, 1], [0.5, 0, 1], [0, -0.25, 2], [0.1, 0.2, 1.5]], np.float32)
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 99, 199]], np.uint8)
PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def shape(file: bytes) -> Reconstruction:
    answer = {**RESULT, "file": base64.b64encode(file).decode(), "scene": None, "points": 4, "queries": 9, "scale": 1.0, "bounds": None}
    return reconstruction(answer)


def draw_values(result: Reconstruction) -> tuple[np.ndarray, np.ndarray]:
    """Points and colours that the page holds, points from their middle in units of their spread."""
    page = unescape(re.search(r'srcdoc="([^"]+)"', result._repr_html_())[1])  # type: ignore[index]
    places, colours = (base64.b64decode(text) for text in re.findall(r'bytes\("([^"]*)"\)', page))
    return np.frombuffer(places, "<i2").reshape(-1, 3) / 32_000, np.frombuffer(colours, np.uint8).reshape(-1, 3)


def centre(points: np.ndarray) -> np.ndarray:
    away = points - (points.max(axis=0) + points.min(axis=0)) / 2
    centred: np.ndarray = away / np.linalg.norm(away, axis=1).max()
    return centred


def test_labels_become_a_table_whatever_they_are_called() -> None:
    prediction = {"label": "<b>bold</b>", "index": 0, "score": 0.75}
    [found] = classifications({**RESULT, "results": [{**RESULT["results"][0], "predictions": [prediction]}]})
    page = found._repr_html_()
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "75.0%" in page
    assert "49 of 65 tokens" in page


def test_filled_images_are_shown_as_they_are() -> None:
    samples = [{"image": base64.b64encode(png(PIXELS + add)).decode(), "seed": 5 + add} for add in range(2)]
    answer = {**RESULT, "results": samples, "width": 4, "height": 4, "masked_pixels": 3, "steps": 7, "sampler": "ddim"}
    filled = inpainting(answer)
    assert filled._repr_png_() == filled.samples[0]._repr_png_() == png(PIXELS)
    page = filled._repr_html_()
    assert [base64.b64decode(image) for image in re.findall(r"base64,([^\"]+)", page)] == [png(PIXELS), png(PIXELS + 1)]
    assert "seed 5" in page
    assert "seed 6" in page
    assert "3 pixels filled in 7 steps of ddim" in page
    copied = inpainting({**answer, "steps": 0, "sampler": "none", "method": "exemplar"})
    assert "3 pixels filled with patches from around the hole" in copied._repr_html_()


@pytest.mark.parametrize("file", [to_ply(POINTS, COLOURS, 0.1), to_npz({"points": POINTS, "colours": COLOURS})])
def test_points_are_drawn_where_they_are(file: bytes) -> None:
    places, colours = draw_values(shape(file))
    np.testing.assert_allclose(places, centre(POINTS), atol=1e-4)
    assert colours.tolist() == COLOURS.tolist()


def test_the_vertices_of_a_mesh_are_drawn_in_the_cameras_frame() -> None:
    """Vertices have their colours below a texture, too; a mesh without either is grey."""
    faces = np.array([[0, 1, 2], [1, 2, 3]])
    parts = [
        Primitive(POINTS, faces, {name: linear(COLOURS)}, texture=texture) for name, texture in (("COLOR_0", None), ("_COLOR", b"JPEG"))
    ]
    places, colours = draw_values(shape(to_glb([*parts, Primitive(POINTS, faces)])))
    np.testing.assert_allclose(places, np.tile(centre(POINTS), (3, 1)), atol=1e-4)
    assert colours.tolist() == [*COLOURS.tolist(), *COLOURS.tolist(), *[[128] * 3] * len(POINTS)]


def test_every_colour_comes_back_from_linear_light() -> None:
    colours = np.arange(256 * 3, dtype=np.uint32).reshape(256, 3).astype(np.uint8)
    file = to_glb([Primitive(np.zeros((256, 3), np.float32), np.zeros((1, 3), np.int64), {"COLOR_0": linear(colours)})])
    assert (read_vertices(file)[1] == colours).all()


def test_an_empty_shape_is_shown_empty() -> None:
    for file in (to_glb([]), to_ply(POINTS[:0], COLOURS[:0], 0.1)):
        places, _ = draw_values(shape(file))
        assert len(places) == 0


def test_what_a_shell_prints_leaves_files_out() -> None:
    answer = {**RESULT, "results": [{"image": "iVBORw0KGgo=", "seed": 5}], "width": 4, "height": 4, "masked_pixels": 3, "steps": 7}
    assert len(repr(shape(to_ply(np.zeros((9999, 3), np.float32), np.zeros((9999, 3), np.uint8), 0.1)))) < 1000
    assert "PNG" not in repr(inpainting({**answer, "sampler": "ddim"}))
    assert "document" not in repr(video_actions({**RESULT, "video": None, "people": []}))


def test_large_clouds_are_thinned() -> None:
    many = np.random.default_rng(0).normal(size=(50_000, 3)).astype(np.float32)
    places, _ = draw_values(shape(to_ply(many, np.zeros((50_000, 3), np.uint8), 0.1)))
    assert 10_000 < len(places) <= 20_000


def test_who_does_what_when_joins_seconds_of_one_label() -> None:
    def second(start: float, label: str, score: float) -> dict[str, object]:
        return {"start_s": start, "end_s": start + 1, "labels": [{"label": label, "index": 0, "score": score}]}

    seconds = [second(0, "walk", 0.5), second(1, "walk", 0.7), second(2, "jump", 0.9)]
    person = {"person": 1, "first_s": 0.0, "last_s": 3.0, "boxes": [], "actions": seconds}
    page = video_actions({**RESULT, "video": None, "people": [person]})._repr_html_()
    assert [re.findall(r"<td>([^<]+)</td>", row) for row in page.split("<tr>")[2:]] == [
        ["0.0 – 2.0 s", "walk", "0.60"],
        ["2.0 – 3.0 s", "jump", "0.90"],
    ]
    assert "Nobody" in video_actions({**RESULT, "video": None, "people": []})._repr_html_()


def test_outcomes_distinguish_failures() -> None:
    [found] = classifications(RESULT)
    page = Outcomes((Outcome("a.png", found, None), Outcome("<b>.png", None, ValueError("no <image>"))))._repr_html_()
    assert "animals 75.0%" in page
    assert "&lt;b&gt;.png" in page
    assert "no &lt;image&gt;" in page
    assert "2 inputs, 1 failed" in page


def test_show_opens_the_browser_with_a_page_of_its_own(tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    program = (
        "import json, sys; from opsin.results import classifications;[found] = classifications(json.load(sys.stdin)); print(found.show())"
    )
    environment = {**os.environ, "BROWSER": f"{browser} %s", "TMPDIR": str(tmp_path)}
    visible = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(RESULT), env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    page = Path(visible.stdout.strip())
    assert (tmp_path / "opened").read_text() == page.as_uri()
    assert "animals" in page.read_text()
    assert page.parent == tmp_path


SHAPE = {
    "file": base64.b64encode(to_ply(POINTS, COLOURS, 0.1)).decode(),
    "scene": None,
    "points": 4,
    "queries": 9,
    "scale": 1,
    "bounds": None,
}
FILLED = {"results": [], "width": 4, "height": 4, "masked_pixels": 3, "steps": 7, "sampler": "ddim"}
FOUND = {"results": [{"predictions": [], "merging": None}], "labels": {"count": 1, "cached": 0, "truncated": 0}, "templates": ["{}"]}


@pytest.mark.parametrize(
    ("read", "fields"),
    [
        (lambda answer: classifications(answer)[0], {}),
        (lambda answer: zero_shots(answer)[0], FOUND),
        (inpainting, FILLED),
        (reconstruction, SHAPE),
        (video_actions, {"people": [], "video": None}),
    ],
)
def test_a_result_repeats_the_note_of_its_bundle(read: Callable[[Mapping[str, Any]], Any], fields: dict[str, Any]) -> None:
    answer = {**RESULT, **fields}
    noted, silent = read({**answer, "note": "It knows <drawings>."}), read(answer)
    assert (noted.note, silent.note) == ("It knows <drawings>.", "")
    assert "It knows &lt;drawings&gt;." in noted._repr_html_() and "It knows" not in silent._repr_html_()
