"""Two cells behind HAProxy as a user runs them, by docker-compose.cells.yml. `make compose-test` needs a container engine."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from tests.e2e.conftest import ROOT, START_SECONDS, Stack, compose_environment, free_port, health_checks, is_ready, wait_until

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]

IMAGE = (ROOT / "docs" / "pictures" / "flags" / "nepal.png").read_bytes()
CELLS = ("cell-00", "cell-01")
AGAIN_SECONDS = 60.0


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Both cells and HAProxy, of images built now."""
    port = free_port()
    stack = Stack(f"http://127.0.0.1:{port}", "", compose_environment(port), "opsin-cells-test", "docker-compose.cells.yml")
    stack.compose("down", "--volumes", "--remove-orphans")
    try:
        stack.compose("build", "cell-00-gateway", "cell-00-worker")
        with health_checks(stack.project):
            stack.compose("up", "--detach")
        try:
            for cell in CELLS:
                wait_until(lambda cell=cell: serves(stack, cell), lambda cell=cell: f"{cell} is not ready", START_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{stack.compose('logs', '--tail', '40')}") from error
        yield stack
    finally:
        stack.compose("down", "--volumes", "--remove-orphans")


def serves(stack: Stack, cell: str) -> bool:
    """Return whether the cell gets requests through HAProxy."""
    if not is_ready(f"{stack.gateway}/health/ready"):
        return False
    return any(f"cell-{ask_later(stack.gateway)[:2]}" == cell for _ in range(4))


def ask_later(url: str, **headers: str) -> str:
    """Return the id of a job."""
    answer = httpx2.post(f"{url}/v1/classify?model=flags", content=IMAGE, headers={"Prefer": "respond-async", **headers}, timeout=90)
    assert answer.status_code == 202, f"{answer.status_code}: {answer.text}"
    return str(answer.json()["id"])


def is_done(url: str, job_id: str) -> bool:
    answer = httpx2.get(f"{url}/v1/jobs/{job_id}", timeout=10)
    return answer.status_code == 200 and answer.json()["state"] == "done"


def test_jobs_are_answered_by_their_cell_while_it_is_up(stack: Stack) -> None:
    url, ids = stack.gateway, {}
    for _ in range(10):
        job_id = ask_later(url)
        wait_until(lambda job_id=job_id: is_done(url, job_id), lambda job_id=job_id: f"{job_id} is not done", AGAIN_SECONDS)
        answer = httpx2.get(f"{url}/v1/jobs/{job_id}/result", timeout=10).raise_for_status().json()
        assert answer["results"][0]["predictions"][0]["label"] == "Nepal"
        ids[f"cell-{job_id[:2]}"] = job_id
    assert ids.keys() == set(CELLS)

    stack.compose("stop", "cell-00-gateway")
    wait_until(lambda: httpx2.get(f"{url}/v1/jobs/{ids['cell-00']}").status_code == 503, lambda: "the gateway answers", AGAIN_SECONDS)
    assert is_done(url, ids["cell-01"])
    assert {ask_later(url)[:2] for _ in range(5)} == {"01"}

    stack.compose("start", "cell-00-gateway")
    wait_until(lambda: is_done(url, ids["cell-00"]), lambda: "the job of cell 0 is not found again", AGAIN_SECONDS)
