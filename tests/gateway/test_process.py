"""The gateway process: light, quiet, and clear about what goes wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from server.settings import Settings
from server.supervisor.private_valkey import PrivateValkey
from tests.support import forked_program
from tests.support.fake_worker import Worker, answer, make_spec, picture
from tests.support.gateway_process import START_GATEWAY, executed_gateway, gateway_process
from tests.support.gateway_process import environment as gateway_environment
from tests.support.waiting import WAIT_S

IMPORT_GATEWAY = """
import sys
from server.gateway.main import run_gateway
print([name for name in ("torch", "kernels", "torchvision", "models.loading") if name in sys.modules])
"""


def test_the_gateway_imports_no_torch() -> None:
    run = subprocess.run([sys.executable, "-c", IMPORT_GATEWAY], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_gateway_at_work_stays_below_120_mb(valkey: PrivateValkey) -> None:
    with executed_gateway(valkey.url) as gateway, Worker(valkey.url, [make_spec()]):
        for step in range(10):
            assert gateway.classify(picture(step, (500, 375), "JPEG")).status_code == 200
        status = Path(f"/proc/{gateway.process.pid}/status").read_text()
        assert int(status.partition("VmRSS:")[2].split()[0]) < 120 * 1024  # KiB


def test_requests_leave_no_line_in_the_log_but_our_faults_do(valkey: PrivateValkey) -> None:
    def without_tokens(job: object) -> object:
        reply = answer(job)
        return reply if reply.arrays["logits"].to_numpy()[0] < -1 else type(reply)(id=reply.id, worker="test", timing=reply.timing)

    with gateway_process(valkey.url) as gateway, Worker(valkey.url, [make_spec()], without_tokens):
        assert gateway.classify(picture(5)).status_code == 200
        assert gateway.classify(b"no image").status_code == 415
        broken = gateway.classify(picture(0), headers={"X-Request-ID": "look-for-me"})
        assert (broken.status_code, broken.json()["type"], broken.json()["request_id"]) == (500, "urn:opsin:internal", "look-for-me")
        gateway.terminate()
        _, log = gateway.process.communicate(timeout=WAIT_S)
        lines = [json.loads(line) for line in log.splitlines()]
        assert [line["event"] for line in lines] == ["listening", "request failed", "gateway draining"]
        assert lines[1]["request_id"] == "look-for-me" and "KeyError" in lines[1]["exception"] and lines[1]["level"] == "error"


@pytest.mark.parametrize(
    ("host", "strangers"), [("127.0.0.7", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True)]
)
def test_service_open_to_strangers_requires_keys_or_warns(host: str, strangers: bool) -> None:
    assert Settings(host=host).admits_strangers == strangers
    assert not Settings(host=host, api_keys_file="keys").admits_strangers


def test_what_answers_strangers_says_so_in_one_line(valkey: PrivateValkey) -> None:
    command = [sys.executable, "-c", START_GATEWAY.format(fd=None)]
    environment = gateway_environment(redis_url=valkey.url, port=0, host="0.0.0.0")
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first, second = (json.loads(process.stderr.readline()) for _ in range(2))
        process.terminate()
    assert (first["level"], first["host"], second["event"]) == ("warning", "0.0.0.0", "listening")
    assert "OPSIN_API_KEYS_FILE" in first["event"]


def run_copy(variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a gateway that ends by itself."""
    program = START_GATEWAY.format(fd=None)
    return forked_program.run("tests.support.child_programs", "code", program, environment=variables, seconds=WAIT_S)


def test_a_taken_port_is_reported_in_one_line(valkey: PrivateValkey) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = run_copy(gateway_environment(redis_url=valkey.url, port=port))
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert json.loads(line)["port"] == port and "in use" in json.loads(line)["reason"]


def test_without_a_queue_it_says_which_setting_is_missing() -> None:
    variables = {name: value for name, value in os.environ.items() if name != "OPSIN_REDIS_URL"} | {"OPSIN_PORT": "0"}
    run = run_copy(variables)
    assert run.returncode == 2 and "OPSIN_REDIS_URL" in json.loads(run.stderr)["reason"]
