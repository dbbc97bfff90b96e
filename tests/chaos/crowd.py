"""Many clients at once: each asks one picture after the other and keeps what it was told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np

from tests.support.images import picture

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
        """(requests, classes) in the order of the classes; fails naming the first request that was not answered."""
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
