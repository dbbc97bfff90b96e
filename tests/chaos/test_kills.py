"""Workers, and the queue itself, die or freeze under load: every request is answered, and rightly."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx2
import numpy as np
import pytest

from models.bundle import Bundle
from tests.support.bundles.vit import expected_scores, write_null, write_tiny_vit
from tests.support.images import picture
from tests.support.serve_process import Service, frozen, serve
from tests.support.waiting import eventually

KINDS = 50
"""Different pictures; request i asks for picture i % KINDS."""


class Crowd:
    """`requests` requests by `clients` clients. Run it in a thread of its own with `start`, then `join`."""

    def __init__(self, url: str, requests: int, clients: int = 16) -> None:
        self.answers: list[httpx2.Response | httpx2.HTTPError | None] = [None] * requests
        self.done = 0
        self._url = url
        self._clients = clients
        self._pictures = [picture(seed) for seed in range(KINDS)]
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def scores(self) -> np.ndarray:
        """Return scores, (requests, classes), by index of the class; fail with the first request that was not answered."""
        rows = np.empty((len(self.answers), 10))
        for number, answer in enumerate(self.answers):
            assert isinstance(answer, httpx2.Response), f"request {number}: {answer!r}"
            assert answer.status_code == 200, f"request {number}: {answer.status_code} {answer.text}"
            for prediction in answer.json()["results"][0]["predictions"]:
                rows[number, prediction["index"]] = prediction["score"]
        return rows

    def _run(self) -> None:
        with httpx2.Client(base_url=self._url, timeout=120, limits=httpx2.Limits(max_connections=self._clients)) as http:

            def ask(number: int) -> None:
                try:
                    self.answers[number] = http.post(
                        "/v1/classify", content=self._pictures[number % KINDS], params={"top_k": 10}, headers={"X-Request-Timeout": "110"}
                    )
                except httpx2.HTTPError as error:
                    self.answers[number] = error
                with self._lock:
                    self.done += 1

            with ThreadPoolExecutor(self._clients) as pool:
                list(pool.map(ask, range(len(self.answers))))


def while_they_ask(crowd: Crowd, moments: list[int], act: Callable[[], None], wait: Callable[[Callable[[], object], str], None]) -> None:
    """Start the crowd, `act` each time as many requests as a moment says are done, and wait for its end."""
    crowd.start()
    for moment in moments:
        wait(lambda moment=moment: crowd.done >= moment, f"{moment} requests are done")  # type: ignore[misc]
        act()
    crowd.join()


MINUTES = 120.0
HOUSE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_vit(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def service(tiny: Bundle) -> Iterator[Service]:
    """A service with one worker."""
    with serve(tiny.path.parent.parent, copied=True, dtype="float32") as running:
        yield running


def everyone_got_their_own_answer(crowd: Crowd, bundle: Bundle) -> None:
    scores = crowd.scores()
    expected = expected_scores(bundle, range(KINDS))
    np.testing.assert_allclose(scores, np.resize(expected, scores.shape), rtol=1e-3, atol=1e-4)


def kill_a_worker(service: Service, chance: random.Random) -> Callable[[], None]:
    def kill() -> None:
        # one look: a worker that is about to execute its program has no name for a moment, and a second look may miss it
        victim = chance.choice(eventually(lambda: service.children("worker"), "there is a worker to kill", MINUTES))
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: victim not in service.children("worker"), "it is dead", MINUTES)

    return kill


def wait(condition: Callable[[], object], expectation: str) -> None:
    eventually(condition, expectation, MINUTES)


MANY = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize(("requests", "kills"), [(300, 2), pytest.param(2000, 10, marks=MANY)])
def test_workers_killed_at_random_moments_lose_no_request(service: Service, tiny: Bundle, requests: int, kills: int) -> None:
    lose_no_request(service, tiny, requests, kills)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killing_one_of_two_workers_loses_no_request(tiny: Bundle) -> None:
    with serve(tiny.path.parent.parent, "--workers", "2", dtype="float32") as service:
        lose_no_request(service, tiny, 2000, 20)


def lose_no_request(service: Service, bundle: Bundle, requests: int, kills: int) -> None:
    chance = random.Random(requests)
    crowd, before = Crowd(service.url, requests), len(service.events("worker died"))
    moments = sorted(chance.sample(range(1, requests - 20), kills))
    while_they_ask(crowd, moments, kill_a_worker(service, chance), wait)
    eventually(lambda: len(service.events("worker died")) == before + kills, "each death is told")
    everyone_got_their_own_answer(crowd, bundle)


@pytest.mark.slow
def test_nine_kills_within_45_seconds_lose_no_answer(tiny: Bundle) -> None:
    with serve(tiny.path.parent.parent, dtype="float32") as service:
        assert service.url
        ended = threading.Event()
        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(keep_asking, service.url, ended) for _ in range(4)]
            started_at = time.monotonic()
            for number in range(9):
                kill_a_worker(service, random.Random(number))()
                time.sleep(max(0.0, started_at + 5 * (number + 1) - time.monotonic()))
            ended.set()
            statuses = [status for client in asking for status in client.result()]
        assert set(statuses) == {200}
        assert len(service.events("worker died")) == 9


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_minutes_of_kills_lose_no_answer_of_shipped_bundle(tmp_path: Path) -> None:
    chance, flags = random.Random(33), sorted((HOUSE / "docs" / "pictures" / "flags").glob("*.png"))
    with serve(HOUSE / "bundles", cache=tmp_path / "cache") as service:
        expected = {flag: labels(service.classify(flag.read_bytes())) for flag in flags}
        ended = threading.Event()

        def ask(first: int) -> list[tuple[Path, httpx2.Response]]:
            answers = []
            with httpx2.Client(base_url=service.url, timeout=120) as http:
                while not ended.is_set():
                    flag = flags[(first + len(answers)) % len(flags)]
                    answers.append((flag, http.post("/v1/classify", content=flag.read_bytes())))
            return answers

        with ThreadPoolExecutor(16) as pool:
            asking = [pool.submit(ask, number) for number in range(16)]
            until = time.monotonic() + MINUTES
            while time.monotonic() < until:
                for victim in service.children("worker"):
                    with suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
                time.sleep(chance.uniform(0.3, 5.0))
            ended.set()
            answers = [answer for client in asking for answer in client.result()]
        died = len(service.events("worker died"))
    assert died > 10
    assert {answer.status_code for _, answer in answers} == {200}
    assert not [flag.name for flag, answer in answers if labels(answer) != expected[flag]]


def labels(answer: httpx2.Response) -> str:
    """Return the best label."""
    label: str = answer.json()["results"][0]["predictions"][0]["label"]
    return label


def keep_asking(url: str, ended: threading.Event) -> list[int]:
    """Statuses, with the default deadline."""
    statuses = []
    with httpx2.Client(base_url=url, timeout=120) as http:
        while not ended.is_set():
            statuses.append(http.post("/v1/classify", content=picture(len(statuses) % KINDS)).status_code)
    return statuses


def test_a_killed_queue_loses_no_request(service: Service, tiny: Bundle) -> None:
    crowd = Crowd(service.url, 200)
    while_they_ask(crowd, [60], lambda: os.kill(service.children("valkey-server")[0], signal.SIGKILL), wait)
    everyone_got_their_own_answer(crowd, tiny)


def test_a_worker_frozen_in_mid_batch_loses_no_answer(tmp_path: Path) -> None:
    write_null(tmp_path, milliseconds=400)
    with serve(tmp_path, "--workers", "2", copied=True) as service:
        crowd = Crowd(service.url, 48, clients=24)
        crowd.start()
        wait(lambda: crowd.done >= 1, "batches are running")
        with frozen(service.children("worker")[0]):
            crowd.join()
        assert [answer.status_code for answer in crowd.answers if isinstance(answer, httpx2.Response)] == [200] * 48
        eventually(lambda: nothing_waits(service), "the thawed worker's second answers are dropped, and nothing is left")


@pytest.mark.slow
def test_a_frozen_worker_is_replaced(tiny: Bundle) -> None:
    with serve(tiny.path.parent.parent) as service:
        assert service.url
        [before] = service.children("worker")
        with frozen(before):
            wait(lambda: service.children("worker") not in ([before], []), "another worker runs")
        assert service.classify(picture(1)).status_code == 200


@pytest.mark.slow
def test_full_recovery_after_four_in_five_clients_have_left(tmp_path: Path) -> None:
    write_null(tmp_path, milliseconds=100)
    with serve(tmp_path) as service:
        with httpx2.Client(base_url=service.url, timeout=30) as http:
            crowd = Crowd(service.url, 16, clients=16)
            crowd.start()
            for seed in range(64):
                with pytest.raises(httpx2.TimeoutException):
                    http.post("/v1/classify", content=picture(seed), timeout=0.02)
            crowd.join()
        assert [answer.status_code for answer in crowd.answers if isinstance(answer, httpx2.Response)] == [200] * 16
        eventually(lambda: nothing_waits(service), "nothing of those who left is left")
        assert service.classify(picture(1)).status_code == 200


def nothing_waits(service: Service) -> bool:
    lines = service.get("/metrics").text.splitlines()
    values = [float(line.split()[-1]) for line in lines if line.startswith(("opsin_queue_depth", "opsin_in_flight"))]
    return bool(values) and not any(values)
