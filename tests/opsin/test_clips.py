"""Clips and sound, from the client and from the command, to a running service."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from opsin import AsyncClient, Client, ClipFacts, Refused, SoundFacts, ViewScores
from tests.support.audio import tones, wav
from tests.support.bundles.clips import NETWORKS, expect, frames, video, write_mavil, write_recorded
from tests.support.live_service import Service, running
from tests.support.processes import opsin
from tests.support.videos import clip, every
from tests.support.waiting import eventually

COUNT, FPS, RATE = 40, 10.0, 16_000
FILM = video(COUNT, FPS)
"""Four seconds."""
BELL = wav(tones(4.0, RATE, 440.0, 1320.0).astype(np.float32), RATE)
WITH_SOUND = clip(every(30, FPS), sound=True)
TOLERANCE = 1e-5
"""Tolerance of a score: float32 in batches of another size."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`mae-st` labels clips, `apart` sounds or clips, `both` them together."""
    root = tmp_path_factory.mktemp("bundles")
    write_recorded(root, "mae-st")
    for name in ("apart", "both"):
        write_mavil(root, name)
    with running(root, default_models={"classify-video": "mae-st"}) as started:
        yield started


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url, timeout=120) as client:
        yield client


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Files with misleading names: their bytes determine what they are."""
    contents = {"video": FILM, "audio": BELL, "film": WITH_SOUND, "broken": FILM[:900], "empty": b"", "text": b"cats"}
    for name, content in contents.items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
    return {name: tmp_path / f"{name}.jpg" for name in contents}


def rest(service: Service, sent: dict[str, bytes], **options: Any) -> Any:
    """Return the route's answer without the client."""
    return httpx2.post(f"{service.url}/v1/classify", files=sent, data=options, timeout=120).raise_for_status().json()["results"][0]


def assert_alike(found: list[dict[str, Any]], expect: list[dict[str, Any]]) -> None:
    """Require the same labels, best first, with the same scores."""
    assert [one["label"] for one in found] == [one["label"] for one in expect]
    np.testing.assert_allclose([one["score"] for one in found], [one["score"] for one in expect], atol=TOLERANCE)


def test_clip_has_labels_of_published_test_and_reports_views(client: Client) -> None:
    classes = NETWORKS["mae-st"].model().config.classes
    found = client.classify(video=FILM, views=2, crops=3, start_s=1, end_s=3, top_k=classes)
    scores = [one.score for one in sorted(found.predictions, key=lambda one: one.index)]
    np.testing.assert_allclose(scores, expect(NETWORKS["mae-st"], frames(COUNT)[10:30], FPS, 2, 3), atol=TOLERANCE)
    assert (found.clip, found.sound) == (ClipFacts(8, 2, 3, 2.0), None)
    assert found.looked_at == "2 views × 3 crops of 8 frames, 2 s" and found.looked_at in found._repr_html_()


def test_a_sound_and_a_sound_with_a_clip(client: Client, service: Service) -> None:
    audible = client.classify(audio=BELL, windows=2)
    assert (audible.model, audible.clip, audible.sound) == ("apart", None, SoundFacts(0.96, 2, RATE)), "of what the two windows cover"
    assert audible.looked_at == "2 windows of sound, 0.96 s at 16 kHz"
    both = client.classify(video=FILM, audio=BELL)
    answer = rest(service, {"video": FILM, "audio": BELL})
    assert_alike([asdict(one) for one in both.predictions], answer["predictions"])
    assert both.model == "both"
    assert both.clip is not None and both.sound is not None and both.clip.views == both.sound.windows == answer["sound"]["windows"]


def test_a_bundle_of_either_kind_goes_by_what_is_used(client: Client) -> None:
    by_ear = client.classify(video=WITH_SOUND, model="apart", use="sound")
    by_eye = client.classify(video=WITH_SOUND, model="apart", use="sight")
    assert (by_ear.clip, by_eye.sound) == (None, None) and by_ear.predictions != by_eye.predictions


def test_paths_and_open_files_are_sent_as_they_are(client: Client, files: dict[str, Path]) -> None:
    with files["video"].open("rb") as opened:
        assert client.classify(video=opened).predictions == client.classify(video=str(files["video"])).predictions


def test_a_gif_can_be_sent_as_a_video(client: Client, service: Service, tmp_path: Path) -> None:
    file, images = BytesIO(), [Image.fromarray(frame) for frame in frames(COUNT)]
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=100)
    assert client.classify(video=file.getvalue(), views=2).clip == ClipFacts(8, 2, 3, 4.0)
    (tmp_path / "a.gif").write_bytes(file.getvalue())
    visible = opsin("classify", tmp_path / "a.gif", "--model", "mae-st", "--views", "2", "--json", OPSIN_URL=service.url)
    assert json.loads(visible.stdout)["clip"]["duration_s"] == 4.0, "mae-st takes no images"


def test_a_job_and_the_client_for_asyncio_give_the_same(client: Client, service: Service) -> None:
    plain = client.classify(video=FILM, views=2)
    job = client.classify(video=FILM, views=2, wait=False)
    progress = [event.data for event in job.events() if event.name == "progress"]
    assert (job.result().predictions, job.result().clip) == (plain.predictions, plain.clip)
    assert {one["unit"] for one in progress} == {"views"}

    async def ask() -> tuple[Any, Any]:
        async with AsyncClient(service.url, timeout=120) as asking:
            later = await asking.classify(audio=BELL, wait=False)
            return await asking.classify(video=FILM, views=2), await later.result()

    seen, audible = asyncio.run(ask())
    assert (seen.predictions, seen.clip) == (plain.predictions, plain.clip) and audible.sound == client.classify(audio=BELL).sound


def test_the_views_one_by_one_come_with_the_answer(client: Client, service: Service) -> None:
    expect = rest(service, {"video": FILM}, views=2, timeline="true")["timeline"]
    found = client.classify(video=FILM, views=2, timeline=True)

    async def ask() -> Any:
        async with AsyncClient(service.url, timeout=120) as asking:
            return await asking.classify(audio=BELL, timeline=True)

    audible = asyncio.run(ask())
    assert found.timeline is not None and isinstance(found.timeline[0], ViewScores)
    assert [(view.start_s, view.end_s) for view in found.timeline] == [(view["start_s"], view["end_s"]) for view in expect]
    for view, answer in zip(found.timeline, expect, strict=True):
        assert_alike([asdict(one) for one in view.predictions], answer["predictions"])
    assert audible.timeline[-1].end_s == audible.sound.seconds and len(audible.timeline) == audible.sound.windows
    assert client.classify(video=FILM, views=2).timeline is None


def test_invalid_options_are_refused_before_anything_is_sent() -> None:
    with Client("http://127.0.0.1:9") as nowhere:
        for inputs in ({}, {"images": b"image", "video": FILM}, {"images": [b"image"], "audio": BELL}):
            with pytest.raises(ValueError, match="images, video, audio: give images, or a video, a sound, or both"):
                nowhere.classify(**inputs)
        with pytest.raises(TypeError, match="video: a path, bytes or a binary file, not int"):
            nowhere.classify(video=7)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="audio: open the file in binary mode"):
            nowhere.classify(audio=StringIO("text"))  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="no option 'view'"):
            nowhere.classify(video=FILM, view=3)  # type: ignore[call-overload]
        with pytest.raises(FileNotFoundError):
            nowhere.classify(video="/nowhere.mp4")


def test_clip_classifier_is_not_used_as_person_detector(client: Client) -> None:
    assert (client.model("mae-st").task, client.model("mae-st").route) == ("actions", "classify")
    with pytest.raises(Refused, match="'mae-st' takes clips or sound, but map sends images"):
        client.map("classify", [FILM], model="mae-st")
    with pytest.raises(Refused, match="'mae-st' is not served for actions; known: none"):
        client.map("actions", [FILM], model="mae-st")


def test_what_the_service_refuses_names_the_field(client: Client) -> None:
    with pytest.raises(Refused) as many:
        client.classify(video=FILM, views=31)
    with pytest.raises(Refused) as windows:
        client.classify(video=FILM, windows=2)
    with pytest.raises(Refused) as sound:
        client.classify(audio=b"no sound")
    answer = [(one.value.status, one.value.field) for one in (many, windows, sound)]
    assert answer == [(422, "views"), (422, "windows"), (415, "audio")]


def test_command_distinguishes_files_and_reports_views(service: Service, files: dict[str, Path]) -> None:
    visible = opsin("classify", files["video"], files["audio"], "--top-k", "2", OPSIN_URL=service.url)
    assert (visible.returncode, visible.stderr) == (0, "")
    head, seen, audible = visible.stdout.splitlines()
    assert head.split() == ["File", "Labels", "Input", "Tokens", "Latency", "Network"]
    assert seen.startswith("video.jpg") and "7 views × 3 crops of 8 frames, 4 s" in seen
    assert audible.startswith("audio.jpg") and "windows of sound, 4 s at 16 kHz" in audible


def test_the_command_has_every_option(service: Service, files: dict[str, Path]) -> None:
    options = ("--views", "2", "--crops", "1", "--start", "1", "--end", "3", "--model", "mae-st", "--merge", "4", "--json")
    visible = opsin("classify", files["video"], *options, OPSIN_URL=service.url)
    answer = json.loads(visible.stdout)
    assert (answer["clip"], answer["sound"]) == ({"frames": 8, "views": 2, "crops": 1, "duration_s": 2.0}, None)
    assert answer["merging"]["tokens_out"] < answer["merging"]["tokens_in"]
    assert_alike(answer["predictions"], rest(service, {"video": FILM}, views=2, crops=1, start_s=1, end_s=3, merge=4)["predictions"])
    ended = opsin("classify", files["film"], "--model", "apart", "--use", "sound", "--windows", "1", "--json", OPSIN_URL=service.url)
    audible = json.loads(ended.stdout)
    assert (audible["clip"], audible["sound"]["windows"]) == (None, 1)


def test_the_command_prints_the_best_label_of_each_window(service: Service, files: dict[str, Path]) -> None:
    requested = ("classify", files["audio"], "--windows", "2", "--timeline")
    views = json.loads(opsin(*requested, "--json", OPSIN_URL=service.url).stdout)["timeline"]
    visible = opsin(*requested, OPSIN_URL=service.url)
    head, *rows = visible.stdout.splitlines()[3:]
    assert (visible.returncode, visible.stderr, head.split(), len(views)) == (0, "", ["File", "Seconds", "Label"], 2)
    for row, view in zip(rows, views, strict=True):
        best = view["predictions"][0]
        assert row.split("  ")[-1].strip() == f"{best['label']} {best['score']:.0%}"
        assert f"{view['start_s']:.2f} – {view['end_s']:.2f}" in row


def test_options_apply_to_files_of_their_kind(service: Service, files: dict[str, Path]) -> None:
    both, options = (files["video"], files["audio"]), ("--views", "2", "--crops", "1", "--windows", "1", "--timeline", "--json")
    visible = opsin("classify", *both, *options, OPSIN_URL=service.url)
    assert (visible.returncode, visible.stderr) == (0, "")
    seen, audible = map(json.loads, visible.stdout.splitlines())
    assert (seen["clip"]["views"], seen["clip"]["crops"], len(seen["timeline"])) == (2, 1, 2)
    assert (audible["sound"]["windows"], len(audible["timeline"])) == (1, 1)
    refused = opsin("classify", files["video"], "--windows", "1", OPSIN_URL=service.url)
    assert refused.returncode == 1 and " windows: " in refused.stderr, "meant for none of the files"


def test_the_command_sends_sound_with_a_video(service: Service, files: dict[str, Path]) -> None:
    visible = opsin("classify", files["video"], "--audio", files["audio"], "--model", "both", "--json", OPSIN_URL=service.url)
    answer = json.loads(visible.stdout)
    assert answer["file"] == str(files["video"])
    assert_alike(answer["predictions"], rest(service, {"video": FILM, "audio": BELL})["predictions"])


def test_one_bad_clip_spoils_no_other_and_jobs_are_made_of_all(service: Service, files: dict[str, Path]) -> None:
    of_none = [files["empty"], files["text"]]
    visible = opsin("classify", files["broken"], files["video"], *of_none, "--views", "1", "--json", OPSIN_URL=service.url)
    bad, good, *_ = map(json.loads, visible.stdout.splitlines())
    assert (visible.returncode, bad["error"]["status"], good["clip"]["views"]) == (1, 422, 1)
    first, *others = visible.stderr.splitlines()
    assert first.startswith(f"opsin: {files['broken']}: 422 Corrupt video: video: ")
    unknown = [f"{files['empty']}: the file is empty", f"{files['text']}: not an image, video or sound, judging by its first bytes"]
    assert others == [f"opsin: {line}" for line in unknown]

    later = opsin("classify", files["video"], files["audio"], files["text"], "--later", OPSIN_URL=service.url)
    assert later.stderr == f"opsin: {unknown[1]}\n"
    made = [line.split("\t") for line in later.stdout.splitlines()]
    assert [file for _, file in made] == [str(files["video"]), str(files["audio"])]
    ended = opsin("jobs", "result", made[1][0], OPSIN_URL=service.url)
    assert json.loads(ended.stdout)["results"][0]["sound"]["sample_rate"] == RATE


@pytest.mark.parametrize(("inputs", "sound"), [(("video", "film"), "audio"), (("audio",), "audio")])
def test_sound_goes_with_one_video(files: dict[str, Path], inputs: tuple[str, ...], sound: str) -> None:
    ended = opsin("classify", *(files[name] for name in inputs), "--audio", files[sound])
    assert (ended.returncode, ended.stderr) == (2, "opsin: --audio: goes with one video; a sound alone is a FILE\n")


def test_ctrl_c_ends_the_work_of_a_clip(service: Service, tmp_path: Path) -> None:
    content, files = clip(every(1500, 30.0), size=(96, 128)), [str(tmp_path / f"{number}.mp4") for number in range(20)]
    for file in files:  # one alone may have ended before it is looked for
        Path(file).write_bytes(content)
    command = [sys.executable, "-m", "opsin", "classify", *files, "--model", "mae-st", "--views", "30", "--crops", "3"]
    eventually(lambda: running_jobs(service) == 0, "what was asked before has ended")
    cancelled = ended_jobs(service, "cancelled")
    program = subprocess.Popen(command, env=os.environ | {"OPSIN_URL": service.url}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        eventually(lambda: running_jobs(service) > 0, "its views are being looked at")
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=60)
    finally:
        program.kill()
    assert (program.returncode, out, err) == (130, b"", b"")
    eventually(lambda: ended_jobs(service, "cancelled") > cancelled, "the service has heard of it")


def running_jobs(service: Service) -> int:
    number: int = service.gateway.http.get("/v1/status").json()["jobs"]["running"]
    return number


def ended_jobs(service: Service, state: str) -> float:
    name = f'opsin_jobs_ended_total{{state="{state}"}} '
    return sum(float(line.removeprefix(name)) for line in service.gateway.http.get("/metrics").text.splitlines() if line.startswith(name))
