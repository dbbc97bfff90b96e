"""`docs/extending.md` runs: the page's package, built and installed outside of the checkout, answers requests for its task."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from opsin import Client
from tests.support.images import encode
from tests.support.processes import environment
from tests.support.serve_process import Service, serve
from tests.support.waiting import START_S, eventually

HOUSE = Path(__file__).parents[2]
PAGE = (HOUSE / "docs" / "extending.md").read_text()
BLOCK = re.compile(r"```(?:python|toml)\n *# (\S+)\n(.*?)```", re.DOTALL)
MAKES_BUNDLE = "make_mean_colour.py"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    for path, code in BLOCK.findall(PAGE):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(code)
    (folder / "mean_colour/__init__.py").touch()
    return folder


def install(folder: Path, package: Path) -> Path:
    """Make an environment with the package's wheel, which borrows this one's Opsin, and return its Python."""
    programs = environment(folder / ".venv", HOUSE)
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(programs / "python")]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", "--no-build-isolation", str(package)], check=True)
    return programs / "python"


@pytest.fixture(scope="module")
def python(package: Path) -> str:
    """The Python of an environment in which the package is installed; with the page's bundle made."""
    python = install(package, package)
    subprocess.run([python, MAKES_BUNDLE], cwd=package, check=True)
    return str(python)


@pytest.fixture(scope="module")
def service(package: Path, python: str) -> Iterator[Service]:
    with serve(package / "bundles", command=[python, "-m", "opsin", "serve"]) as started:
        yield started


def post(service: Service, *images: bytes, accept: str = "*/*", **options: str) -> httpx2.Response:
    files = [("image", (f"{index}.png", data)) for index, data in enumerate(images)]
    url = f"{service.url}/v1/mean-colour"
    return httpx2.post(url, files=files, data=options, headers={"Accept": accept}, timeout=60)


RED, GREY = (encode(Image.new("RGB", (40, 30), colour)) for colour in ((200, 100, 50), (128, 128, 128)))


def test_the_page_is_short() -> None:
    code = "".join(code for path, code in BLOCK.findall(PAGE) if path != MAKES_BUNDLE)
    assert sum(bool(line.strip()) for line in code.splitlines()) < 75


def test_the_task_of_the_page_answers(service: Service) -> None:
    answer = post(service, RED, GREY).raise_for_status().json()
    assert list(answer) == ["id", "model", "version", "colours", "timing"]
    assert (answer["model"], answer["colours"]) == ("mean-colour", ["#c86432", "#808080"])
    text = post(service, RED, accept="text/plain", notation="rgb").raise_for_status()
    assert text.text == "rgb(200, 100, 50)"
    assert text.headers["content-type"].startswith("text/plain")
    assert text.headers["x-model"] == "mean-colour@1.0.0"
    assert re.search(r"\binference;dur=[0-9.]+", text.headers["server-timing"])


def test_command_and_client_ask_for_it_as_the_page_says(service: Service, python: str, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(RED)
    with Client(service.url) as client:
        assert client.ask("mean-colour", {"image": tmp_path / "cat.jpg"}, notation="rgb")["colours"] == ["rgb(200, 100, 50)"]
    command = [python, "-m", "opsin", "ask", "mean-colour", f"image={tmp_path / 'cat.jpg'}", "-o", "notation=rgb"]
    printed = subprocess.run([*command, "--url", service.url], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed)["colours"] == ["rgb(200, 100, 50)"]


def test_a_later_answer_has_every_media_type(service: Service) -> None:
    """The type is chosen when the answer is fetched; the options are those of the request."""
    url, headers = f"{service.url}/v1/mean-colour", {"Prefer": "respond-async", "Accept": "text/html"}
    accepted = httpx2.post(url, content=RED, params={"notation": "rgb"}, headers=headers, timeout=60)
    assert accepted.status_code == 202
    job = accepted.headers["Location"]
    eventually(lambda: service.get(job).json()["state"] == "done", "it is done")
    text = service.get(f"{job}/result", headers={"Accept": "text/plain"})
    assert (text.text, text.headers["x-model"]) == ("rgb(200, 100, 50)", "mean-colour@1.0.0")
    assert service.get(f"{job}/result").json()["colours"] == ["rgb(200, 100, 50)"]
    assert service.get(f"{job}/result", headers={"Accept": "text/html"}).status_code == 406


def test_its_tables_are_read_checked_and_documented(service: Service) -> None:
    refused = post(service, RED, notation="cmyk")
    assert (refused.status_code, refused.json()["field"]) == (422, "notation")
    assert refused.json()["detail"] == "'cmyk' must be one of hex, rgb"
    assert post(service, RED, gain="0").json()["detail"] == "'0' must be a number above 0"
    assert post(service, RED, accept="image/png").status_code == 406
    (model,) = service.get("/v1/models").json()["models"]
    assert (model["task"], model["default"], model["inputs"][0]["name"]) == ("mean-colour", True, "image")
    operation = service.get("/openapi.json").json()["paths"]["/v1/mean-colour"]["post"]
    assert {"name": "notation", "in": "query"}.items() <= operation["parameters"][1].items()
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/plain", "text/event-stream"}


def test_what_does_not_go_is_refused_as_the_page_says(service: Service) -> None:
    large = post(service, RED, gain="256")
    assert (large.status_code, large.json()["field"], large.json()["detail"]) == (422, "gain", "256: use at most 255 with notation hex")
    broken = post(service, RED, GREY[: len(GREY) // 2])
    assert (broken.status_code, broken.json()["field"]) == (422, "image[1]")
    assert httpx2.post(f"{service.url}/v1/classify", content=RED, timeout=60).status_code == 404


def test_the_open_inference_protocol_answers_alike(service: Service) -> None:
    image = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": [base64.b64encode(RED).decode()]}
    request = {"inputs": [image], "parameters": {"gain": 0.5}}
    answer = httpx2.post(f"{service.url}/v2/models/mean-colour/infer", json=request, timeout=60).raise_for_status().json()
    assert [(one["name"], one["shape"], one["data"]) for one in answer["outputs"]] == [("colour", [1, 3], [100.0, 50.0, 25.0])]


def test_each_extension_is_logged_once_with_its_package(service: Service) -> None:
    logged = [(one["group"], one["name"], one["package"], one["version"]) for one in service.events("extension loaded")]
    assert logged == [(group, "mean-colour", "mean-colour", "1.0.0") for group in ("opsin.systems", "opsin.tasks")]


def test_the_switch_leaves_them_out(package: Path, python: str) -> None:
    with serve(package / "bundles", command=[python, "-m", "opsin", "serve"], extensions=False) as service:
        refused = "architecture 'mean_colour' is unknown"
        eventually(lambda: any(refused in line for line in service.lines), "it is refused", START_S)
        assert service.events("extension loaded") == []


BROKEN = {
    "imports": ({"nosuch": "nosuch.module:TASK"}, {}, "extension nosuch of broken 2.0: nosuch.module:TASK cannot be imported"),
    "task": ({"twice": "mean_colour.task:MeanColour"}, {}, "extension twice of broken 2.0: /v1/mean-colour exists already"),
    "system": ({}, {"again": "mean_colour.system:SYSTEM"}, "an architecture 'mean_colour' exists already"),
    "kind": ({"text": "mean_colour.system:NETWORK"}, {}, "extension text of broken 2.0: names a str, not an opsin.extending.Task"),
}


@pytest.mark.parametrize("process", ["worker", "gateway", "serve"])
@pytest.mark.parametrize(("tasks", "systems", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_extension_ends_the_start_with_its_name(
    python: str, tmp_path: Path, tasks: dict[str, str], systems: dict[str, str], message: str, process: str
) -> None:
    info = tmp_path / "broken-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 2.0\n")
    groups = {"opsin.tasks": tasks, "opsin.systems": systems}
    lines = [f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items()) for group, points in groups.items()]
    (info / "entry_points.txt").write_text("".join(lines))
    (tmp_path / "bundles").mkdir()
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path), "OPSIN_REDIS_URL": "redis://127.0.0.1:1", "OPSIN_PORT": "0"}
    command = [python, "-m", "opsin", process]
    ended = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2 and message in ended.stderr, ended.stderr
