"""Every example does what its README says, against a running service."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import httpx2
import numpy as np
import pytest
from PIL import Image

from opsin import Client
from server import playground
from tests.support.bundles.analytic_mcc import write_shell
from tests.support.live_service import Service, running
from tests.support.queue import free_port
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
START_S = 300.0
RUN_S = 300.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The starters `flags`, `inpaint` and `actions`, and a bundle that finds a sphere in everything."""
    bundles = tmp_path_factory.mktemp("bundles")
    for name in ("flags", "inpaint", "actions", "actions-lart", "movenet"):
        shutil.copytree(ROOT / "bundles" / name, bundles / name)
    write_shell(bundles)
    with running(bundles) as started:
        yield started


def python_with(library: str) -> str:
    """Return the interpreter that OPSIN_EXAMPLES_PYTHON names, whose environment holds the client's wheel too, or this one."""
    found = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({library!r}) is None)"
    for python in (os.environ.get("OPSIN_EXAMPLES_PYTHON"), sys.executable):
        if python and subprocess.run([python, "-c", found], check=False).returncode == 0:
            return python
    pytest.skip(f"{library} is not installed: OPSIN_EXAMPLES_PYTHON names the Python of an environment that has it and opsin-*.whl")


def example(service: Service, name: str, *arguments: str | Path, python: str = sys.executable) -> str:
    """Return the output."""
    command = [python, EXAMPLES / name, *arguments, "--url", service.url]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_merging_compares_the_rungs(service: Service) -> None:
    printed = example(service, "merging.py", ROOT / "docs" / "pictures" / "flags")
    rows = re.findall(r"(\S+): 65 → (\d+) tokens, (\d) of 8 labels as without merging", printed)
    tokens = [int(count) for _, count, _ in rows]
    assert len(rows) > 2
    assert min(tokens) < 65
    assert all(int(same) >= 6 for _, _, same in rows)


def test_inpainting_writes_each_sample(service: Service, tmp_path: Path) -> None:
    drawings = ROOT / "docs" / "pictures" / "drawings"
    printed = example(service, "inpainting.py", drawings / "daisy.png", drawings / "daisy-mask.png", "-o", tmp_path / "filled.png")
    seeds = [int(seed) for seed in re.findall(r"seed (\d+)", printed)]
    assert seeds[1] == seeds[0] + 1
    with Image.open(drawings / "daisy-mask.png") as mask:
        hole = np.asarray(mask.convert("L")) >= 128
    assert f"{hole.sum()} pixels filled" in printed
    images = [np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("filled.png", "filled-1.png")]
    assert (images[0][~hole] == images[1][~hole]).all()
    assert (images[0][hole] != images[1][hole]).any()


def test_shapes_asks_the_scene_again(service: Service, tmp_path: Path) -> None:
    mug = playground.SAMPLES / "mug.png", playground.SAMPLES / "mug-depth.png"
    printed = example(service, "shapes.py", *mug, "--fov", "40", "-o", tmp_path / "mug.ply")
    coarse, fine = (int(count) for count in re.findall(r"(\d+) points", printed))
    assert fine > coarse > 0
    assert (tmp_path / "mug.ply").read_bytes().startswith(b"ply")
    assert "level" in printed


@pytest.mark.slow
def test_people_prints_and_annotates(service: Service, tmp_path: Path) -> None:
    printed = example(service, "people.py", playground.SAMPLES / "figures.mp4", "--seconds", "2", "-o", tmp_path / "annotated.mp4")
    assert "person 1" in printed
    assert "person 2" in printed
    assert re.search(r"0\.\d s  \w+ [01]\.\d\d", printed)
    with av.open(tmp_path / "annotated.mp4") as clip:
        assert clip.streams.video[0].frames == 120


def test_search_finds_the_flag_that_the_words_mean(service: Service) -> None:
    flags = ROOT / "docs" / "pictures" / "flags"
    printed = example(service, "search.py", flags, "nepal", "--model", "flags", "--most", "2").splitlines()
    assert printed[0] == "8 images, 1 other files; matching labels: Nepal"
    assert re.fullmatch(r" *\d+\.\d%  .*/nepal\.png", printed[1])
    assert len(printed) == 3


def test_search_says_which_words_the_model_does_not_know(service: Service) -> None:
    command = [sys.executable, EXAMPLES / "search.py", "docs", "submarine", "--model", "flags", "--url", service.url]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert ran.returncode == 1
    assert "no label with submarine" in ran.stderr


@pytest.mark.slow
def test_ray_scores_a_folder_and_names_what_is_no_image(service: Service, tmp_path: Path) -> None:
    python = python_with("ray")
    flags = ROOT / "docs" / "pictures" / "flags"
    printed = example(service, "ray_batch.py", flags, "-o", tmp_path / "scores", python=python)
    rows = dict(re.findall(r"/([\w.]+) (.+)$", printed, re.MULTILINE))
    assert rows["brazil.png"].startswith("Brazil ")
    assert "not an image" in rows["SOURCES.txt"]
    assert list((tmp_path / "scores").glob("*.parquet"))


def test_nvidias_client_classifies(service: Service) -> None:
    flags = ROOT / "docs" / "pictures" / "flags"
    printed = example(service, "triton_client.py", flags / "brazil.png", flags / "nepal.png")
    assert [line.split(":")[0] for line in printed.splitlines()] == ["brazil.png", "nepal.png"]
    assert re.match(r"brazil.png: Brazil \d", printed)


def test_the_gradio_front_end_asks_the_service(service: Service) -> None:
    """Gradio itself is only in the user's environment; the test calls the functions."""
    loaded = importlib.util.spec_from_file_location("gradio_app", EXAMPLES / "gradio_app.py")
    assert loaded is not None
    assert loaded.loader is not None
    app = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(app)
    with Image.open(ROOT / "docs" / "pictures" / "flags" / "brazil.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    with Client(service.url) as client:
        rungs = app.rungs(client)
        scores, words = app.labels(client, pixels, rungs[-1])
    assert max(scores, key=scores.get) == "Brazil"
    assert "65 →" in words
    assert rungs[0] == "off"


def test_the_gradio_front_end_answers_in_its_own_environment(service: Service) -> None:
    """Over the API that Gradio makes of it, which its page calls as well."""
    port = free_port()
    command = [python_with("gradio"), EXAMPLES / "gradio_app.py", "--url", service.url, "--port", str(port)]
    front_end = subprocess.Popen(command, env=os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"})
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}/gradio_api", timeout=60) as http:
            eventually(lambda: answers(http), "Gradio answers", START_S)
            brazil = ROOT / "docs" / "pictures" / "flags" / "brazil.png"
            (path,) = http.post("/upload", files={"files": brazil.read_bytes()}).raise_for_status().json()
            image = {"path": path, "meta": {"_type": "gradio.FileData"}}
            submitted = http.post("/call/classify", json={"data": [image, "off"]}).raise_for_status().json()
            events = http.get(f"/call/classify/{submitted['event_id']}").raise_for_status().text
    finally:
        front_end.terminate()
        front_end.wait()
    assert events.startswith("event: complete")
    label, words = json.loads(events.partition("data: ")[2])
    assert label["label"] == "Brazil"
    assert "65 → 65 tokens" in words


def answers(http: httpx2.Client) -> bool:
    try:
        return http.get("/info").is_success
    except httpx2.TransportError:
        return False


def test_the_readme_names_every_example() -> None:
    named = set(re.findall(r"examples/(\w+\.py)", (EXAMPLES / "README.md").read_text()))
    assert named == {path.name for path in EXAMPLES.glob("*.py")}
