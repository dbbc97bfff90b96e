"""Many captures at once, and scenes that are kept: how many, how long, and the answer once one is gone."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest

from models.bundle_schema import QuerySpace
from server.gateway.auth.key_file import ApiKey, format_line, hash_key, new_key
from tests.support.bundles.analytic_mcc import write_shell
from tests.support.gateway_process import gateway_process
from tests.support.images import depth, image, mesh, npy, png
from tests.support.job_api import accepted_id, comes_to, result
from tests.support.live_service import SMALL_LIMITS, running
from tests.support.task_clients import JSON, Sculptor
from tests.support.waiting import eventually

SCENES_BYTES = 100_000
"""Budget for scenes of `forgetful`: a few, since one of `shell` takes some 16,000 bytes."""
GONE_S = 1.0


def captures(count: int) -> list[dict[str, bytes]]:
    """Return captures of the same ball at different distances, so that no answer is another's."""
    return [{"image": png(image()), "depth": npy(np.where(depth() > 0, depth() + number, 0))} for number in range(count)]


def middles(solids: list[bytes]) -> list[float]:
    """Return the middles of meshes along the line of sight."""
    return [-float(mesh(content).bounds[:, 2].mean()) for content in solids]


def test_simultaneous_meshes_are_of_their_own_captures(sculptor: Sculptor) -> None:
    sent = captures(6)
    alone = [sculptor.run(files=files).content for files in sent]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        simultaneous = [answer.content for answer in pool.map(lambda files: sculptor.run(files=files), sent)]
    np.testing.assert_allclose(middles(simultaneous), middles(alone), atol=1e-3)
    assert len({round(middle, 1) for middle in middles(alone)}) == len(sent)
    eventually(lambda: sculptor.gateway.count_in_flight() == 0, "nothing is left behind")


def test_each_location_answers_with_its_own_scene(sculptor: Sculptor) -> None:
    sent = captures(5)
    first = [sculptor.run(files=files) for files in sent]
    locations = [answer.headers["location"] for answer in first]
    assert len(set(locations)) == len(sent)
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        again = list(pool.map(lambda location: sculptor.service.gateways[1].http.get(location, timeout=120), locations))
    np.testing.assert_allclose(middles([answer.content for answer in again]), middles([answer.content for answer in first]), atol=1e-3)


def test_a_kept_scene_answers_when_the_store_is_full(sculptor: Sculptor) -> None:
    """Nothing is evicted for newer scenes, which are not kept. An answer fetched again still names its scene."""
    job = accepted_id(sculptor.ask(format="ply", headers={"Prefer": "respond-async"}))
    comes_to(sculptor.gateway, job, "done")
    fetched = result(sculptor.gateway, job, **JSON).json()
    location = f"/v1/scenes/{fetched['scene']}"
    with (
        gateway_process(sculptor.service.redis_url, results_max_bytes=1, default_models={"reconstruct": "shell"}) as crowded,
        concurrent.futures.ThreadPoolExecutor(12) as pool,
    ):
        full = Sculptor(dataclasses.replace(sculptor.service, gateways=[crowded]))
        others = [pool.submit(full.run, files=files, format="ply", headers=JSON) for files in captures(4)]
        again = [pool.submit(result, crowded, job, **JSON) for _ in range(4)]
        followups = [
            pool.submit(crowded.http.get, location, params={"format": "ply", "threshold": value}) for value in (0.1, 0.2, 0.3, 0.1)
        ]
        unkept = [one.result().json() for one in others]
        assert [one["scene"] for one in unkept] == [None] * 4 and all(one["points"] > 100 for one in unkept)
        assert [one.result().json() for one in again] == [fetched] * 4
        points = [int(one.result().raise_for_status().headers["x-points"]) for one in followups]
    assert points[0] == points[3] == fetched["points"] >= points[1] >= points[2] > 0


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sculptor]:
    """A service that has little room for scenes, and forgets them soon."""
    bundles = tmp_path_factory.mktemp("bundles")
    write_shell(bundles, space=QuerySpace(spacing=0.2, reach=0.2, margin=4))
    with running(bundles, scene_ttl=GONE_S, results_max_bytes=SCENES_BYTES, **SMALL_LIMITS) as started:
        yield Sculptor(started)


@pytest.mark.slow
def test_full_memory_answers_without_scene_until_others_go(forgetful: Sculptor) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: forgetful.run(format="ply", headers=JSON).json(), range(16)))
    assert all(answer["points"] == answers[0]["points"] > 100 for answer in answers)
    assert any(answer["scene"] is None for answer in answers)
    eventually(lambda: forgetful.run(format="ply", headers=JSON).json()["scene"] is not None, "expired scenes have made room")


@pytest.mark.slow
def test_an_expired_scene_is_gone_for_all_options(forgetful: Sculptor) -> None:
    def scene_location() -> str | None:
        return forgetful.run(format="ply").headers.get("location")

    eventually(lambda: scene_location() is not None, "there is room for a scene")
    location = scene_location() or "/v1/scenes/" + "0" * 32
    http = forgetful.gateway.http
    eventually(lambda: http.get(location).status_code == 404, "it has expired")
    for options in ({"spacing": "0.1"}, {"threshold": "0.5"}, {"format": "glb"}, {"mode": "dense"}, {"sharpness": "1"}):
        answer = http.get(location, params=options)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
        assert "OPSIN_SCENE_TTL" in answer.json()["detail"]


def test_a_scene_answers_the_holder_of_its_key_alone(sculptor: Sculptor, tmp_path: Path) -> None:
    """This holds for a scene of a job's result and one made without a key, too."""
    keys, file = {name: new_key() for name in ("alice", "bob")}, tmp_path / "keys"
    file.write_text("".join(f"{format_line(ApiKey(name), hash_key(key.encode()))}\n" for name, key in keys.items()))
    files = {name: (name, content) for name, content in captures(1)[0].items()}
    fields = {"fov": "60", "format": "ply", "surface": "network"}
    with gateway_process(sculptor.service.redis_url, api_keys_file=file, default_models={"reconstruct": "shell"}) as guarded:
        alice, bob = (httpx2.Client(base_url=guarded.url, timeout=120, headers={"X-API-Key": keys[name]}) for name in ("alice", "bob"))
        made = alice.post("/v1/reconstruct", files=files, data=fields).headers["location"]
        later = alice.post("/v1/reconstruct", files=files, data=fields, headers={"Prefer": "respond-async"}).json()["links"]["result"]
        eventually(lambda: alice.get(later).status_code == 200, "the job is done")
        of_job = alice.get(later).headers["location"]
        without = sculptor.run(format="ply", surface="network").headers["location"]
        options = {"format": "ply", "surface": "network"}
        for scene, holder in ((made, alice), (of_job, alice), (without, sculptor.gateway.http)):
            for client in (alice, bob, sculptor.gateway.http):
                assert client.get(scene, params=options).status_code == (200 if client is holder else 404)
