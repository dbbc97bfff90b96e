"""`opsin zero-shot`, `embed` and `search` as a user runs them, on the real service; for what is cut short, by way of a proxy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx2
import numpy as np
import pytest

from opsin import Client
from opsin.image_encoding import png
from opsin.vector_file import FileVectors
from tests.support.bundles.vit import TINY
from tests.support.fake_servers import Answer, Request, serve_script
from tests.support.live_service import Service
from tests.support.processes import opsin
from tests.support.waiting import eventually

COUNT = 12


def write_images(folder: Path, count: int = COUNT) -> list[Path]:
    files = [folder / f"{index:03}.png" for index in range(count)]
    for seed, file in enumerate(files):
        file.write_bytes(png(np.random.default_rng(seed).integers(0, 256, (TINY.image_size, TINY.image_size, 3), np.uint8)))
    return files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images, one of them in an inner folder, and other files."""
    photos = tmp_path / "photos"
    (photos / "inner").mkdir(parents=True)
    files = write_images(photos)
    files[-1].rename(photos / "inner" / files[-1].name)
    (photos / "notes.txt").write_text("no image")
    (photos / ".hidden.png").write_text("no image")
    return photos


def embed(service: Service, folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return opsin("embed", folder, "-o", folder.parent / "vectors.npz", "--url", service.url, *arguments)


def test_zero_shot_prints_row_per_image_and_reports_bad_one(embedding_service: Service, folder: Path) -> None:
    files = [folder / "000.png", folder / "notes.txt", folder / "001.png"]
    ended = opsin("zero-shot", *files, "--label", "a red car", "--label", "dog", "--url", embedding_service.url)
    assert ended.returncode == 1
    assert [line.split()[0] for line in ended.stdout.splitlines()] == ["Image", "000.png", "001.png"]
    assert "a red car " in ended.stdout and "17 → 17" in ended.stdout
    assert ended.stderr.startswith(f"opsin: {files[1]}: 415 ") and ended.stderr.count("\n") == 1


def test_zero_shot_reads_labels_of_files_and_prints_json(embedding_service: Service, folder: Path, tmp_path: Path) -> None:
    lines, array = tmp_path / "labels.txt", tmp_path / "labels.json"
    lines.write_text("dog\n\ncat\n")
    array.write_text('["dog", "cat"]')
    common = ("--template", "{}", "--top-k", "3", "--json", "--url", embedding_service.url, "--label", "red car")
    first, second = (opsin("zero-shot", folder / "000.png", "--labels", file, *common) for file in (lines, array))
    found = json.loads(first.stdout)
    assert found["file"] == str(folder / "000.png") and found["templates"] == ["{}"] and found["labels"]["count"] == 3
    with Client(embedding_service.url) as client:
        expected = client.zero_shot(folder / "000.png", ["red car", "dog", "cat"], templates=["{}"], top_k=3)
    assert [one["label"] for one in found["predictions"]] == [one.label for one in expected.predictions]
    assert [one["label"] for one in json.loads(second.stdout)["predictions"]] == [one.label for one in expected.predictions]


def test_zero_shot_reports_that_no_label_reaches_the_threshold(embedding_service: Service, folder: Path) -> None:
    ended = opsin("zero-shot", folder / "000.png", "--label", "dog", "--threshold", "1", "--url", embedding_service.url)
    assert (ended.returncode, ended.stdout.splitlines()[1].split()[:2]) == (0, ["000.png", "none"])


def test_zero_shot_reports_how_many_labels_were_truncated(embedding_service: Service, folder: Path) -> None:
    ended = opsin("zero-shot", folder / "000.png", "--label", "dog", "--label", "w" * 99, "--url", embedding_service.url)
    answer = "opsin: 1 of 2 labels truncated: longer than the bundle reads\n"
    assert (ended.returncode, ended.stderr) == (0, answer)


def test_embed_writes_the_vectors_of_the_images_of_a_folder(embedding_service: Service, folder: Path) -> None:
    ended = embed(embedding_service, folder)
    assert (ended.returncode, ended.stderr) == (0, "opsin: files without the suffix of an image, passed over: 1\n")
    assert ended.stdout == f"{folder.parent}/vectors.npz: 12 vectors of 24 numbers, pair@1, 0 of them kept from before\n"
    with np.load(folder.parent / "vectors.npz", allow_pickle=False) as file, Client(embedding_service.url) as client:
        assert (file["vectors"].dtype, file["vectors"].shape) == (np.float32, (12, 24))
        assert file["paths"].tolist() == [str(path) for path in sorted([*folder.glob("0*.png"), folder / "inner/011.png"])]
        assert (str(file["model"]), str(file["digest"])) == ("pair@1", client.model("pair").digest)
        np.testing.assert_allclose(file["vectors"], client.embed(file["paths"].tolist()).vectors, atol=2e-6)


def test_embed_sends_what_has_changed_and_nothing_else(embedding_service: Service, folder: Path) -> None:
    with run_proxy(embedding_service) as proxy:
        answer: list[str] = []

        def again(*arguments: str) -> tuple[str, int]:
            before = proxy.embedded
            ended = opsin("embed", folder, "-o", folder.parent / "vectors.npz", "--url", proxy.url, *arguments)
            assert ended.returncode == 0, ended.stderr
            answer[:] = [line.split("its vectors are of ")[1] for line in ended.stderr.splitlines() if "its vectors are of " in line]
            return ended.stdout.split(": ")[1].strip(), proxy.embedded - before

        assert again() == ("12 vectors of 24 numbers, pair@1, 0 of them kept from before", 12)
        assert again() == ("12 vectors of 24 numbers, pair@1, 12 of them kept from before", 0)
        os.utime(folder / "003.png")
        (folder / "004.png").write_bytes((folder / "005.png").read_bytes())
        (folder / "006.png").unlink()
        assert again() == ("11 vectors of 24 numbers, pair@1, 9 of them kept from before", 2)
        assert answer == []
        assert again("--merge", "2") == ("11 vectors of 24 numbers, pair@1, 0 of them kept from before", 11)
        assert answer == ["pair@1, merge off, pool by default: all files are embedded again"]
        assert again("--model", "encoder", "--merge", "2") == ("11 vectors of 32 numbers, encoder@1, 0 of them kept from before", 11)
        assert again("--merge", "2") == ("11 vectors of 32 numbers, encoder@1, 11 of them kept from before", 0)
        forget_digest(folder.parent / "vectors.npz")
        assert again("--merge", "2") == ("11 vectors of 32 numbers, encoder@1, 0 of them kept from before", 11)
        assert answer == ["encoder@1 with another content, merge 2, pool by default: all files are embedded again"]


def test_embed_names_files_that_cannot_be_and_keeps_the_others(embedding_service: Service, folder: Path) -> None:
    (folder / "000.png").write_text("no image")
    (folder / "002.png").write_bytes((folder / "002.png").read_bytes()[:300])
    ended = embed(embedding_service, folder)
    assert ended.returncode == 1 and "10 vectors" in ended.stdout
    refused = [line for line in ended.stderr.splitlines() if "passed over" not in line]
    assert [line.split(": ")[1] for line in refused] == [str(folder / "000.png"), str(folder / "002.png")]
    nothing = opsin("embed", folder / "notes.txt", "-o", folder / "none.npz", "--url", embedding_service.url)
    assert (nothing.returncode, nothing.stdout, (folder / "none.npz").exists()) == (1, "", False)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--model", "nobody"], "opsin: 404 Unknown model: "),
        (["--merge", "warp"], "opsin: 422 Invalid option: merge: "),
        (["--pool", "max"], "opsin: 422 Invalid option: pool: "),
    ],
)
def test_embed_stops_at_once_where_no_file_is_at_fault(embedding_service: Service, folder: Path, arguments: list[str], reason: str) -> None:
    ended = embed(embedding_service, folder, *arguments)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.splitlines()[-1].startswith(reason) and ended.stderr.count("\n") == 2


def test_embed_reports_that_the_bundle_of_the_file_is_gone(embedding_service: Service, folder: Path) -> None:
    assert embed(embedding_service, folder).returncode == 0
    file = folder.parent / "vectors.npz"
    replace(FileVectors.load(file), model="gone@3").save(file)
    ended = embed(embedding_service, folder)
    assert ended.returncode == 1
    assert f"opsin: {file}: its vectors are of gone@3; name another bundle by --model (404 " in ended.stderr


@dataclass
class Proxy:
    """A proxy between a command and the service."""

    url: str = ""
    embedded: int = 0
    """Requests for vectors that were answered."""
    pending: int = 0
    """Requests that the service has not answered yet."""
    limit: int = sys.maxsize
    """Number of requests for vectors that are answered; further ones wait until `opened`."""
    pause: float = 0.0
    """Pause in seconds before each answer."""
    opened: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def run_proxy(service: Service) -> Iterator[Proxy]:
    proxy = Proxy()

    def forward(request: Request) -> Answer:
        with proxy.lock:
            proxy.pending += 1
        requested = request.path.startswith("/v1/embed")
        headers = {name: request.headers[name] for name in ("Accept", "Content-Type") if name in request.headers}
        method = "POST" if requested else "GET"
        response = behind.request(method, request.path, content=request.body, headers=headers)
        with proxy.lock:
            proxy.embedded += requested
            late = requested and proxy.embedded > proxy.limit
        time.sleep(proxy.pause)
        with proxy.lock:
            proxy.pending -= 1
        answer = {name: response.headers[name] for name in ("Content-Type", "X-Model") if name in response.headers}
        return Answer(response.status_code, response.content, answer, after=proxy.opened if late else None)

    with httpx2.Client(base_url=service.url, timeout=60) as behind, serve_script(forward) as script:
        proxy.url = script.url
        yield proxy


def start_command(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "opsin", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def forget_digest(file: Path) -> None:
    """Change the digest as if the file were of another content of the bundle."""
    replace(FileVectors.load(file), digest="0" * 64).save(file)


def test_embed_keeps_what_has_come_when_it_is_interrupted(embedding_service: Service, tmp_path: Path) -> None:
    photos, file = tmp_path / "photos", tmp_path / "vectors.npz"
    photos.mkdir()
    write_images(photos, 60)
    with run_proxy(embedding_service) as proxy:
        proxy.limit = 25
        command = start_command("embed", photos, "-o", file, "--url", proxy.url)
        eventually(lambda: proxy.embedded > proxy.limit, "more is asked than is answered")
        time.sleep(1)  # what was answered has arrived
        command.send_signal(signal.SIGINT)
        eventually(file.exists, "what has come is written")
        proxy.opened.set()
        assert command.wait(60) == 130
        retained = len(FileVectors.load(file))
        assert 0 < retained <= 25
        assert command.stderr is not None
        assert f"opsin: interrupted; {retained} of 60 files are in {file}" in command.stderr.read()
        before = proxy.embedded
        ended = opsin("embed", photos, "-o", file, "--url", proxy.url)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert "60 vectors" in ended.stdout and f"{retained} of them kept from before" in ended.stdout
        assert proxy.embedded - before == 60 - retained


def test_embed_goes_on_after_it_was_killed(embedding_service: Service, tmp_path: Path) -> None:
    photos, file = tmp_path / "photos", tmp_path / "vectors.npz"
    photos.mkdir()
    files = write_images(photos, 320)
    with run_proxy(embedding_service) as proxy:
        proxy.pause = 0.5  # 320 answers, 16 at a time, take 10 s at least: the file is written after 5 s for the first time
        command = start_command("embed", photos, "-o", file, "--url", proxy.url)
        eventually(file.exists, "the file is written in the middle")
        command.kill()
        assert command.wait(10) == -signal.SIGKILL
        retained = len(FileVectors.load(file))
        assert 0 < retained < len(files)
        eventually(lambda: proxy.pending == 0, "what the killed command has asked for is answered")
        proxy.pause, before = 0.0, proxy.embedded
        ended = opsin("embed", photos, "-o", file, "--url", proxy.url)
        assert ended.returncode == 0 and f"320 vectors of 24 numbers, pair@1, {retained} of them kept from before" in ended.stdout
        assert proxy.embedded - before == len(files) - retained
    with Client(embedding_service.url) as client:
        rows = [0, 160, 319]
        expected = client.embed([files[row] for row in rows]).vectors
    np.testing.assert_allclose(FileVectors.load(file).vectors[rows], expected, atol=2e-6)


def test_search_finds_the_nearest_files(embedding_service: Service, folder: Path) -> None:
    assert embed(embedding_service, folder).returncode == 0
    file = folder.parent / "vectors.npz"
    with Client(embedding_service.url) as client:
        gallery = client.gallery(folder, pattern="**/*.png", progress=False)
        expected = gallery.search("something to eat", k=3)
    table = opsin("search", file, "something to eat", "-k", "3", "--url", embedding_service.url)
    assert [line.split()[1] for line in table.stdout.splitlines()] == ["File", *(str(match.path) for match in expected)]
    lines = opsin("search", file, "something to eat", "-k", "3", "--json", "--url", embedding_service.url).stdout.splitlines()
    assert [json.loads(line)["path"] for line in lines] == [str(match.path) for match in expected]
    assert json.loads(lines[0])["cosine"] == pytest.approx(expected[0].cosine, abs=1e-5)
    alike = opsin("search", file, "--image", folder / "004.png", "-k", "1", "--json", "--url", embedding_service.url)
    assert json.loads(alike.stdout) == {"path": str(folder / "004.png"), "cosine": pytest.approx(1, abs=1e-5)}


def test_search_refuses_vectors_of_another_content_of_the_bundle(embedding_service: Service, folder: Path) -> None:
    assert embed(embedding_service, folder).returncode == 0
    forget_digest(folder.parent / "vectors.npz")
    ended = opsin("search", folder.parent / "vectors.npz", "a dog", "--url", embedding_service.url)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "the vectors are of pair@1 with digest 000000000000, and the service has pair@1 with digest " in ended.stderr
    assert ended.stderr.strip().endswith("embed the files again") and ended.stderr.count("\n") == 1


def test_search_by_text_needs_a_bundle_that_reads_texts(embedding_service: Service, folder: Path) -> None:
    assert embed(embedding_service, folder, "--model", "encoder").returncode == 0
    ended = opsin("search", folder.parent / "vectors.npz", "a dog", "--url", embedding_service.url)
    assert ended.returncode == 1
    assert ended.stderr == "opsin: 422 Invalid option: text: encoder@1 takes image, and no text\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["zero-shot", "README.md"], "opsin: zero-shot: no labels are given; name some with --label TEXT or --labels FILE"),
        (["zero-shot", "docs", "--label", "a"], "opsin: docs: a folder; name its images"),
        (["zero-shot", "README.md", "--labels", "/nowhere"], "opsin: --labels: /nowhere: "),
        (["embed", "docs", "-o", "vectors.json"], "opsin: vectors.json: the file's name must end in .npz"),
        (["embed", "docs", "-o", "no/vectors.npz"], "opsin: no/vectors.npz: cannot be written (there is no folder no)"),
        (["embed", "/nowhere", "-o", "vectors.npz"], "opsin: /nowhere: no such file or folder"),
        (["embed", "tests/opsin", "-o", "vectors.npz"], "opsin: tests/opsin: contains no images"),
        (["search", "/nowhere.npz", "a dog"], "opsin: /nowhere.npz: no such file; `opsin embed FOLDER -o /nowhere.npz` writes it"),
        (["search", "README.md", "a dog"], "opsin: README.md: not a file of vectors written by `opsin embed`"),
        (["search", "README.md"], "opsin: search: give either a text or --image FILE"),
        (["search", "README.md", "a", "--image", "README.md"], "opsin: search: give either a text or --image FILE"),
        (["search", "README.md", "a", "-k", "0"], "opsin: -k: 0; it must be at least 1"),
        (["search", "README.md", "--image", "/nowhere"], "opsin: --image: /nowhere: no such file"),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(arguments: list[str], sentence: str) -> None:
    ended = opsin(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(sentence) and ended.stderr.count("\n") == 1


def test_a_file_of_something_else_is_not_written_over(embedding_service: Service, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.npz"
    np.savez(file, vectors=np.zeros((2, 3), np.float32))
    before = file.read_bytes()
    ended = opsin("embed", folder, "-o", file, "--url", embedding_service.url)
    assert ended.returncode == 2 and "not a file of vectors written by `opsin embed`" in ended.stderr
    assert file.read_bytes() == before


def test_a_file_of_a_distant_year_is_embedded_once(embedding_service: Service, folder: Path) -> None:
    """The file's time does not fit an int64 of nanoseconds."""
    os.utime(folder / "000.png", (10**10, 10**10))
    assert [embed(embedding_service, folder).returncode for _ in range(2)] == [0, 0]
    assert f"{COUNT} of them kept from before" in embed(embedding_service, folder).stdout


def test_vectors_are_saved_through_a_link_and_by_several_at_once(tmp_path: Path) -> None:
    vectors = FileVectors(
        np.ones((5000, 64), np.float32), np.array(["a"] * 5000), np.ones(5000, np.int64), np.ones(5000, np.int64), "pair@1", "0", "", ""
    )
    file, link = tmp_path / "folder/vectors.npz", tmp_path / "link.npz"
    file.parent.mkdir()
    link.symlink_to(file)
    vectors.save(link)
    assert link.is_symlink() and len(FileVectors.load(file)) == 5000
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(vectors.save, [link] * 40))
    assert len(FileVectors.load(link)) == 5000
    assert [path.name for path in file.parent.iterdir()] == [file.name] and link.is_symlink()


def test_an_array_alone_is_no_file_of_vectors(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="not a file of vectors"):
        FileVectors.load(tmp_path / "v.npy")


def test_a_file_of_vectors_that_is_damaged_is_named(tmp_path: Path) -> None:
    file = tmp_path / "vectors.npz"
    np.savez_compressed(file, vectors=np.random.default_rng(0).random((64, 8), np.float32))
    content = bytearray(file.read_bytes())
    content[60:100] = b"\xff" * 40
    file.write_bytes(content)
    ended = opsin("search", file, "a dog")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert ended.stderr.startswith(f"opsin: {file}: not a file of vectors written by `opsin embed`")


def test_a_search_in_100_000_vectors_is_exact() -> None:
    numbers = np.random.default_rng(0).standard_normal((100_000, 64), np.float32)
    numbers /= np.linalg.norm(numbers, axis=1, keepdims=True)
    counts = np.zeros(len(numbers), np.int64)
    files = FileVectors(numbers, np.arange(len(numbers)).astype(str), counts, counts, "pair@1", "", "", "")
    for row in range(3):
        found = files.nearest(numbers[row], 10)
        exact = numbers @ numbers[row]
        assert [int(match.path.name) for match in found] == np.argsort(-exact, kind="stable")[:10].tolist()
