"""Bundles that workers refuse: requests for them are answered at once, with the reason, and wait only where a worker may serve them yet."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pytest

from models.bundle import BundleSpec
from server.queue.messages import ServedBundle, WorkerInfo
from server.queue.worker.connection import WorkerTimings
from server.supervisor.private_valkey import PrivateValkey
from tests.support.fake_worker import Worker, make_spec, picture
from tests.support.gateway_process import Gateway, gateway_process, problem
from tests.support.queue import WorkerQueue
from tests.support.waiting import eventually

REASON = "reds/1/model.safetensors: 9 bytes where bundle.json says 10"
LONG = 60.0
"""Grace in seconds: a request that waits for it ends its test."""


class Announcer:
    """A worker that serves nothing, and says of a bundle whatever a test has it say."""

    def __init__(self, url: str, name: str = "announcer") -> None:
        self.queue = WorkerQueue(url, name, WorkerTimings(key_ttl=60))

    def says(
        self,
        *bundles: tuple[BundleSpec, Literal["loading", "unavailable"], str],
        state: Literal["starting", "ready", "draining"] = "ready",
    ) -> None:
        announced = [
            ServedBundle(
                name=spec.name,
                version=spec.version,
                task=spec.task,
                digest=self.queue.publish_spec(spec),
                state=now,
                reason=reason,
            )
            for spec, now, reason in bundles
        ]
        self.queue.announce(WorkerInfo(id=self.queue.id, host="here", pid=0, state=state, device="cpu", bundles=announced))

    def refuses(self, *specs: BundleSpec) -> None:
        self.says(*((spec, "unavailable", REASON) for spec in specs))


@pytest.fixture
def patient(valkey: PrivateValkey) -> Iterator[Gateway]:
    with gateway_process(valkey.url, worker_grace=LONG) as gateway:
        yield gateway


def refusal(gateway: Gateway, **query: str) -> str:
    """Return the detail of the refusal of an image."""
    response = gateway.classify(picture(1), **query)
    assert "Retry-After" not in response.headers
    return str(problem(response, 503, "bundle-unavailable")["detail"])


def test_a_refused_bundle_is_503_with_the_reason_at_once(valkey: PrivateValkey, patient: Gateway) -> None:
    Announcer(valkey.url).refuses(make_spec())
    reason = f"reds@1 is unavailable: {REASON}"
    assert (refusal(patient, model="reds"), refusal(patient, model="reds@1"), refusal(patient)) == (reason, reason, reason)
    for headers in ({"Accept": "text/event-stream"}, {"Prefer": "respond-async"}):
        assert problem(patient.classify(picture(1), headers=headers), 503, "bundle-unavailable")["detail"] == reason
    assert patient.http.get("/health/ready").json()["detail"] == f"no bundle is served; {reason}"
    assert patient.metric("opsin_rejected_total", reason="bundle_unavailable") == 5


def test_other_protocols_keep_their_shape_of_a_refusal(valkey: PrivateValkey, patient: Gateway) -> None:
    encoder = make_spec("encoder").model_copy(update={"task": "embed", "labels": [], "ladder": []})
    Announcer(valkey.url).refuses(make_spec(), encoder)
    inputs = [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["AAAA"]}]
    tensors = patient.http.post("/v2/models/reds/infer", json={"inputs": inputs})
    assert (tensors.status_code, tensors.json()) == (503, {"error": f"reds@1 is unavailable: {REASON}"})
    vectors = patient.http.post("/v1/embeddings", json={"model": "encoder", "input": [{"image": "AAAA"}]})
    assert vectors.status_code == 503
    assert vectors.json()["error"] == {
        "message": f"encoder@1 is unavailable: {REASON}",
        "type": "server_error",
        "param": None,
        "code": "bundle-unavailable",
    }


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_requests_that_wait_end_with_the_last_refusal(valkey: PrivateValkey, patient: Gateway, accept: str) -> None:
    loads = Announcer(valkey.url)
    loads.says((make_spec(), "loading", ""), state="starting")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(patient.classify, picture(1), headers={"Accept": accept})
        eventually(lambda: patient.metric("opsin_queue_depth", model="reds") == 1, "the request is in the queue")
        loads.refuses(make_spec())
        assert f"reds@1 is unavailable: {REASON}" in waiting.result().text


@pytest.mark.parametrize("says", ["nothing", "loading"])
def test_a_worker_that_may_serve_it_yet_is_waited_for(valkey: PrivateValkey, patient: Gateway, says: str) -> None:
    Announcer(valkey.url).refuses(make_spec())
    another = Announcer(valkey.url, "another")
    another.says(*([(make_spec(), "loading", "")] if says == "loading" else []), state="starting")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(patient.classify, picture(3))
        eventually(lambda: patient.metric("opsin_queue_depth", model="reds") == 1, "the request is in the queue")
        with Worker(valkey.url, [make_spec()]):
            another.queue.withdraw()
            assert waiting.result().status_code == 200


def test_a_request_outlives_the_only_worker_that_did_not_refuse(valkey: PrivateValkey, patient: Gateway) -> None:
    """The worker is started again, and until then a refusal by the others does not end the request."""
    Announcer(valkey.url).refuses(make_spec())
    with ThreadPoolExecutor(2) as threads:
        with Worker(valkey.url, [make_spec()]) as serves:
            assert patient.classify(picture(1)).status_code == 200
            serves.pause()
            before = threads.submit(patient.classify, picture(3))
            eventually(lambda: patient.metric("opsin_queue_depth", model="reds") == 1, "the request is in the queue")
        after = threads.submit(patient.classify, picture(4))
        eventually(lambda: patient.metric("opsin_queue_depth", model="reds") == 2, "so is one that came later")
        with Worker(valkey.url, [make_spec()]):
            assert (before.result().status_code, after.result().status_code) == (200, 200)


def test_an_accepted_job_waits_for_its_bundle_to_be_mended(valkey: PrivateValkey, patient: Gateway) -> None:
    with Worker(valkey.url, [make_spec()]) as serves:
        serves.pause()
        eventually(lambda: patient.http.get("/health/ready").status_code == 200, "ready")
        accepted = patient.classify(picture(3), headers={"Prefer": "respond-async"})
        assert accepted.status_code == 202
    mended = Announcer(valkey.url)
    mended.refuses(make_spec())
    eventually(lambda: patient.http.get("/v1/models/reds").json()["reason"] == REASON, "the refusal is known")
    job = accepted.headers["Location"]
    assert patient.http.get(job).json()["state"] == "queued"
    with Worker(valkey.url, [make_spec()]):
        eventually(lambda: patient.http.get(job).json()["state"] == "done", "the job is done")


def test_a_refused_version_gives_way_to_the_one_that_loads(valkey: PrivateValkey, patient: Gateway) -> None:
    old, new = make_spec(version="1"), make_spec(version="2")
    worker = Announcer(valkey.url)
    worker.says((old, "loading", ""), (new, "unavailable", REASON), state="starting")
    eventually(lambda: patient.http.get("/v1/models/reds").json().get("version") == "1", "version 1 is meant")
    assert refusal(patient, model="reds@2") == f"reds@2 is unavailable: {REASON}"


def test_a_bundle_that_is_unloaded_for_now_is_not_refused(valkey: PrivateValkey, patient: Gateway) -> None:
    """The worker does not know yet that it is to be loaded again."""
    Announcer(valkey.url).says((make_spec(), "unavailable", "unloaded"))
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(patient.classify, picture(3), model="reds")
        eventually(lambda: patient.metric("opsin_queue_depth", model="reds") == 1, "the request is in the queue")
        with Worker(valkey.url, [make_spec()]):
            assert waiting.result().status_code == 200


def test_lists_of_known_bundles_mark_what_is_not_served(valkey: PrivateValkey, patient: Gateway) -> None:
    Announcer(valkey.url).says((make_spec("broken"), "unavailable", REASON), (make_spec("coming"), "loading", ""))
    with Worker(valkey.url, [make_spec()]):
        eventually(lambda: patient.http.get("/health/ready").status_code == 200, "ready")
        listing = "known for classify: reds@1, broken@1 (unavailable), coming@1 (loading)"
        assert problem(patient.classify(picture(1), model="cats"), 404, "unknown-model")["detail"] == f"'cats' is not served; {listing}"
        assert patient.http.get("/v1/models/cats").json()["detail"].endswith("known: reds@1, broken@1 (unavailable), coming@1 (loading)")


def test_refused_default_makes_service_unready_with_reason(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url, worker_grace=LONG, default_models={"classify": "broken"}) as gateway:
        Announcer(valkey.url).refuses(make_spec("broken"))
        with Worker(valkey.url, [make_spec()]):
            detail = f"no ready worker serves broken@1, the default model for classify; it is unavailable: {REASON}"
            eventually(lambda: gateway.http.get("/health/ready").json().get("detail") == detail, "the reason is given")
            assert refusal(gateway) == f"broken@1 is unavailable: {REASON}"


def test_a_folder_of_any_name_is_refused_with_its_reason(valkey: PrivateValkey, patient: Gateway) -> None:
    queue = WorkerQueue(valkey.url, "announcer", WorkerTimings(key_ttl=60))
    unreadable = [
        ServedBundle(name="reds", version=version, task="", digest="", state="unavailable", reason=REASON) for version in ("1", "²", "٣")
    ]
    queue.announce(WorkerInfo(id=queue.id, host="here", pid=0, state="ready", device="cpu", bundles=unreadable))
    assert refusal(patient, model="reds@²").startswith("reds@² is unavailable")
    assert refusal(patient, model="reds").startswith("reds@٣ is unavailable")
