"""`opsin capacity`: its arithmetic, its messages for input that cannot be planned with, and its forecast for a real service."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from benchmarks import reference
from benchmarks.load import run
from opsin.cli.capacity import redis_figures
from opsin.cli.capacity.measurements import MeasuredBundle, MeasuredService, measure, parse_metrics
from opsin.cli.capacity.plan import CapacityRequest, plan
from opsin.cli.capacity.simulation import BatchTimes, Demand, simulate
from opsin.cli.shared.errors import CommandError
from opsin.connection import ServiceConnection
from tests.support.fake_servers import Answer, Request, serve_script
from tests.support.live_service import running
from tests.support.processes import opsin

PAYLOAD = 150_528


def bundle(name: str = "a", seconds: dict[int, float] | None = None, largest: int = 4, items: int = 1000) -> MeasuredBundle:
    times = BatchTimes(seconds or {1: 0.1, 4: 0.2}, largest)
    return MeasuredBundle(f"{name}@1", items, times, batch_seconds=1.0, payload_bytes=PAYLOAD)


def service(*bundles: MeasuredBundle, slots: int = 1) -> MeasuredService:
    return MeasuredService(
        workers=1,
        slots=slots,
        gateways=1,
        bundles=bundles or (bundle(),),
        items=1000,
        gateway_cpu_s=0.01,
        gateway_s=0.02,
        redis_bytes=None,
        unfinished=0,
        kept_jobs=10,
        kept_bytes=20_000.0,
    )


def test_single_items_take_the_time_of_a_batch_of_one() -> None:
    pool = simulate([Demand(0.01, BatchTimes({1: 0.1, 4: 0.2}, 4))], slots=1)
    assert pool.busy == pytest.approx(0.001, rel=0.05)
    assert pool.mean_s == pytest.approx(0.1, rel=0.02)
    assert pool.batch_size == pytest.approx(1.0, abs=0.01)


def test_waiting_time_is_that_of_queueing_theory() -> None:
    """Compare with an M/D/1 queue: one slot, no batches, a constant time, mean waiting load × time ÷ (2 × (1 − load))."""
    pool = simulate([Demand(0.8, BatchTimes({1: 1.0}, 1))], slots=1, arrivals=200_000)
    assert pool.busy == pytest.approx(0.8, rel=0.02)
    assert pool.mean_s == pytest.approx(1 + 0.8 / (2 * 0.2), rel=0.05)


def test_batches_grow_with_the_load_up_to_the_learned_size() -> None:
    times = BatchTimes({1: 0.1, 4: 0.2}, 4)
    sizes = [simulate([Demand(rate, times)], slots=1).batch_size for rate in (1, 10, 19)]
    assert sizes == sorted(sizes) and sizes[0] < 1.2 and 3 < sizes[2] <= 4


def test_times_of_unmeasured_sizes_lie_between_or_in_proportion() -> None:
    times = BatchTimes({2: 0.1, 4: 0.2}, 8)
    assert [times.predict(size) for size in (1, 2, 3, 4, 8)] == pytest.approx([0.1, 0.1, 0.15, 0.2, 0.4])
    assert times.best_seconds_per_item == pytest.approx(0.05)


def test_numbers_follow_from_the_rate_and_the_headroom() -> None:
    """Plan for slots that run 4 items in 0.2 s, 20 per second, of which 14 are to be used; a gateway runs 100, of which 70."""
    result = plan(service(), CapacityRequest(100.0, {}))
    assert (result.workers.count, result.workers.items_per_second) == (8, pytest.approx(20.0))
    assert result.workers.load == pytest.approx(100 / 160)
    assert (result.gateways.count, result.gateways.cores) == (2, pytest.approx(1.0))
    assert result.redis.bytes_per_second == pytest.approx(100 * PAYLOAD)
    assert plan(service(slots=2), CapacityRequest(100.0, {})).workers.count == 4


def test_cells_follow_from_the_cpu_time_of_redis() -> None:
    carried = 0.7 / redis_figures.cpu_s(PAYLOAD)
    cells = [plan(service(), CapacityRequest(rate * carried, {})).redis.cells for rate in (0.99, 1.01, 2.01)]
    assert cells == [1, 2, 3]


def test_memory_has_unfinished_items_and_kept_results() -> None:
    redis = plan(service(), CapacityRequest(10.0, {}, job_share=0.5, result_ttl_s=3600)).redis
    assert redis.result_bytes == 10 * 0.5 * 3600 * 2000
    assert 2 * redis_figures.memory_bytes(PAYLOAD) < redis.unfinished_bytes < 10 * redis_figures.memory_bytes(PAYLOAD)
    assert redis.memory_bytes == pytest.approx(redis_figures.IDLE_BYTES + redis.unfinished_bytes + redis.result_bytes)


def test_memory_of_an_idle_redis_is_what_the_service_reports() -> None:
    """Subtract unfinished items and kept results from the memory in use."""
    stored_now = 50 * redis_figures.memory_bytes(PAYLOAD) + 20_000
    redis = plan(replace(service(), redis_bytes=40e6 + stored_now, unfinished=50), CapacityRequest(10.0, {})).redis
    assert redis.memory_bytes - redis.unfinished_bytes == pytest.approx(40e6)


def test_an_objective_adds_workers_or_says_that_none_help() -> None:
    alone = plan(service(), CapacityRequest(100.0, {})).workers
    quick = plan(service(), CapacityRequest(100.0, {}, objective_s=0.25)).workers
    assert quick.count > alone.count and quick.p99_s <= 0.25 < alone.p99_s
    with pytest.raises(CommandError, match=r"--objective: with .* workers do not help"):
        plan(service(), CapacityRequest(100.0, {}, objective_s=0.05))


def test_a_mix_weighs_the_bundles() -> None:
    """A bundle that takes ten times as long needs ten times the workers."""
    both = service(bundle("a"), bundle("b", {1: 1.0, 4: 2.0}))
    result = plan(both, CapacityRequest(10.0, {"a": 1, "b@1": 1}))
    assert [(row.bundle, row.rate) for row in result.bundles] == [("a@1", 5.0), ("b@1", 5.0)]
    assert result.workers.items_per_second == pytest.approx(2 / (0.05 + 0.5))


def test_figures_that_are_missing_are_named() -> None:
    with pytest.raises(CommandError, match="c: the service has no such bundle; it has a@1"):
        plan(service(), CapacityRequest(1.0, {"c": 1}))
    with pytest.raises(CommandError, match="too few measurements of a@1: 40 items were answered; send at least 60 more"):
        plan(service(bundle(items=40)), CapacityRequest(1.0, {}))
    with pytest.raises(CommandError, match="no worker is ready"):
        plan(replace(service(), workers=0), CapacityRequest(1.0, {}))
    with pytest.raises(CommandError, match=r"--jobs: .* no result"):
        plan(replace(service(), kept_jobs=0), CapacityRequest(1.0, {}, job_share=0.1))


def test_metrics_are_summed_by_bundle() -> None:
    samples = ['x_total{model="a",version="1",outcome="ok"} 2', 'x_total{model="a",version="1",outcome="no"} 1e1', 'z_bucket{le="1"} 3']
    text = "\n".join(["# HELP x", *samples, "y 0.5", ""])
    assert parse_metrics(text) == {("x_total", "a@1"): 12.0, ("y", ""): 0.5}


STATUS = {
    "gateways": 2,
    "workers": [{"state": "ready", "slots": 2}],
    "bundles": [{"model": "a", "version": "1", "batch_budget": 4}],
}
METRICS = """
opsin_cpu_seconds_total 20
opsin_items_total{model="a",version="1"} 1000
opsin_preprocess_seconds_sum{model="a"} 4
opsin_preprocess_seconds_count{model="a"} 1000
opsin_postprocess_seconds_sum{model="a"} 1
opsin_postprocess_seconds_count{model="a"} 1000
opsin_queued_jobs_total{model="a",version="1"} 1000
opsin_queued_bytes_total{model="a",version="1"} 150528000
opsin_jobs{state="done"} 10
opsin_jobs{state="queued"} 5
opsin_result_bytes 20000
opsin_redis_memory_bytes{kind="used"} 5e6
opsin_redis_memory_bytes{kind="limit"} 9e9
"""


def statistics(items: int = 1000) -> dict[str, Any]:
    batches = [{"batch_size": 1, "compute_infer": {"count": 200, "ns": 20_000_000_000}}]
    batches += [{"batch_size": 4, "compute_infer": {"count": 200, "ns": 40_000_000_000}}]
    return {"model_stats": [{"name": "a", "version": "1", "inference_count": items, "batch_stats": batches}]}


@pytest.fixture
def url() -> Iterator[str]:
    """A service that has answered a thousand items of `a@1`."""
    answers = {"/v1/status": STATUS, "/v2/models/stats": statistics(), "/metrics": METRICS}

    def answer(request: Request) -> Answer:
        return Answer(body=answers[request.path])

    with serve_script(answer) as script:
        yield script.url


def test_a_plan_as_json_and_as_a_table(url: str) -> None:
    printed = opsin("capacity", "--url", url, "--rate", "100", "--jobs", "0.1", "--json")
    assert (printed.returncode, printed.stderr) == (0, "")
    result = json.loads(printed.stdout)
    assert (result["workers"]["count"], result["workers"]["slots"], result["workers"]["items_per_second"]) == (4, 2, pytest.approx(40))
    assert result["gateways"] == {"count": 3, "running": 2, "cpu_s_per_item": 0.02, "cores": 2.0}
    assert result["redis"]["result_bytes"] == 100 * 0.1 * 3600 * 2000
    assert result["redis"]["used_bytes"] == 5e6
    assert result["bundles"][0]["payload_bytes"] == PAYLOAD
    table = opsin("capacity", "--url", url, "--rate", "100", "--mix", "a", "--workers", "5")
    assert table.returncode == 0
    rows = {line.split("  ")[0]: line.split() for line in table.stdout.splitlines()}
    assert rows["Workers"][1:3] == ["5", "1"] and rows["Gateways"][1:3] == ["3", "2"] and rows["Cells"][1] == "1"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--rate", "0"), 2, "--rate: 0; it must be positive"),
        (("--rate", "-5"), 2, "--rate: -5; it must be positive"),
        (("--rate", "nan"), 2, "--rate: nan; it must be positive"),
        (("--rate", "1", "--load", "1.5"), 2, "--load: 1.5; it must be above 0 and at most 1"),
        (("--rate", "1", "--objective", "0"), 2, "--objective: 0; it must be positive"),
        (("--rate", "1", "--workers", "0"), 2, "--workers: 0; it must be positive"),
        (("--rate", "1", "--jobs", "2"), 2, "--jobs: 2; it must be from 0 to 1"),
        (("--rate", "1", "--window", "-1"), 2, "--window: -1 seconds; it must be 0 or more"),
        (("--rate", "1", "--mix", "a=0"), 2, "--mix: 'a=0'; it must be NAME=SHARE"),
        (("--rate", "1", "--mix", "a=x"), 2, "--mix: 'a=x'; it must be NAME=SHARE"),
        (("--rate", "1", "--mix", "b=1"), 1, "b: the service has no such bundle; it has a@1"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(url: str, arguments: tuple[str, ...], code: int, sentence: str) -> None:
    ended = opsin("capacity", "--url", url, *arguments)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert sentence in ended.stderr and len(ended.stderr.splitlines()) == 1


def test_without_a_service_it_says_so() -> None:
    ended = opsin("capacity", "--url", "http://127.0.0.1:9", "--rate", "1")
    assert ended.returncode == 1
    assert "no answer" in ended.stderr and len(ended.stderr.splitlines()) == 1


def test_an_older_service_is_named_as_such() -> None:
    answers = {"/v1/status": STATUS, "/v2/models/stats": statistics(), "/metrics": METRICS.replace("opsin_cpu_seconds_total", "other")}
    with serve_script(lambda request: Answer(body=answers[request.path])) as script:
        ended = opsin("capacity", "--url", script.url, "--rate", "1")
    assert ended.returncode == 1
    assert "older than this command" in ended.stderr and len(ended.stderr.splitlines()) == 1


def test_another_servers_answer_is_not_taken_for_a_service() -> None:
    with serve_script([Answer(body={"hello": "world"})]) as script:
        ended = opsin("capacity", "--url", script.url, "--rate", "1")
    assert ended.returncode == 1
    assert "not an answer of Opsin" in ended.stderr and len(ended.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_load_of_a_real_service_is_predicted(tmp_path: Path) -> None:
    """Batches of 20 ms whatever their size, measured at 10/s and predicted for 30/s."""
    reference.make_null_bundle(tmp_path / "bundles", "null", 20.0)
    reference.write_small_pictures(tmp_path / "pictures")
    pictures = [path.read_bytes() for path in (tmp_path / "pictures").iterdir()]
    with running(tmp_path / "bundles") as served:
        target = f"{served.url}/v1/classify?model=null"

        def offer(rate: float, seconds: float) -> None:
            report = uvloop.run(run(target, pictures, clients=0, rate=rate, warm=0.0, seconds=seconds, expected=None))
            assert report.failures == {}

        offer(10, 3)
        early = opsin("capacity", "--url", served.url, "--rate", "30")
        assert early.returncode == 1 and "too few measurements" in early.stderr and "more" in early.stderr
        offer(10, 12)
        printed = opsin("capacity", "--url", served.url, "--rate", "30", "--workers", "1", "--json")
        assert printed.returncode == 0, printed.stderr
        predicted = json.loads(printed.stdout)
        with ThreadPoolExecutor(1) as pool:
            load = pool.submit(offer, 30, 14)
            time.sleep(2)
            connection = ServiceConnection(served.url, None, 60.0, 2, None)
            found = measure(connection, 10)
            connection.http.close()
            load.result()
    assert predicted["bundles"][0]["payload_bytes"] == 16 * 16 * 3
    assert found.bundles[0].batch_seconds / 10 == pytest.approx(predicted["workers"]["busy"], rel=0.15)
    assert 30 * found.gateway_cpu_s == pytest.approx(predicted["gateways"]["cores"], rel=0.5)
