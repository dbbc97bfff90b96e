"""`opsin demo`, from start to stop."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import takewhile
from pathlib import Path

import av
import httpx2
import numpy as np
import psutil
import pytest
from PIL import Image
from rich.console import Console

from models.bundle import write
from models.bundle_schema import QuerySpace
from opsin.cli.demo.command import show_images
from opsin.cli.demo.labels import MOVE_CLIPS, SAMPLES_FOLDER, is_sound_classifier, show_clips, show_sounds
from opsin.client import Client
from opsin.results import Model
from tests.support.bundles.actions import LABELS, write_watcher
from tests.support.bundles.analytic_mcc import write_shell
from tests.support.bundles.vit import TINY, write_tiny_diffmae, write_tiny_vit
from tests.support.fake_servers import RESULT, Answer, serve_script
from tests.support.processes import opsin
from training.data.demo_clip import CLIPS
from training.data.packages import obtain
from training.errors import DataError

PICTURES = Path(__file__).parents[2] / "docs/pictures/flags"
DRAWINGS = PICTURES.parent / "drawings"


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    """A bundle that merges by default."""
    tiny = write_tiny_vit(tmp_path / "plain")
    write(tmp_path / "bundles", tiny.spec.model_copy(update={"default_rung": "fast"}), tiny.weights_path)
    return tmp_path / "bundles"


def test_demo_shows_labels_and_merging_and_leaves_no_process(bundles: Path, tmp_path: Path) -> None:
    others = {
        "OPSIN_REDIS_URL": "redis://127.0.0.1:1/0",
        "OPSIN_BACKEND": "eager",
        "OPSIN_API_KEYS_FILE": "/none",
    }
    ended = opsin("demo", "--bundles", bundles, "--seconds", "0.2", "--svg", tmp_path / "demo.svg", **others)
    assert (ended.returncode, ended.stderr) == (0, "")
    tokens = TINY.patches + TINY.special_tokens
    for file in PICTURES.glob("*.png"):
        assert re.search(rf"^{re.escape(file.name)} .*class \d+ \d+%.* {tokens} → {tokens - 8} .* ms", ended.stdout, re.MULTILINE)
    rates = [float(re.search(rf"^{merge} +(\d+) ", ended.stdout, re.MULTILINE)[1]) for merge in ("off", "fast")]  # type: ignore[index]
    assert min(rates) > 0
    sizes = [float(re.search(rf"^{merge} .* ms +(\d+\.\d) ", ended.stdout, re.MULTILINE)[1]) for merge in ("off", "fast")]  # type: ignore[index]
    assert all(1 <= size <= 32 for size in sizes)
    assert re.search(r"^\d+\.\d\d× the images per second with merging", ended.stdout, re.MULTILINE)
    assert "To use the service: `make serve` runs it" in ended.stdout
    assert re.findall(r"http://\S+", ended.stdout) == ["http://127.0.0.1:8000"], "no address of the service that has stopped"
    assert [process for process in psutil.process_iter(["cmdline"]) if str(bundles) in (process.info["cmdline"] or ())] == []
    assert "Labels, by tiny@1" in "".join(ElementTree.parse(tmp_path / "demo.svg").getroot().itertext()).replace("\xa0", " ")


def test_the_demo_asks_for_flags_also_while_they_load() -> None:
    flags = {"name": "flags", "version": "1", "task": "classify", "state": "loading"}
    listed = {"/v1/models": {"models": [{**flags, "name": "photos", "state": "ready"}, flags]}, "/v1/models/flags@1": flags}
    with serve_script(lambda request: Answer(body=listed.get(request.path, RESULT))) as service, Client(service.url) as client:
        show_images(client, sorted(PICTURES.glob("*.png"))[:1], Console(quiet=True))
    assert [request.path for request in service.requests if request.path.startswith("/v1/classify")] == ["/v1/classify?model=flags%401"]


def test_the_demo_names_sounds_by_a_bundle_that_only_hears() -> None:
    both = {"name": "both", "version": "1", "task": "audio-visual", "state": "ready", "inputs": [{"name": "video"}, {"name": "audio"}]}
    listed = {"/v1/models": {"models": [both, {**both, "name": "sounds", "inputs": [{"name": "audio"}]}]}}
    with serve_script(lambda request: Answer(body=listed.get(request.path, RESULT))) as service, Client(service.url) as client:
        [hearing] = [model for model in client.models() if is_sound_classifier(model)]
        written = io.StringIO()
        show_sounds(client, hearing, Console(file=written, width=100))
    output = written.getvalue()
    paths = [request.path for request in service.requests if request.path.startswith("/v1/classify")]
    assert paths == ["/v1/classify?model=sounds%401&top_k=3"] * len(list(SAMPLES_FOLDER.glob("*.flac"))) and paths
    assert "Sounds, by sounds@1" in output and "trumpet.flac" in output


def test_the_demo_names_the_camera_moves_of_its_clips() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    with serve_script(lambda request: Answer(body=RESULT)) as service, Client(service.url) as client:
        show_clips(client, Model("clips", "1", "clips", "ready", {}), console)
    requests = [request for request in service.requests if request.path.startswith("/v1/classify")]
    assert [clip.read_bytes() in request.body for clip, request in zip(MOVE_CLIPS, requests, strict=True)] == [True] * 3
    output = console.export_text()
    assert all(re.search(rf"^{clip.name} +animals 75%", output, re.MULTILINE) for clip in MOVE_CLIPS)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_interrupted_or_killed_demo_ends_its_service(bundles: Path, number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "opsin", "demo", "--keep", "--seconds", "0.1", "--bundles", str(bundles)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout
        printed = list(takewhile(lambda line: "keeps running" not in line, demo.stdout))
        pages = re.findall(r"http://127\.0\.0\.1:\d+/\S*", "".join(printed))
        assert [httpx2.get(page, timeout=60).status_code for page in pages] == [200] * 3
        processes = psutil.Process(demo.pid).children(recursive=True)
        assert {"serve", "gateway", "worker"} <= {word for process in processes for word in process.cmdline()}
        demo.send_signal(number)
        assert demo.wait(120) == code
    _gone, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []


@pytest.mark.slow
def test_the_demo_fills_holes_where_a_bundle_for_it_is_served(bundles: Path, tmp_path: Path) -> None:
    write_tiny_diffmae(bundles)
    made = tmp_path / "made"
    ended = opsin("demo", "--bundles", bundles, "--seconds", "0.1", "--output", made)
    assert (ended.returncode, ended.stderr) == (0, "")
    for file in DRAWINGS.glob("*[!k].png"):
        assert re.search(rf"^{file.name} +\d+% +network +\d+ ms ", ended.stdout, re.MULTILINE)
        before, hole = (np.asarray(Image.open(path).convert("RGB")) for path in (file, file.with_stem(f"{file.stem}-mask")))
        after = np.asarray(Image.open(made / f"{file.stem}-filled.png").convert("RGB"))
        outside = hole[..., 0] == 0
        assert np.array_equal(after[outside], before[outside]) and not np.array_equal(after, before)
    assert Image.open(made / "inpainting.png").height > 4 * 3 * 96


@pytest.mark.slow
def test_the_demo_names_actions_in_a_clip_by_person_and_time(bundles: Path, tmp_path: Path) -> None:
    write_watcher(bundles)
    made, cache = tmp_path / "made", tmp_path / "cache"
    try:
        obtain(CLIPS, cache)
    except DataError as error:
        pytest.skip(str(error))
    ended = opsin("demo", "--bundles", bundles, "--seconds", "0.1", "--output", made, "--cache", cache, seconds=280)
    assert (ended.returncode, ended.stderr) == (0, "")
    people = re.findall(r"^([12]) +(\d\.\d) – (\d\.\d) +(\w+) 0\.\d\d", ended.stdout, re.MULTILINE)
    assert {person for person, *_ in people} == {"1", "2"} and {label for *_, label in people} <= set(LABELS)
    assert max(float(end) for _, _, end, _ in people) > 6
    with av.open(made / "actions.mp4") as clip:
        assert clip.streams.video[0].frames == 230


@pytest.mark.slow
def test_a_demo_that_cannot_fetch_its_clip_says_so_and_goes_on(bundles: Path, tmp_path: Path) -> None:
    write_watcher(bundles)
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1", "PIP_CONFIG_FILE": "/dev/null"}
    ended = opsin("demo", "--bundles", bundles, "--seconds", "0.1", "--cache", tmp_path / "cache", seconds=280, **nowhere)
    assert (ended.returncode, ended.stderr) == (0, "")
    output = " ".join(ended.stdout.split())
    assert "The video is skipped, since its clip cannot be downloaded. sports2d 0.8.34 is missing" in output
    assert "pip download" in output and "sports2d-0.8.34-py3-none-any.whl into" in output
    assert "`make serve` runs it" in output


@pytest.mark.slow
def test_demo_reconstructs_photograph_if_a_bundle_is_served(bundles: Path, tmp_path: Path) -> None:
    write_shell(bundles, space=QuerySpace(spacing=0.2, reach=0.2, margin=4))
    made = tmp_path / "made"
    ended = opsin("demo", "--bundles", bundles, "--seconds", "0.1", "--output", made)
    assert (ended.returncode, ended.stderr) == (0, "")
    row = re.search(r"^motorcycle\.png with its depth +(\d+) +(\d+) +(\d+\.\d) dB +\d+ ms ", ended.stdout, re.MULTILINE)
    assert row and int(row[1]) > 0 and int(row[2]) > 0 and float(row[3]) >= 25  # as the photograph, seen from its camera
    assert (made / "motorcycle.glb").read_bytes().startswith(b"glTF")
    sides = np.asarray(Image.open(made / "motorcycle-sides.png"))
    assert sides.shape == (256, 8 * 256, 3) and (sides != 255).any()


def test_a_demo_without_bundles_says_so(tmp_path: Path) -> None:
    ended = opsin("demo", "--bundles", tmp_path)
    assert (ended.returncode, ended.stderr) == (2, f"opsin: demo: {tmp_path} contains no bundles; name another folder with --bundles\n")


def test_demo_with_failing_service_ends_with_its_last_words(bundles: Path) -> None:
    ended = opsin("demo", "--bundles", bundles, OPSIN_LOG_LEVEL="nonsense")
    assert ended.returncode == 1
    assert ended.stderr.startswith("opsin: the service ended with exit code ")


def test_refused_bundles_end_the_demo_with_their_reason(tmp_path: Path) -> None:
    bundle = write_tiny_vit(tmp_path / "bundles")
    weights = bundle.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    ended = opsin("demo", "--bundles", tmp_path / "bundles", "--output", tmp_path / "pictures")
    assert ended.returncode == 1
    assert "no bundle is served; tiny@1 is unavailable" in ended.stderr
    assert "truncated" in ended.stderr
