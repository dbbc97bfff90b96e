"""The Python client and `opsin jobs`, against a real service."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from opsin import AsyncClient, Client, DeadlinePassed, Failed, Refused
from server.supervisor.private_valkey import PrivateValkey
from tests.support.fake_worker import Worker, make_spec, picture, unbearable
from tests.support.gateway_process import Gateway, gateway_process
from tests.support.processes import opsin
from tests.support.waiting import WAIT_S


@pytest.fixture
def client(gateway: Gateway) -> Iterator[Client]:
    with Client(gateway.url) as client:
        yield client


def test_a_job_returns_its_events_and_its_answer(client: Client) -> None:
    job = client.classify([picture(1), picture(2)], wait=False, top_k=1)
    assert [(event.id, event.name) for event in job.events()] == [
        (1, "queued"),
        (2, "started"),
        (3, "progress"),
        (4, "progress"),
        (5, "done"),
    ]
    assert [event.name for event in job.events(after=4)] == ["done"]
    assert list(job.events(after=5)) == []
    assert [found.label for found in job.result()] == ["red 1", "red 2"]
    assert job.status().state == "done"
    assert client.classify(picture(3), wait=False).result(timeout=WAIT_S).label == "red 3"


def test_a_job_is_found_again_by_its_id_and_removed(client: Client) -> None:
    first = client.classify(picture(5), wait=False)
    again = client.job(first.id)
    assert again.result()["results"][0]["predictions"][0]["label"] == "red 5"
    again.cancel()
    with pytest.raises(Refused) as refused:
        first.status()
    assert refused.value.status == 404


def test_a_failed_job_raises_what_went_wrong(client: Client) -> None:
    job = client.classify(unbearable(), wait=False)
    assert [event.name for event in job.events()][-1] == "failed"
    with pytest.raises(Failed, match="does not like"):
        job.result()


def test_waiting_may_end_before_the_job(worker: Worker, client: Client) -> None:
    worker.pause()
    job = client.classify(picture(1), wait=False, timeout=600)
    with pytest.raises(DeadlinePassed, match=f"not ended in time; job {job.id} may still be running"):
        job.result(timeout=0)
    assert job.status().state == "queued"
    job.cancel()
    assert job.status().state == "cancelled"


async def test_the_same_calls_can_be_awaited(gateway: Gateway) -> None:
    async with AsyncClient(gateway.url) as client:
        job = await client.classify(picture(4), wait=False)
        assert [event.name async for event in job.events()] == ["queued", "started", "progress", "done"]
        assert [event.id async for event in job.events(after=4)] == []
        assert (await job.result()).label == "red 4"
        assert (await client.job(job.id).status()).ended
        await job.cancel()


def test_events_go_on_at_another_gateway(valkey: PrivateValkey) -> None:
    """Gateways listen on one socket; the one that is read from ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    with gateway_process(valkey.url, listener) as leaving, Worker(valkey.url, [make_spec()]) as worker, Client(leaving.url) as client:
        worker.pause()
        job = client.classify(picture(4), wait=False)
        events = job.events()
        assert next(events).name == "queued"
        with gateway_process(valkey.url, listener):
            leaving.terminate()
            assert leaving.process.wait(WAIT_S) == 0
            worker.resume()
            assert [(event.id, event.name) for event in events] == [(2, "started"), (3, "progress"), (4, "done")]
            assert job.result().label == "red 4"


def test_the_command_looks_after_jobs(gateway: Gateway, client: Client) -> None:
    job = client.classify(picture(6), wait=False)
    url = ("--url", gateway.url)
    lines = opsin("jobs", "events", job.id, *url).stdout.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["queued", "started", "progress", "done"]
    assert json.loads(opsin("jobs", "show", job.id, *url).stdout)["state"] == "done"
    assert json.loads(opsin("jobs", "result", job.id, *url).stdout)["results"][0]["predictions"][0]["label"] == "red 6"
    assert opsin("jobs", "cancel", job.id, *url).returncode == 0
    gone = opsin("jobs", "show", job.id, *url)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "404" in gone.stderr


def test_the_command_fails_with_the_job(gateway: Gateway, client: Client) -> None:
    job = client.classify(unbearable(), wait=False)
    ended = opsin("jobs", "events", job.id, "--url", gateway.url)
    assert ended.returncode == 1
    assert "does not like" in ended.stderr
    last = json.loads(ended.stdout.splitlines()[-1])["id"]
    again = opsin("jobs", "events", job.id, "--after", str(last), "--url", gateway.url)
    assert (again.returncode, again.stdout, again.stderr) == (1, "", ended.stderr)


def test_the_command_fails_with_a_job_that_is_not_known(gateway: Gateway) -> None:
    ended = opsin("jobs", "events", "0" * 32, "--after", "3", "--url", gateway.url)
    assert (ended.returncode, ended.stdout) == (1, "") and "404" in ended.stderr


def test_command_reports_progress_of_unfinished_job(gateway: Gateway, worker: Worker, client: Client) -> None:
    worker.pause()
    job = client.classify(picture(1), wait=False, timeout=600)
    ended = opsin("jobs", "result", "--no-wait", job.id, "--url", gateway.url)
    assert (ended.returncode, ended.stderr) == (1, f"opsin: job {job.id}: it is queued and has no result yet\n")


def test_command_submits_each_file_and_names_refused_ones(gateway: Gateway, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(picture(7))
    bad.write_bytes(b"\x89PNG, and no image")
    url = ("--url", gateway.url)
    ended = opsin("classify", str(bad), str(good), "--later", "--top-k", "1", *url)
    job, file = ended.stdout.rstrip("\n").split("\t")
    assert (ended.returncode, file) == (1, str(good))
    assert ended.stderr.startswith(f"opsin: {bad}: 415")
    assert json.loads(opsin("jobs", "result", job, *url).stdout)["results"][0]["predictions"][0]["label"] == "red 7"
