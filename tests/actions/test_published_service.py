"""A running service answers with LART in its published layout, and says of a pipeline whose mesh is missing why it is not served."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.bundle import Bundle
from models.bundle_schema import Role
from models.systems.pipeline_bundles import write_action_pipeline
from server import playground
from tests.actions.test_members import write_hmr2
from tests.support.bundles.actions import LABELS, LAYOUT, write_lart, write_mesh, write_movenet, write_mvit
from tests.support.gateway_process import gateway_process
from tests.support.live_service import Service, worker_process
from tests.support.redis import private_valkey
from tests.support.waiting import START_S

CLIP = playground.SAMPLES / "figures.mp4"
SECONDS = 1.2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_service_answers_with_joints_and_appearance(tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    members: dict[Role, Bundle] = {
        "detector": write_movenet(bundles),
        "pose": write_hmr2(bundles),
        "appearance": write_mvit(bundles),
        "actions": write_lart(bundles, LAYOUT, "lart"),
    }
    present, missing = write_mesh(tmp_path / "kept.safetensors"), write_mesh(tmp_path / "gone.npz")
    write_action_pipeline(bundles, "people", "1", members, rate=15.0, body=present)
    write_action_pipeline(bundles, "without", "1", members, rate=15.0, body=missing)
    missing.unlink()
    with private_valkey() as valkey, gateway_process(valkey.url) as gateway, worker_process(valkey.url, bundles) as worker:
        gateway.wait_for_workers()
        listed = {model["name"]: model for model in gateway.http.get("/v1/models").json()["models"]}
        assert {name: model["state"] for name, model in listed.items()} == {"people": "ready", "without": "unavailable"}
        assert f"external.body: {missing}: missing" in listed["without"]["reason"]
        request = {"files": {"video": CLIP.read_bytes()}, "data": {"end_s": SECONDS, "model": "people"}, "timeout": START_S}
        answer = gateway.http.post("/v1/actions", **request).raise_for_status().json()
        refused = gateway.http.post("/v1/actions", **request | {"data": {"model": "without"}})
        spent = Service([gateway], [worker], tmp_path / "bundles", valkey.url).sum_metric(
            "opsin_video_stage_seconds_total", stage="appearance"
        )
    assert refused.status_code in (404, 503) and spent > 0
    standing, *_ = answer["people"]
    assert [box[0] for box in standing["boxes"]] == pytest.approx([row / 15 for row in range(18)], abs=2e-3)
    assert [second["start_s"] for second in standing["actions"]] == [0.0, 1.0]
    assert {label["label"] for label in standing["actions"][0]["labels"]} == set(LABELS)
