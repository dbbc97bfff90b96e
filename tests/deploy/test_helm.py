"""The Helm chart: what it renders is what Kubernetes, KEDA, the Prometheus Operator and the Gateway API accept, and follows its values."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import Settings
from tools import chart_values

helm = pytest.importorskip("helm_python.chart", reason="pip install -e '.[chart]'")
errors = pytest.importorskip("helm_python.errors")
kubernetes_validate = pytest.importorskip("kubernetes_validate")
jsonschema = pytest.importorskip("jsonschema")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CHART = chart_values.CHART
VERSIONS = ("1.29", "1.33")
"""Versions of Kubernetes whose schemas the objects must fit."""
Object = dict[str, Any]
POOL: Object = {"name": "cpu", "device": "cpu", "resources": {"requests": {"cpu": "2", "memory": "4Gi"}}}
GPU: Object = {
    "name": "gpu",
    "device": "cuda",
    "image": {"repository": "opsin-worker-gpu"},
    "models": ["flags", "siglip"],
    "bundles": {
        "image": "opsin-bundles:1",
        "hub": {"siglip": "hf://google/siglip-base-patch16-224"},
        "hubTokenSecret": {"name": "hub", "key": "token"},
    },
    "resources": {"requests": {"cpu": "4", "memory": "8Gi"}},
    "nodeSelector": {"accelerator": "h100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "settings": {"OPSIN_LOG_LEVEL": "DEBUG"},
    "keda": {"enabled": True, "maxReplicas": 3},
}
EVERYTHING: Object = {
    "image": {"pullSecrets": [{"name": "registry"}]},
    "gateway": {"autoscaling": {"enabled": False}, "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"a": "b"}}},
    "pools": [GPU, POOL | {"bundles": {"existingClaim": "bundles"}, "replicas": 2}],
    "cache": {"existingClaim": "learned"},
    "redis": {"trial": {"enabled": False}, "urlSecret": {"name": "redis"}},
    "keys": {"existingSecret": "keys"},
    "route": {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["vision.example"]},
    "monitoring": {
        "podMonitors": {"enabled": True, "metricsKeySecret": {"name": "metrics-key"}},
        "rules": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboards": {"enabled": True},
    },
    "tracing": {"endpoint": "http://collector.monitoring:4318", "samplerRatio": 0.05},
    "networkPolicies": {"clients": [{"podSelector": {"matchLabels": {"app": "shop"}}}]},
}


def render(values: Object) -> dict[tuple[str, str], Object]:
    """Return (kind, name) → object."""
    with helm.Chart.load(CHART) as chart:
        files = chart.render(values=values, name="demo")
    objects = [one for name, text in files.items() if name.endswith(".yaml") for one in yaml.safe_load_all(text) if one]
    named = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    assert len(named) == len(objects)
    return named


@cache
def render_cached(values: str) -> dict[tuple[str, str], Object]:
    return render(json.loads(values))


def render_defaults() -> dict[tuple[str, str], Object]:
    return render_cached("{}")


def render_everything() -> dict[tuple[str, str], Object]:
    return render_cached(json.dumps(EVERYTHING))


def container(deployment: Object) -> Object:
    [one] = deployment["spec"]["template"]["spec"]["containers"]
    assert isinstance(one, dict)
    return one


def environment(deployment: Object) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in container(deployment)["env"]}


def check(thing: Object) -> None:
    """Raise an error if an object is not of its schema."""
    match thing["kind"]:
        case "ScaledObject":
            from cloudcoil.models.keda.v1alpha1 import ScaledObject

            ScaledObject.model_validate(thing)
        case "PodMonitor" | "PrometheusRule" as kind:
            from cloudcoil.models.prometheus_operator import v1

            getattr(v1, kind).model_validate(thing)
        case "HTTPRoute":
            jsonschema.validate(thing, json.loads(Path(__file__).with_name("httproute.schema.json").read_text()))
        case _:
            for version in VERSIONS:
                kubernetes_validate.validate(thing, version, strict=True)


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["by default", "with everything"])
def test_every_object_fits_its_schema(values: Object) -> None:
    objects = render(values)
    assert {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"} <= {kind for kind, _ in objects}
    for one in objects.values():
        check(one)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("Deployment", {"replicaz": 2}),
        ("ScaledObject", {"maxReplicaCount": "many"}),
        ("PodMonitor", {"selector": 3}),
        ("HTTPRoute", {"rules": 3}),
    ],
)
def test_the_schemas_find_what_is_wrong(kind: str, wrong: Object) -> None:
    one = next(thing for (found, _), thing in render_everything().items() if found == kind)
    with pytest.raises(Exception, match=r"(?i)valid|additional|not of type"):
        check({**one, "spec": {**one["spec"], **wrong}})


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["by default", "with everything"])
def test_pods_run_with_least_privileges(values: Object) -> None:
    templates = [one["spec"]["template"]["spec"] for one in render(values).values() if one["kind"] in ("Deployment", "StatefulSet")]
    for pod in templates:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for one in pod["containers"] + pod.get("initContainers", []):
            security = one["securityContext"]
            assert security == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert len(templates) == 3


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["by default", "with everything"])
def test_settings_ports_and_paths_exist_in_settings_and_images(values: Object) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", dockerfile, re.MULTILINE | re.DOTALL))
    for (kind, name), one in render(values).items():
        if kind != "Deployment":
            continue
        stage = stages["gateway" if name.endswith("-gateway") else "worker"]
        names = {f"OPSIN_{field.upper()}" for field in Settings.model_fields}
        assert {key for key in environment(one) if key.startswith("OPSIN_")} <= names
        [port] = container(one)["ports"]
        assert f"EXPOSE {port['containerPort']}" in stage
        mounts = {mount["mountPath"] for mount in container(one)["volumeMounts"]}
        assert set(re.findall(r"OPSIN_(?:BUNDLES|CACHE)=(/\S+)", stage)) <= mounts
    assert "COPY bundles /bundles" in stages["bundles"] and "useradd --uid 10001" in stages["base"]


@pytest.mark.parametrize(("delay", "timeout", "seconds"), [(7, 60, 77), (0, 0, 10)])
def test_termination_leaves_time_for_delay_and_drain(delay: int, timeout: int, seconds: int) -> None:
    drain = {"drainDelay": delay, "drainTimeout": timeout}
    objects = render({"gateway": drain, "pools": [POOL | drain]})
    for name in ("demo-gateway", "demo-worker-cpu"):
        one = objects["Deployment", name]
        assert one["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == seconds
        assert [environment(one)[f"OPSIN_DRAIN_{part}"] for part in ("DELAY", "TIMEOUT")] == [str(delay), str(timeout)]


def test_pods_may_end_as_late_as_their_longest_request() -> None:
    objects = render_defaults()
    gateway, worker = objects["Deployment", "demo-gateway"], objects["Deployment", "demo-worker-cpu"]
    assert int(environment(gateway)["OPSIN_DRAIN_TIMEOUT"]) >= int(environment(gateway)["OPSIN_REQUEST_TIMEOUT"])
    for one in (gateway, worker):
        assert int(environment(one)["OPSIN_DRAIN_DELAY"]) == 5
        assert one["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == int(environment(one)["OPSIN_DRAIN_TIMEOUT"]) + 15


def test_updates_go_on_when_a_new_pod_serves() -> None:
    objects = render_everything()
    surge, swap = {"maxUnavailable": 0, "maxSurge": 1}, {"maxUnavailable": 1, "maxSurge": 0}
    for name, strategy in (("demo-gateway", surge), ("demo-worker-cpu", surge), ("demo-worker-gpu", swap)):
        one = objects["Deployment", name]
        assert one["spec"]["strategy"] == {"rollingUpdate": strategy}
        probe, port = container(one)["readinessProbe"], container(one)["ports"][0]["name"]
        assert (probe["httpGet"]["path"], probe["httpGet"]["port"]) == ("/health/accepting" if port == "http" else "/health/ready", port)
        delay = int(environment(one)["OPSIN_DRAIN_DELAY"])
        assert probe["periodSeconds"] <= delay, "load balancers that check by themselves as often notice within the delay"


def test_a_new_version_of_the_chart_does_not_restart_redis() -> None:
    labels = render_defaults()["StatefulSet", "demo-redis"]["spec"]["template"]["metadata"]["labels"]
    assert not any("version" in name or "chart" in name for name in labels)


@pytest.mark.parametrize(("from_zero", "path", "grace"), [(True, "/health/accepting", "600"), (False, "/health/ready", None)])
def test_gateways_that_may_have_no_workers_are_ready_without(from_zero: bool, path: str, grace: str | None) -> None:
    gateway = render({"scaleFromZero": from_zero})["Deployment", "demo-gateway"]
    assert container(gateway)["readinessProbe"]["httpGet"]["path"] == path
    assert [environment(gateway).get(name) for name in ("OPSIN_WORKER_GRACE", "OPSIN_REQUEST_TIMEOUT")] == [grace, grace]


def test_settings_of_a_component_win_over_those_of_all() -> None:
    shared = {"OPSIN_LOG_LEVEL": "ERROR", "OPSIN_QUEUE_MAX_ITEMS": 4096, "OPSIN_WORKER_GRACE": 90}
    objects = render({"settings": shared, "gateway": {"settings": {"OPSIN_LOG_LEVEL": "INFO"}}, "pools": [GPU, POOL]})
    names = ("demo-gateway", "demo-worker-gpu", "demo-worker-cpu")
    assert [environment(objects["Deployment", name])["OPSIN_LOG_LEVEL"] for name in names] == ["INFO", "DEBUG", "ERROR"]
    assert [environment(objects["Deployment", name])["OPSIN_QUEUE_MAX_ITEMS"] for name in names] == ["4096"] * 3
    assert environment(objects["Deployment", "demo-gateway"])["OPSIN_WORKER_GRACE"] == "90"


def test_a_pool_with_gpus_asks_for_one_and_imports_its_bundles() -> None:
    deployment = render_everything()["Deployment", "demo-worker-gpu"]
    pod = deployment["spec"]["template"]["spec"]
    assert container(deployment)["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert container(deployment)["image"] == "opsin-worker-gpu:0.3.0" and environment(deployment)["OPSIN_DEVICE"] == "cuda"
    copy, load = pod["initContainers"]
    assert copy["image"] == "opsin-bundles:1" and copy["command"] == ["cp", "-R", "/bundles/.", "/target"]
    assert load["command"] == ["opsin", "import", "hf://google/siglip-base-patch16-224", "-o", "/bundles/siglip"]
    assert {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}} in load["env"]
    assert (pod["nodeSelector"], pod["tolerations"]) == (GPU["nodeSelector"], GPU["tolerations"])


def test_bundles_and_what_was_learned_can_lie_on_claims() -> None:
    volumes = render_everything()["Deployment", "demo-worker-cpu"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "bundles", "persistentVolumeClaim": {"claimName": "bundles", "readOnly": True}} in volumes
    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "learned"}} in volumes


def test_redis_is_for_trials_or_the_operators_own() -> None:
    assert ("StatefulSet", "demo-redis") in render_defaults() and ("StatefulSet", "demo-redis") not in render_everything()
    for values, name in ((render_defaults(), "demo-redis"), (render_everything(), "redis")):
        [url] = [one for one in container(values["Deployment", "demo-gateway"])["env"] if one["name"] == "OPSIN_REDIS_URL"]
        assert url["valueFrom"]["secretKeyRef"] == {"name": name, "key": "url"}
    assert render_defaults()["Secret", "demo-redis"]["stringData"]["url"] == "redis://demo-redis:6379/0"


def test_keys_come_from_their_secret() -> None:
    gateway = render_everything()["Deployment", "demo-gateway"]
    path = Path(environment(gateway)["OPSIN_API_KEYS_FILE"])
    [mount] = [one for one in container(gateway)["volumeMounts"] if one["name"] == "keys"]
    assert mount["mountPath"] == str(path.parent) and mount["readOnly"]


def test_traces_are_sent_to_a_collector_by_gateways_and_workers() -> None:
    for name in ("demo-gateway", "demo-worker-gpu"):
        variables = environment(render_everything()["Deployment", name])
        assert {key: value for key, value in variables.items() if key.startswith("OTEL_")} == {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.monitoring:4318",
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.05",
            "OTEL_RESOURCE_ATTRIBUTES": "service.namespace=demo",
        }
    defaults = render_defaults()["Deployment", "demo-gateway"]
    assert not any(key.startswith("OTEL_") for key in environment(defaults))
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert all(f"[{extras}]" in dockerfile for extras in ("gateway,otel", "$EXTRA,otel")), "the images can export"


def test_monitoring_selects_the_pods_of_the_release() -> None:
    objects = render_everything()
    for kind, ports in (("gateway", ["http"]), ("worker", ["metrics"])):
        assert [one["port"] for one in objects["PodMonitor", f"demo-{kind}"]["spec"]["podMetricsEndpoints"]] == ports
    [endpoint] = objects["PodMonitor", "demo-gateway"]["spec"]["podMetricsEndpoints"]
    assert endpoint["relabelings"] == [{"targetLabel": "cell", "replacement": "0"}]
    assert endpoint["authorization"] == {"credentials": {"name": "metrics-key", "key": "key"}}
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())
    assert render(EVERYTHING | {"scaleFromZero": False})["PrometheusRule", "demo"]["spec"] == rules
    rendered = [rule for group in objects["PrometheusRule", "demo"]["spec"]["groups"] for rule in group["rules"]]
    left_out = {rule.get("alert") for group in rules["groups"] for rule in group["rules"] if rule not in rendered}
    assert left_out == {"OpsinNoReadyWorker", "OpsinBundleWithoutWorker"}, "no worker is usual"
    dashboards = objects["ConfigMap", "demo-dashboards"]["data"]
    assert {name: json.loads(text) for name, text in dashboards.items()} == {
        file.name: json.loads(file.read_text()) for file in (ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")
    }


def test_policies_let_in_clients_and_prometheus_alone() -> None:
    [gateway] = render_everything()["NetworkPolicy", "demo-gateway"]["spec"]["ingress"]
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert gateway["from"] == [{"podSelector": {"matchLabels": {"app": "shop"}}}, monitoring]
    [worker] = render_everything()["NetworkPolicy", "demo-worker-gpu"]["spec"]["ingress"]
    assert worker["from"] == [monitoring]
    assert not any(kind == "NetworkPolicy" for kind, _ in render({"networkPolicies": {"enabled": False}}))


def test_the_route_leaves_deadlines_to_the_service() -> None:
    [rule] = render_everything()["HTTPRoute", "demo"]["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": "demo", "port": 8080}] and rule["timeouts"] == {"request": "0s"}


@pytest.mark.parametrize(("cell", "digits"), [(0, "00"), (42, "2a"), (255, "ff")])
def test_a_release_is_a_cell_that_gets_its_ids(cell: int, digits: str) -> None:
    route = {"enabled": True, "parentRefs": [{"name": "public"}]}
    shared = render({"cell": cell, "route": route | {"cells": ["other-1", "other-2"]}})
    assert [environment(shared["Deployment", f"demo-{name}"])["OPSIN_CELL"] for name in ("gateway", "worker-cpu")] == [str(cell)] * 2
    check(shared["HTTPRoute", "demo"])
    ids, rest = shared["HTTPRoute", "demo"]["spec"]["rules"]
    path = ids["matches"][0]["path"]
    assert (path["type"], ids["backendRefs"], ids["timeouts"]) == ("RegularExpression", [{"name": "demo", "port": 80}], {"request": "0s"})
    assert re.fullmatch(path["value"], f"/v1/jobs/{digits}234567-{'a' * 32}/events") and re.fullmatch(
        path["value"], f"/v1/scenes/{digits}{'a' * 32}"
    )
    assert not re.fullmatch(path["value"], f"/v1/jobs/17234567-{'a' * 32}")
    assert rest["backendRefs"] == [{"name": name, "port": 80} for name in ("demo", "other-1", "other-2")]
    assert render({"cell": cell, "route": route | {"shared": False}})["HTTPRoute", "demo"]["spec"]["rules"] == [ids]


def test_a_cell_beyond_255_is_refused() -> None:
    with pytest.raises(errors.HelmError, match=r"cell"):
        render({"cell": 256})


def test_scaling_belongs_to_keda_or_to_the_number_of_replicas() -> None:
    objects = render_everything()
    assert "replicas" not in objects["Deployment", "demo-worker-gpu"]["spec"]
    assert objects["Deployment", "demo-worker-cpu"]["spec"]["replicas"] == 2
    scaled = objects["ScaledObject", "demo-worker-gpu"]["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (0, 3)
    assert "replicas" not in render_defaults()["Deployment", "demo-gateway"]["spec"]
    assert objects["Deployment", "demo-gateway"]["spec"]["replicas"] == 2 and ("HorizontalPodAutoscaler", "demo-gateway") not in objects


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing: sudo apt-get install prometheus")
@pytest.mark.parametrize(
    ("series", "value"),
    [
        ({}, 32),  # neither bundle was ever announced: one worker, since KEDA rounds up 32 ÷ 16 = 2 at most
        ({'opsin_model_loaded{model="flags",pod="a"}': 0}, 16),
        ({'opsin_model_loaded{model="flags",pod="a"}': 0, 'opsin_model_loaded{model="siglip",pod="a"}': 0}, 0),
        (
            {
                'opsin_model_loaded{model="flags",pod="a"}': 1,
                'opsin_model_loaded{model="siglip",pod="a"}': 1,
                'opsin_queue_depth{model="flags",version="1",priority="high",pod="a"}': 20,
                'opsin_queue_depth{model="flags",version="1",priority="high",pod="b"}': 20,
                'opsin_queue_depth{model="siglip",version="1",priority="low",pod="a"}': 5,
                'opsin_queue_depth{model="words",version="1",priority="low",pod="a"}': 99,
                'opsin_waiting_for_worker{pod="a"}': 3,
                'opsin_waiting_for_worker{pod="b"}': 4,
            },
            32,
        ),
        (
            {
                'opsin_model_loaded{model="flags",cell="0"}': 1,
                'opsin_model_loaded{model="siglip",cell="1"}': 1,
                'opsin_queue_depth{model="flags",version="1",priority="high",cell="0"}': 20,
                'opsin_queue_depth{model="flags",version="1",priority="high",cell="1"}': 50,
                'opsin_waiting_for_worker{cell="0"}': 3,
                'opsin_waiting_for_worker{cell="1"}': 4,
            },
            39,
        ),
    ],
    ids=["nothing known", "one known", "idle", "busy", "two cells"],
)
def test_workers_follow_the_queue(tmp_path: Path, series: dict[str, int], value: int) -> None:
    [trigger] = render_everything()["ScaledObject", "demo-worker-gpu"]["spec"]["triggers"]
    case = {
        "interval": "10s",
        "input_series": [{"series": name, "values": f"{number}x10"} for name, number in series.items()],
        "promql_expr_test": [{"expr": trigger["metadata"]["query"], "eval_time": "1m", "exp_samples": [{"labels": "{}", "value": value}]}],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"evaluation_interval": "10s", "tests": [case]}))
    ended = subprocess.run(["promtool", "test", "rules", tmp_path / "test.yml"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_query_is_the_one_that_the_docs_explain() -> None:
    [trigger] = render_everything()["ScaledObject", "demo-worker-gpu"]["spec"]["triggers"]
    [explained] = re.findall(r"```promql\n(.*?)```", (ROOT / "docs/scaling.md").read_text(), re.DOTALL)
    assert trigger["metadata"]["query"].split() == explained.split()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gateway": {"replica": 3}}, "at '/gateway': additional properties 'replica' not allowed"),
        ({"pools": [POOL | {"device": "tpu"}]}, "at '/pools/0/device': value must be one of 'cpu', 'cuda'"),
        ({"settings": {"QUEUE_MAX_ITEMS": 5}}, "at '/settings': additional properties 'QUEUE_MAX_ITEMS' not allowed"),
        ({"pools": [POOL | {"name": "A_pool"}]}, "at '/pools/0/name'"),
        ({"redis": {"trial": {"enabled": False}}}, "redis.urlSecret.name names the Secret with the URL of Redis"),
        ({"redis": {"urlSecret": {"name": "mine"}}}, "set redis.trial.enabled=false"),
        ({"gateway": {"settings": {"OPSIN_DRAIN_TIMEOUT": 5}}}, "settings.OPSIN_DRAIN_TIMEOUT: use drainDelay and drainTimeout"),
        ({"settings": {"OPSIN_DRAIN_DELAY": 5}}, "settings.OPSIN_DRAIN_DELAY: use drainDelay and drainTimeout"),
        ({"tracing": {"endpoint": "collector:4318"}}, "at '/tracing/endpoint'"),
        ({"tracing": {"samplerRatio": 10}}, "at '/tracing/samplerRatio': maximum: got 10, want 1"),
        ({"route": {"enabled": True}}, "route.parentRefs names the Gateways"),
        ({"pools": [POOL | {"keda": {"enabled": True}}]}, "pools[cpu].models lists the bundles"),
        ({"pools": [POOL | {"bundles": {"existingClaim": "a", "image": "b"}}]}, "pools[cpu].bundles has existingClaim"),
    ],
)
def test_wrong_values_are_refused_with_their_path(values: Object, message: str) -> None:
    with pytest.raises(errors.HelmError, match=re.escape(message)):
        render(values)


def test_the_readme_lists_the_values() -> None:
    assert chart_values.table() in (CHART / "README.md").read_text()


def test_the_chart_is_of_the_version_of_the_code() -> None:
    from opsin import __version__

    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__
