"""`docs/extending.md` runs: a copy of the house with the page's code in it answers requests for the page's task."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from opsin import Client
from tests.support.images import encoded
from tests.support.processes import environment
from tests.support.serve_process import Service, serve
from tests.support.waiting import eventually

HOUSE = Path(__file__).parents[2]
PAGE = (HOUSE / "docs" / "extending.md").read_text()
BLOCK = re.compile(r"```(python|diff)\n *# (\S+)\n(.*?)```", re.DOTALL)
MAKES_BUNDLE = "make_mean_colour.py"
TESTS_IT = "tests/tasks/test_mean_colour.py"
ROOMS = ("server", "models", "kernels", "opsin")
OF_TESTS = ("__init__.py", *(f"support/{name}.py" for name in ("__init__", "forked_program", "processes", "serve_process", "waiting")))


def build(house: Path) -> None:
    """Copy ours and do what the page says."""
    for room in ROOMS:
        shutil.copytree(HOUSE / room, house / room, ignore=shutil.ignore_patterns("__pycache__"))
    (house / TESTS_IT).parent.mkdir(parents=True)
    (house / "tests/support").mkdir()
    for name in OF_TESTS:
        shutil.copy(HOUSE / "tests" / name, house / "tests" / name)
    for kind, path, code in BLOCK.findall(PAGE):
        file = house / path
        if kind == "python":
            assert not file.exists()
            file.parent.mkdir(exist_ok=True)
            file.write_text(code)
        else:
            file.write_text(with_lines_added(file.read_text(), code))


def with_lines_added(text: str, diff: str) -> str:
    """Each line with a `+` goes behind the line before it in the diff."""
    lines, at = text.splitlines(), 0
    for change in diff.splitlines():
        if change.startswith("+"):
            at += 1
            lines.insert(at, change[1:])
        else:
            assert lines.count(change[1:]) == 1, f"not one line of the file: {change[1:]}"
            at = lines.index(change[1:])
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    house = tmp_path_factory.mktemp("house")
    build(house)
    return house


@pytest.fixture(scope="module")
def python(house: Path) -> str:
    """The Python of an environment in which this house is installed, editable, as `make` does it; with the page's bundle made."""
    python = environment(house / ".venv", house) / "python"
    subprocess.run([python, MAKES_BUNDLE], cwd=house, check=True)
    return str(python)


@pytest.fixture(scope="module")
def service(house: Path, python: str) -> Iterator[Service]:
    with serve(house / "bundles", command=[python, "-m", "opsin", "serve"]) as started:
        yield started


def post(service: Service, *images: bytes, accept: str = "*/*", **options: str) -> httpx2.Response:
    files = [("image", (f"{index}.png", data)) for index, data in enumerate(images)]
    url = f"{service.url}/v1/mean-colour"
    return httpx2.post(url, files=files, data=options, headers={"Accept": accept}, timeout=60)


RED, GREY = (encoded(Image.new("RGB", (40, 30), colour)) for colour in ((200, 100, 50), (128, 128, 128)))


def test_the_page_is_short() -> None:
    code = "".join(code for _, path, code in BLOCK.findall(PAGE) if path not in (MAKES_BUNDLE, TESTS_IT))
    assert sum(bool(line.strip()) for line in code.splitlines()) < 80


def test_the_task_of_the_page_answers(service: Service) -> None:
    answer = post(service, RED, GREY).raise_for_status().json()
    assert list(answer) == ["id", "model", "version", "colours", "timing"]
    assert (answer["model"], answer["colours"]) == ("mean-colour", ["#c86432", "#808080"])
    text = post(service, RED, accept="text/plain", notation="rgb").raise_for_status()
    assert text.text == "rgb(200, 100, 50)"
    assert text.headers["content-type"].startswith("text/plain")
    assert text.headers["x-model"] == "mean-colour@1.0.0"
    assert re.search(r"\binference;dur=[0-9.]+", text.headers["server-timing"])


@pytest.mark.slow
def test_the_test_of_the_page_passes(house: Path, python: str) -> None:
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS_IT]
    ended = subprocess.run(command, cwd=house, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-5000:]


def test_command_and_client_ask_for_it_as_the_page_says(service: Service, python: str, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(RED)
    with Client(service.url) as client:
        assert client.ask("mean-colour", {"image": tmp_path / "cat.jpg"}, notation="rgb")["colours"] == ["rgb(200, 100, 50)"]
    command = [python, "-m", "opsin", "ask", "mean-colour", f"image={tmp_path / 'cat.jpg'}", "-o", "notation=rgb"]
    printed = subprocess.run([*command, "--url", service.url], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed)["colours"] == ["rgb(200, 100, 50)"]


def test_an_answer_that_is_asked_for_later_has_every_media_type(service: Service) -> None:
    """It is chosen when the answer is fetched; the options are those of the request."""
    url, asked = f"{service.url}/v1/mean-colour", {"Prefer": "respond-async", "Accept": "text/html"}
    accepted = httpx2.post(url, content=RED, params={"notation": "rgb"}, headers=asked, timeout=60)
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
    asked = {"inputs": [image], "parameters": {"gain": 0.5}}
    answer = httpx2.post(f"{service.url}/v2/models/mean-colour/infer", json=asked, timeout=60).raise_for_status().json()
    assert [(one["name"], one["shape"], one["data"]) for one in answer["outputs"]] == [("colour", [1, 3], [100.0, 50.0, 25.0])]
