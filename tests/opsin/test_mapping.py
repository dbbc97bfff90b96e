"""`client.map`: many inputs, some at a time, over real HTTP."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Literal

import pytest

from opsin import AsyncClient, Client, Outcomes, Refused
from tests.support.fake_servers import RESULT, Answer, Request, serve_script

BROKEN = Answer(422, {"title": "Corrupt image", "status": 422, "detail": "image: truncated", "field": "image"})


def find_named(request: Request) -> Answer:
    """Return what was sent as the label."""
    prediction = {"label": request.body.decode(), "index": 0, "score": 1.0}
    return Answer(body={**RESULT, "results": [{**RESULT["results"][0], "predictions": [prediction]}]})


class LastIsFirst:
    """Answers the first input when all the others have been asked."""

    def __init__(self, count: int) -> None:
        self.left = count - 1
        self.others = threading.Event()

    def __call__(self, request: Request) -> Answer:
        answer = find_named(request)
        if request.body == b"0":
            return Answer(body=answer.body, after=self.others)
        self.left -= 1
        if not self.left:
            self.others.set()
        return answer


def labels(outcomes: Outcomes) -> list[str]:  # type: ignore[type-arg]
    return [found.label for found in outcomes.results]


def test_outcomes_stand_in_the_order_of_the_inputs() -> None:
    inputs = [str(number).encode() for number in range(8)]
    with serve_script(LastIsFirst(8)) as service, Client(service.url) as client:
        outcomes = client.map("classify", inputs, concurrency=2, progress=False)
    assert service.requests[0].body in (b"0", b"1")
    assert labels(outcomes) == [data.decode() for data in inputs]
    assert [one.source for one in outcomes] == inputs
    assert outcomes.failures == []


async def test_the_asynchronous_client_maps_too() -> None:
    inputs = [str(number).encode() for number in range(8)]
    with serve_script(LastIsFirst(8)) as service:
        async with AsyncClient(service.url) as client:
            outcomes = await client.map("classify", inputs, concurrency=2, progress=False)
    assert labels(outcomes) == [data.decode() for data in inputs]


def test_failures_are_collected_next_to_the_others(tmp_path: Path) -> None:
    with serve_script(lambda request: BROKEN if request.body == b"bad" else find_named(request)) as service, Client(service.url) as client:
        outcomes = client.map("classify", [b"a", b"bad", tmp_path / "none.jpg", b"b"], progress=False)
    assert labels(outcomes) == ["a", "b"]
    assert [one.source for one in outcomes.failures] == [b"bad", tmp_path / "none.jpg"]
    refused, missing = (one.error for one in outcomes.failures)
    assert isinstance(refused, Refused)
    assert refused.field == "image"
    assert isinstance(missing, FileNotFoundError)
    assert [one.result is None for one in outcomes] == [False, True, True, False]


def test_the_number_of_requests_at_a_time_is_limited() -> None:
    joint = threading.Barrier(3)
    now, limit, lock = 0, 0, threading.Lock()

    def answer(request: Request) -> Answer:
        nonlocal now, limit
        with lock:
            now += 1
            limit = max(limit, now)
        joint.wait(30)  # fewer than three at a time would break it
        with lock:
            now -= 1
        joint.wait(30)
        return find_named(request)

    with serve_script(answer) as service, Client(service.url) as client:
        assert len(client.map("classify", [b"x"] * 9, concurrency=3, progress=False).results) == 9
    assert limit == 3


def test_the_files_of_a_folder_are_taken_by_name(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "c.png").write_bytes(b"inner/c.png")
    with serve_script(find_named) as service, Client(service.url) as client:
        assert labels(client.map("classify", tmp_path, progress=False)) == ["a.png", "b.png", "notes.txt"]
        assert labels(client.map("classify", tmp_path, pattern="**/*.png", progress=False)) == ["a.png", "b.png", "inner/c.png"]
        with pytest.raises(ValueError, match=r"inputs: no file in .* matches '\*\.jpg'"):
            client.map("classify", tmp_path, pattern="*.jpg")
        with pytest.raises(NotADirectoryError):
            client.map("classify", tmp_path / "a.png")


def test_progress_counts_to_the_end() -> None:
    audible: list[tuple[int, int]] = []
    with serve_script(find_named) as service, Client(service.url) as client:
        client.map("classify", [b"x"] * 5, concurrency=2, progress=lambda done, total: audible.append((done, total)))
    assert audible == [(done, 5) for done in range(1, 6)]


def test_a_bar_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with serve_script(find_named) as service, Client(service.url) as client:
        client.map("classify", [b"x"] * 3, progress=True)
    printed = capsys.readouterr()
    assert "100%" in printed.err
    assert printed.out == ""


def test_options_are_those_of_task_and_tuples_hold_several() -> None:
    png = "iVBORw0KGgo="
    filled = {**RESULT, "results": [{"image": png, "seed": 3}], "width": 4, "height": 4, "masked_pixels": 2, "steps": 1, "sampler": "ddim"}
    with serve_script([Answer(body=filled)]) as service, Client(service.url) as client:
        outcomes = client.map("inpaint", [(b"picture", b"mask")], seed=3, progress=False)
    assert outcomes.results[0].seed == 3
    [request] = service.requests
    assert request.path == "/v1/inpaint?seed=3"
    assert 0 < request.body.index(b"picture") < request.body.index(b"mask")


@pytest.mark.parametrize(
    ("task", "options", "error"),
    [
        ("classify", {"tok_k": 1}, TypeError),
        ("classify", {"wait": False}, TypeError),
        ("paint", {}, ValueError),
        ("classify", {"concurrency": 0}, ValueError),
    ],
)
def test_what_is_no_inputs_fault_is_raised_at_once(task: str, options: dict[str, int], error: type[Exception]) -> None:
    async def asynchronously(url: str) -> None:
        async with AsyncClient(url) as client:
            await client.map(task, [b"a", b"b"], progress=False, **options)  # type: ignore[call-overload]

    with serve_script(find_named) as service, Client(service.url) as client:
        with pytest.raises(error):
            client.map(task, [b"a", b"b"], progress=False, **options)  # type: ignore[call-overload]
        with pytest.raises(error):
            asyncio.run(asynchronously(service.url))
    assert service.requests == []


MODELS = {
    "models": [
        {
            "name": name,
            "version": "1",
            "task": task,
            "state": "ready",
            "default": name == "photos",
            "labels": 10,
            "ladder": [{"name": "fast"}],
        }
        for name, task in (("photos", "classify"), ("flags", "classify"), ("inpaint", "inpaint"))
    ]
}


@pytest.mark.parametrize(
    ("options", "field", "reason"),
    [
        ({"model": "flegs"}, "model", "known: photos@1, flags@1"),
        ({"model": "inpaint"}, "model", "is not served for classify"),
        ({"model": "flags@2"}, "model", "known: photos@1, flags@1"),
        ({"merge": "slow"}, "merge", "the rungs of photos@1 are fast"),
        ({"model": "flags", "top_k": 11}, "top_k", "from 1 to 10, the number of labels of flags@1"),
    ],
)
def test_what_no_input_could_have_is_refused_before_any_is_sent(options: dict[str, object], field: str, reason: str) -> None:
    with serve_script([Answer(body=MODELS)]) as service, Client(service.url) as client, pytest.raises(Refused, match=reason) as refused:
        client.map("classify", [b"a", b"b"], progress=False, **options)
    assert refused.value.field == field
    assert [request.path for request in service.requests] == ["/v1/models"]


async def test_the_asynchronous_client_refuses_them_too() -> None:
    with serve_script([Answer(body=MODELS)]) as service:
        async with AsyncClient(service.url) as client:
            with pytest.raises(Refused, match="known: photos@1"):
                await client.map("classify", [b"a"], progress=False, model="flegs")
    assert [request.path for request in service.requests] == ["/v1/models"]


@pytest.mark.parametrize("task", ["classify", "inpaint", "reconstruct", "actions"])
def test_unknown_options_are_named_with_those_that_there_are(task: Literal["classify", "inpaint", "reconstruct", "actions"]) -> None:
    with serve_script([Answer()]) as service, Client(service.url) as client:
        with pytest.raises(TypeError, match=f"map: {task} has no option 'colour'; the options are .*model"):
            client.map(task, [b"a"], progress=False, colour="red")
        with pytest.raises(TypeError, match=f"{task}: no option 'colour'; the options are .*model"):
            getattr(client, task)(b"a", colour="red")
    assert service.requests == []
