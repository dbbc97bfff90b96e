"""`opsin batch` as a process of its own with a running service."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opsin import Refused, Unavailable, Unreachable
from opsin.cli.batch.command import batch
from opsin.cli.shared.errors import CommandError, UsageError
from tests.support.fake_servers import Answer, Request, serve_script
from tests.support.fake_worker import Worker, make_spec, picture
from tests.support.forked_program import ForkedProcess
from tests.support.gateway_process import Gateway, gateway_process
from tests.support.processes import opsin
from tests.support.redis import private_valkey
from tests.support.waiting import eventually

ROWS = 400
KILLS = 10
JSON = {"Content-Type": "application/json"}
MODEL = {"name": "m", "version": "1", "state": "ready"}
PARTS = ("image", "image"), ("mask", "image"), ("text", "text")
MODELS = {"models": [{**MODEL, "task": "inpaint", "inputs": [{"name": name, "kind": kind, "max_bytes": 1000} for name, kind in PARTS]}]}


@pytest.fixture(scope="module")
def reds() -> Iterator[tuple[Gateway, Worker]]:
    """A service that knows ten shades of red."""
    with private_valkey() as server, Worker(server.url, [make_spec()]) as worker, gateway_process(server.url) as gateway:
        yield gateway, worker


@pytest.fixture
def shades(tmp_path: Path) -> Path:
    """A folder of ten images, in the order of their redness."""
    folder = tmp_path / "shades"
    folder.mkdir()
    for step in range(10):
        (folder / f"{step}.png").write_bytes(picture(step))
    (folder / "notes.txt").write_text("no image")
    return folder


def write_file(file: Path, *rows: object) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def results(output: Path) -> list[dict[str, Any]]:
    """Return the lines of the results without the header."""
    return [json.loads(line) for line in output.read_text().splitlines()[1:]]


def labels(output: Path) -> list[str]:
    return [row["answer"]["results"][0]["predictions"][0]["label"] for row in results(output)]


def lines(output: Path) -> int:
    return output.read_bytes().count(b"\n") if output.exists() else 0


def test_a_folder_is_sent_file_by_file_at_priority_low(reds: tuple[Gateway, Worker], shades: Path, tmp_path: Path) -> None:
    gateway, worker = reds
    output = tmp_path / "out.jsonl"
    before = len(worker.done)
    ran = opsin("batch", "classify", shades, "-o", output, "--option", "top_k=1", "--url", gateway.url)
    assert (ran.returncode, ran.stdout) == (0, f"{output}: 10 answered\n"), ran.stderr
    assert labels(output) == [f"red {step}" for step in range(10)]
    assert {job.priority for job in worker.done[before:]} == {"low"}


def test_batch_killed_ten_times_and_resumed_has_each_row_once(reds: tuple[Gateway, Worker], shades: Path, tmp_path: Path) -> None:
    gateway, _ = reds
    rows = write_file(tmp_path / "in.jsonl", *({"id": f"row {i}", "image": f"shades/{i % 10}.png"} for i in range(ROWS)))
    output, command = tmp_path / "out.jsonl", ("batch", "classify", str(rows), "-o", str(tmp_path / "out.jsonl"), "--url", gateway.url)
    for kill, until in enumerate(sorted(random.Random(33).sample(range(2, ROWS - 50), KILLS))):
        begun = ForkedProcess("opsin", *command, *["--resume"] * bool(kill), environment=os.environ, captured=True)
        eventually(lambda until=until: lines(output) >= until, f"{until} lines are written")
        begun.kill()
        assert begun.wait(60) == -signal.SIGKILL
        begun.close()
        with output.open("ab") as file:  # as where it was killed in the middle of a line
            file.write(b'{"index": 7')
    ended = opsin(*command, "--resume")
    assert ended.returncode == 0, ended.stderr
    assert [row["index"] for row in results(output)] == list(range(ROWS))
    assert [row["id"] for row in results(output)] == [f"row {i}" for i in range(ROWS)]
    assert labels(output) == [f"red {i % 10}" for i in range(ROWS)]


def test_rows_may_start_with_a_byte_order_mark(reds: tuple[Gateway, Worker], shades: Path, tmp_path: Path) -> None:
    gateway, _ = reds
    rows, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows.write_text('{"image": "shades/1.png"}\r\n', encoding="utf-8-sig")  # as Windows' tools write it
    ended = opsin("batch", "classify", rows, "-o", output, "--url", gateway.url)
    assert (ended.returncode, labels(output)) == (0, ["red 1"]), ended.stderr


def test_nothing_that_is_given_twice_is_dropped(reds: tuple[Gateway, Worker], shades: Path, tmp_path: Path) -> None:
    gateway, _ = reds
    image = {"image": "shades/1.png"}
    rows = write_file(tmp_path / "in.jsonl", image, {**image, "top_k": 1, "top_ks": [2]}, {**image, "top_k": []})
    output = tmp_path / "out.jsonl"
    assert opsin("batch", "classify", rows, "-o", output, "--url", gateway.url).returncode == 1
    assert [row["error"]["detail"] for row in results(output)[1:]] == ["given twice", "top_k: an empty list; leave it out"]
    twice = opsin(
        "batch", "classify", rows, "-o", tmp_path / "other.jsonl", "--url", gateway.url, "--option", "top_k=1", "--option", "top_k=2"
    )
    assert (twice.returncode, twice.stderr) == (1, "opsin: 422 Invalid option: top_k: given twice\n")


def test_failing_row_spoils_no_other_and_sets_exit_code(reds: tuple[Gateway, Worker], shades: Path, tmp_path: Path) -> None:
    gateway, _ = reds
    inputs = [{"images": ["shades/1.png", "shades/2.png"]}, {"image": "gone.png"}, {"image": "shades/notes.txt"}]
    rows = write_file(
        tmp_path / "in.jsonl",
        *inputs,
        {"image": "shades/3.png", "top_k": 99},
        {"image": "shades/4.png", "top_k": 1},
        {"image": "a\0.png"},
        {"image": "\ud800.png"},
    )
    output = tmp_path / "out.jsonl"
    ran = opsin("batch", "classify", rows, "-o", output, "--url", gateway.url)
    assert ran.returncode == 1
    assert "5 of 7 rows failed, the first of them row 1:" in ran.stderr
    several, gone, text, options, last, *nameless = results(output)
    assert len(several["answer"]["results"]) == 2
    assert "gone.png: cannot be read" in gone["error"]["detail"]
    assert (text["error"]["status"], text["error"]["field"]) == (415, "image")
    assert (options["error"]["status"], options["error"]["field"]) == (422, "top_k")
    assert len(last["answer"]["results"][0]["predictions"]) == 1
    assert ["not a valid file name" in row["error"]["detail"] for row in nameless] == [True, True]
    again = opsin("batch", "classify", rows, "-o", output, "--resume", "--url", gateway.url)
    assert (again.returncode, "5 of 7 rows failed" in again.stderr) == (1, True)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"rows": True}, "written with other rows"),
        ({"option": "top_k=2"}, "written with other options"),
        ({"task": "embed"}, "another task"),
    ],
)
def test_resuming_with_others_is_refused_and_changes_nothing(
    reds: tuple[Gateway, Worker], shades: Path, tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    gateway, _ = reds
    rows, output = write_file(tmp_path / "in.jsonl", {"image": "shades/1.png"}), tmp_path / "out.jsonl"
    assert opsin("batch", "classify", rows, "-o", output, "--url", gateway.url).returncode == 0
    before = output.read_bytes()
    if "rows" in changed:
        write_file(rows, {"image": "shades/2.png"})
    option = ["--option", changed["option"]] if "option" in changed else []
    ran = opsin("batch", changed.get("task", "classify"), rows, "-o", output, "--resume", *option, "--url", gateway.url)
    assert (ran.returncode, words in ran.stderr, output.read_bytes()) == (2, True, before), ran.stderr


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: write an object"),
        ("[" * 9999 + "]" * 9999, "line 2: not JSON"),
        ('{"image": {"path": "a.png"}}', "line 2: image: write a text"),
        ('{"image": "a.png", "priority": "high"}', "line 2: priority: batches have the priority low"),
    ],
)
def test_an_invalid_line_is_named_before_anything_is_sent(reds: tuple[Gateway, Worker], tmp_path: Path, row: str, words: str) -> None:
    rows, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows.write_text(f'{{"image": "a.png"}}\n{row}\n')
    ran = opsin("batch", "classify", rows, "-o", output, "--url", reds[0].url)
    assert (ran.returncode, words in ran.stderr, output.exists()) == (2, True, False), ran.stderr


def test_mistake_in_common_options_is_reported_by_first_row(reds: tuple[Gateway, Worker], shades: Path, tmp_path: Path) -> None:
    for option, words in (("model=unheard", "Unknown model"), ("top_k=99", "top_k"), ("wrong=1", "wrong: unknown")):
        ran = opsin("batch", "classify", shades, "-o", tmp_path / "out.jsonl", "--option", option, "--url", reds[0].url)
        assert (ran.returncode, words in ran.stderr) == (1, True), ran.stderr
        assert not (tmp_path / "out.jsonl").exists()


def test_what_a_row_says_itself_is_no_mistake_of_all(reds: tuple[Gateway, Worker], shades: Path, tmp_path: Path) -> None:
    rows = write_file(tmp_path / "in.jsonl", {"image": "shades/1.png", "top_k": 99}, {"image": "shades/2.png"})
    ran = opsin("batch", "classify", rows, "-o", tmp_path / "out.jsonl", "--option", "top_k=1", "--url", reds[0].url)
    assert (ran.returncode, "1 of 2 rows failed" in ran.stderr) == (1, True), ran.stderr


def test_it_does_not_write_over_what_is_there(reds: tuple[Gateway, Worker], shades: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("precious\n")
    for resume, words in (([], "already exists; use --resume to continue it"), (["--resume"], "not an output file of opsin batch")):
        ran = opsin("batch", "classify", shades, "-o", output, *resume, "--url", reds[0].url)
        assert (ran.returncode, words in ran.stderr, output.read_text()) == (2, True, "precious\n")


def test_answers_that_are_files_lie_next_to_the_results(tmp_path: Path) -> None:
    def service(request: Request) -> Answer:
        if request.path == "/v1/models":
            return Answer(body=MODELS)
        return Answer(body=b"a PNG", headers={"Content-Type": "image/png", "X-Seed": "5", "X-Request-ID": "r"})

    (tmp_path / "a.png").write_bytes(b"image")
    rows = write_file(tmp_path / "in.jsonl", {"image": "a.png", "mask": "center:0.5", "seed": 5}, {"image": "a.png", "mask": "a.png"})
    output, left = tmp_path / "out.jsonl", tmp_path / "out.files" / "1.glb.part"
    others = tmp_path / "out.files" / "1.thesis.docx"
    with serve_script(service) as script:
        command = ("batch", "inpaint", rows, "-o", output, "--url", script.url)
        assert opsin(*command).returncode == 0
        full = output.read_bytes()
        others.write_bytes(b"somebody else's")
        output.write_bytes(full[:-5])  # the last line is torn
        left.write_bytes(b"what a killed process left")
        assert opsin(*command, "--resume").returncode == 0
    assert output.read_bytes() == full
    assert (left.exists(), others.exists()) == (False, True)
    assert results(output)[1] == {"index": 1, "answer": {"file": "out.files/1.png", "headers": {"x-seed": "5"}}}
    assert (tmp_path / "out.files" / "1.png").read_bytes() == b"a PNG"
    words, files = (next(one.body for one in script.requests if mark in one.body) for mark in (b"center:0.5", b'filename="mask"'))
    assert b'name="mask"\r\n' in words
    assert words.count(b"filename=") == 1
    assert files.count(b"\r\nimage\r\n") == 2


def test_outputs_get_new_folders_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "v.files").mkdir()
    (tmp_path / "v.files" / "0.png").write_bytes(b"image")
    png = Answer(body=b"a PNG", headers={"Content-Type": "image/png"})
    rows = write_file(tmp_path / "in.jsonl", {"image": "v.files/0.png"})
    with serve_script(lambda request: Answer(body=MODELS) if request.path == "/v1/models" else png) as script:
        for resume in ([], ["--resume"]):
            ran = opsin("batch", "inpaint", rows, "-o", tmp_path / "v.jsonl", *resume, "--url", script.url)
            assert (ran.returncode, "v.files: already exists" in ran.stderr, (tmp_path / "v.jsonl").exists()) == (2, True, False)
        for name in ("v.1", "v.2"):
            batch("inpaint", rows, tmp_path / name, url=script.url)
            assert results(tmp_path / name)[0]["answer"]["file"] == f"{name}.files/0.png"
            assert (tmp_path / f"{name}.files" / "0.png").read_bytes() == b"a PNG"
    assert (tmp_path / "v.files" / "0.png").read_bytes() == b"image"


def test_an_output_in_the_folder_of_the_rows_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"image")
    png, output = Answer(body=b"a PNG", headers={"Content-Type": "image/png"}), tmp_path / "out.png"
    with serve_script(lambda request: Answer(body=MODELS) if request.path == "/v1/models" else png) as script:
        batch("inpaint", tmp_path, output, url=script.url)
        batch("inpaint", tmp_path, output, resume=True, url=script.url)
    assert len(results(output)) == 1


@pytest.mark.parametrize(
    "row",
    [
        {"index": 1, "error": "x"},
        {"index": 1, "error": {}},
        {"index": 1, "error": None},
        {"index": 1},
        {"index": 1, "answer": {}, "error": {"detail": "x"}},
        {"index": 2, "answer": {}},
    ],
)
def test_a_changed_line_is_named_and_nothing_is_sent(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "a.png").write_bytes(b"image")
    rows, output = write_file(tmp_path / "in.jsonl", *[{"image": "a.png"}] * 2), tmp_path / "out.jsonl"
    fine = Answer(body={"fine": True}, headers=JSON)
    with serve_script(lambda request: Answer(body=MODELS) if request.path == "/v1/models" else fine) as script:
        batch("inpaint", rows, output, url=script.url)
        before = output.read_text().splitlines(keepends=True)
        output.write_text("".join(before[: 1 + row["index"]]) + json.dumps(row) + "\n")
        with pytest.raises(UsageError, match=f"line {2 + row['index']} is not row"):
            batch("inpaint", rows, output, resume=True, url=script.url)


def test_unreadable_or_unservable_row_does_not_end_batch(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"image")
    (tmp_path / "large.png").write_bytes(bytes(1001))
    os.mkfifo(tmp_path / "pipe")
    files = ("/dev/zero", "pipe", ".", "large.png", "a.png")
    rows = write_file(tmp_path / "in.jsonl", {"video": "a.mp4"}, *({"image": name} for name in files), {"image": "a.png", "model": "gone"})
    unknown = Answer(404, {"title": "Unknown model", "detail": "no bundle for inpaint that takes image or mask is served"})

    def service(request: Request) -> Answer:
        if request.path == "/v1/models":
            return Answer(body=MODELS)
        return unknown if b"video" in request.body or b"gone" in request.body else Answer(body={"fine": True}, headers=JSON)

    with serve_script(service) as script, pytest.raises(CommandError, match="6 of 7"):
        batch("inpaint", rows, tmp_path / "out.jsonl", url=script.url)
    video, zero, pipe, folder, large, last, model = results(tmp_path / "out.jsonl")
    assert video["error"]["status"] == model["error"]["status"] == 404
    assert "not a regular file" in zero["error"]["detail"]
    assert "not a regular file" in pipe["error"]["detail"]
    assert "a folder" in folder["error"]["detail"]
    assert "1001 bytes; the service takes at most 1000" in large["error"]["detail"]
    assert last["answer"] == {"fine": True}


def test_a_bundle_that_is_gone_in_the_middle_ends_the_batch(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"image")
    rows, output = write_file(tmp_path / "in.jsonl", *[{"image": "a.png"}] * 3), tmp_path / "out.jsonl"
    gone = Answer(404, {"title": "Unknown model", "detail": "no bundle for inpaint is served"})
    with (
        serve_script([Answer(body=MODELS), Answer(body={"n": 1}, headers=JSON), gone]) as script,
        pytest.raises(Refused, match="no bundle"),
    ):
        batch("inpaint", rows, output, url=script.url)
    assert len(results(output)) == 1


def test_a_bundle_that_is_refused_ends_the_batch(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"image")
    rows = write_file(tmp_path / "in.jsonl", {"image": "a.png"}, {"image": "a.png"})
    refusal = Answer(503, {"type": "urn:opsin:bundle-unavailable", "title": "The bundle cannot be served", "detail": "it is damaged"}, JSON)
    with serve_script([Answer(body=MODELS), refusal]) as script, pytest.raises(Unavailable, match="it is damaged"):
        batch("inpaint", rows, tmp_path / "out.jsonl", url=script.url)
    assert len(script.requests) == 2


def test_events_are_no_answers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="stores answers, not events"):
        batch("inpaint", tmp_path, tmp_path / "out.jsonl", accept="image/png, Text/Event-Stream")


def test_texts_are_sent_as_they_are(tmp_path: Path) -> None:
    rows, output = write_file(tmp_path / "in.jsonl", {"texts": ["a dog", "größer"], "truncate": False}), tmp_path / "out.jsonl"
    with serve_script(lambda request: Answer(body=MODELS if request.path == "/v1/models" else {"kind": "text"})) as script:
        assert opsin("batch", "embed", rows, "-o", output, "--url", script.url).returncode == 0
    body = script.requests[-1].body.decode()
    assert body.count('name="text"\r\n') == 2
    assert "größer" in body
    assert 'name="truncate"\r\n\r\nfalse' in body


def test_full_service_is_retried_as_often_as_needed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"image")
    rows, output = write_file(tmp_path / "in.jsonl", *[{"image": "a.png"}] * 20), tmp_path / "out.jsonl"
    full = Answer(429, {"title": "full", "detail": "no room"}, {"Retry-After": "0"})
    away = Answer(503, {"title": "away", "detail": "no worker"}, {"Retry-After": "0"})
    turns = iter([full, away] * 10)

    def service(request: Request) -> Answer:
        return Answer(body=MODELS) if request.path == "/v1/models" else next(turns, Answer(body={"fine": True}, headers=JSON))

    with serve_script(service) as script:
        ran = opsin("batch", "inpaint", rows, "-o", output, "--url", script.url)
    assert ran.returncode == 0, ran.stderr
    assert [row["answer"] for row in results(output)] == [{"fine": True}] * 20
    assert len(script.requests) == 1 + 20 + 20


@pytest.mark.parametrize(
    ("answered", "message"),
    [(1, "1 of 40 rows are in {output}; use --resume to continue"), (0, "no row was answered, and nothing is stored")],
)
def test_an_interrupt_keeps_what_there_is_and_says_how_to_go_on(tmp_path: Path, answered: int, message: str) -> None:
    (tmp_path / "a.png").write_bytes(b"image")
    rows, output = write_file(tmp_path / "in.jsonl", *[{"image": "a.png"}] * 40), tmp_path / "out.jsonl"
    answers, refused = iter([Answer(body={"n": 1}, headers=JSON)] * answered), threading.Event()
    busy = Answer(429, {"title": "full", "detail": "no room"}, {"Retry-After": "600"})

    def service(request: Request) -> Answer:
        if request.path == "/v1/models":
            return Answer(body=MODELS)
        if answer := next(answers, None):
            return answer
        refused.set()
        return busy

    with serve_script(service) as script:
        command = ("batch", "inpaint", str(rows), "-o", str(output), "--url", script.url)
        begun = ForkedProcess("opsin", *command, environment=os.environ, captured=True)
        eventually(lambda: refused.is_set() and lines(output) == 1 + answered, "the first row, which is asked alone, is written or waits")
        begun.send_signal(signal.SIGINT)
        _, err = begun.communicate(60)
        begun.close()
    assert (begun.returncode, err) == (130, f"opsin: interrupted; {message.format(output=output)}\n")
    assert output.exists() == bool(answered)


def test_waiting_batch_locks_its_file_and_ends_at_interrupt(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"image")
    rows, output = write_file(tmp_path / "in.jsonl", *[{"image": "a.png"}] * 40), tmp_path / "out.jsonl"
    answers, released = iter([Answer(body={"n": 1}, headers=JSON)]), threading.Event()

    def service(request: Request) -> Answer:
        if request.path == "/v1/models":
            return Answer(body=MODELS)
        if answer := next(answers, None):
            return answer
        waiting.set()
        released.wait(120)
        return Answer(body={"n": 2}, headers=JSON)

    waiting = threading.Event()
    with serve_script(service) as script:
        command = ("batch", "inpaint", str(rows), "-o", str(output), "--url", script.url)
        begun = ForkedProcess("opsin", *command, environment=os.environ, captured=True)
        try:
            eventually(lambda: waiting.is_set() and lines(output) == 2, "the first row is written, and others are asked for")
            second = opsin(*command, "--resume")
            assert (second.returncode, "in use by another `opsin batch`" in second.stderr) == (2, True), second.stderr
            begun.send_signal(signal.SIGINT)
            _, err = begun.communicate(30)
        finally:
            released.set()
            begun.kill()
            begun.close()
    assert (begun.returncode, "1 of 40 rows" in err, len(results(output))) == (130, True, 1)


def test_revoked_key_ends_batch_that_waits_for_answers(tmp_path: Path) -> None:
    for name in ("first", "slow", "stranger"):
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    rows = write_file(tmp_path / "in.jsonl", *({"image": f"{name}.png"} for name in ("first", "slow", "stranger")))
    released, output = threading.Event(), tmp_path / "out.jsonl"

    def service(request: Request) -> Answer:
        if request.path == "/v1/models":
            return Answer(body=MODELS)
        if b"stranger" in request.body:
            return Answer(401, {"title": "unauthorized", "detail": "unknown key"})
        if b"slow" in request.body:
            released.wait(120)
        return Answer(body={"n": 1}, headers=JSON)

    with serve_script(service) as script:
        try:
            ran = opsin("batch", "inpaint", rows, "-o", output, "--url", script.url, seconds=30)
        finally:
            released.set()
    assert (ran.returncode, ran.stderr, len(results(output))) == (1, "opsin: 401 unauthorized: unknown key\n", 1)


def test_proxy_error_for_unavailable_service_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The patience starts again with the first failure after an answer; without any it ends after the first."""
    monkeypatch.setattr("opsin.cli.batch.command.MAX_OUTAGE_S", 0.0)
    monkeypatch.setattr("opsin.cli.batch.command.RETRY_PAUSE_S", 0.01)
    (tmp_path / "a.png").write_bytes(b"image")
    rows = write_file(tmp_path / "in.jsonl", {"image": "a.png"}, {"image": "a.png"})
    away = [Answer(502, "<html>Bad Gateway"), Answer(504, "<html>Gateway Time-out")]
    busy = Answer(429, {"title": "full", "detail": "no room"}, {"Retry-After": "0"})
    late = Answer(504, {"title": "late", "detail": "no result in time"})
    models, fine = Answer(body=MODELS), Answer(body={"fine": True}, headers=JSON)
    with (
        serve_script([models, away[0], busy, away[1], busy, away[0], late, away[1], fine]) as script,
        pytest.raises(CommandError, match="1 of 2"),
    ):
        batch("inpaint", rows, tmp_path / "out.jsonl", url=script.url)
    first, second = results(tmp_path / "out.jsonl")
    assert (first["error"]["title"], second["answer"]) == ("late", {"fine": True})
    with serve_script([models, fine, *away]) as script, pytest.raises(Unreachable, match="504"):
        batch("inpaint", rows, tmp_path / "another.jsonl", url=script.url)
    assert len(results(tmp_path / "another.jsonl")) == 1


def test_vectors_of_images_as_npy(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"image")
    content = base64.b64decode("k05VTVBZ")
    with serve_script(
        lambda request: (
            Answer(body=MODELS)
            if request.path == "/v1/models"
            else Answer(body=content, headers={"Content-Type": request.headers["Accept"]})
        )
    ) as script:
        rows, output = write_file(tmp_path / "in.jsonl", {"image": "a.png"}), tmp_path / "out.jsonl"
        assert opsin("batch", "embed", rows, "-o", output, "--accept", "application/x-npy", "--url", script.url).returncode == 0
    assert (tmp_path / "out.files" / "0.npy").read_bytes() == content
