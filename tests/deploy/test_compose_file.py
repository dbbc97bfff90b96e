"""Promises of docker-compose.yml that a running stack does not show at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from server.settings import Settings

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
GPU_WORKERS = ("worker-gpu", "worker-gpu-1")
DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}


def test_redis_never_forgets_a_job() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--maxmemory-policy"] == "noeviction"
    assert (options["--appendonly"], options["--appendfsync"]) == ("yes", "everysec")
    assert f"queue:{options['--dir']}" in SERVICES["redis"]["volumes"]


def test_only_workers_hold_bundles_and_cannot_change_them() -> None:
    holders = {name: mount for name, service in SERVICES.items() for mount in service.get("volumes", []) if "/bundles" in mount}
    assert list(holders) == ["worker", *GPU_WORKERS]
    assert all(mount.endswith(":/bundles:ro") for mount in holders.values())


def test_each_gpu_worker_has_a_gpu_of_its_own() -> None:
    gpus = []
    for service in map(SERVICES.__getitem__, GPU_WORKERS):
        [device] = service["deploy"]["resources"]["reservations"]["devices"]
        gpus += device["device_ids"]
        assert service["environment"].items() >= {"OPSIN_DEVICE": "cuda", "OPSIN_REDIS_URL": "redis://redis:6379/0"}.items()
        assert service["build"]["args"]["EXTRA"] == "gpu"
        assert service["networks"]["default"]["aliases"] == ["worker"], "Prometheus looks there"
        assert service["profiles"], "it does not start without a GPU"
    assert gpus == ["0", "1"]


def test_a_stopping_process_has_time_to_finish() -> None:
    for name in ("gateway", "worker"):
        assert float(SERVICES[name]["stop_grace_period"].removesuffix("s")) > DEFAULTS["drain_timeout"]


def test_ports_listen_on_this_machine_alone() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_prometheus_scrapes_published_metrics_ports() -> None:
    jobs = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    found = {name: lookup["port"] for job in jobs for lookup in job["dns_sd_configs"] for name in lookup["names"]}
    assert found == {"gateway": DEFAULTS["port"], "worker": DEFAULTS["metrics_port"]}


def test_with_keys_gateways_and_prometheus_get_one_file_each() -> None:
    over = yaml.safe_load((ROOT / "docker-compose.keys.yml").read_text())["services"]
    assert over.keys() == {"gateway", "prometheus"}
    path = over["gateway"]["environment"]["OPSIN_API_KEYS_FILE"]
    assert [volume.endswith(f":{path}:ro") for volume in over["gateway"]["volumes"]] == [True]
    mounted = {volume.split(":")[-2]: volume for volume in over["prometheus"]["volumes"]}
    config, plain = (
        yaml.safe_load((ROOT / "deploy" / "prometheus" / name).read_text()) for name in ("prometheus.keys.yml", "prometheus.yml")
    )
    assert any("prometheus.yml:" in volume and volume.split(":")[-2] in mounted for volume in SERVICES["prometheus"]["volumes"])
    [gateway] = [job for job in config["scrape_configs"] if job["job_name"] == "gateway"]
    assert gateway.pop("authorization")["credentials_file"] in mounted
    assert config == plain


def test_cells_have_their_own_number_and_redis() -> None:
    cells = yaml.safe_load((ROOT / "docker-compose.cells.yml").read_text())["services"]
    for number, name in enumerate(("cell-00", "cell-01")):
        for process in ("gateway", "worker"):
            service = cells[f"{name}-{process}"]
            expected = {"OPSIN_CELL": str(number), "OPSIN_REDIS_URL": f"redis://{name}-redis:6379/0"}
            assert service["environment"].items() >= expected.items()
            assert service["depends_on"] == {f"{name}-redis": {"condition": "service_healthy"}}
        assert cells[f"{name}-redis"]["command"] == SERVICES["redis"]["command"]
    assert cells["cell-00-redis"]["volumes"] != cells["cell-01-redis"]["volumes"]
    names = set(re.findall(r"server \S+ ([\w-]+):8000", (ROOT / "deploy" / "haproxy" / "haproxy.cfg").read_text()))
    assert names == {name for name in cells if name.endswith("-gateway")}
    assert cells["proxy"]["ports"] == ["127.0.0.1:${OPSIN_PORT:-8000}:8000"]
