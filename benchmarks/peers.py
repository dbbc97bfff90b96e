"""Other servers on the same machine: `python -m benchmarks.peers`. Requests/s without a model, all servers in turn in one run.

Each peer runs in an environment of its own (`--environments`, made there with pip the first time). All get the same JPEGs of 1 KB and
answer five labels. Opsin alone decodes them and passes them through a queue to a worker process.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from benchmarks import machine, reference, service
from benchmarks.serving import json_of

SERVERS = Path(__file__).parent / "peer_servers"
START_SECONDS = 90.0
NULL = "null-0"


@dataclass(frozen=True)
class Peer:
    """A server: what pip installs, the command after its environment's `bin/`, and the request that it understands."""

    name: str
    requirements: tuple[str, ...]
    command: tuple[str, ...]
    path: str
    body: str
    """JSON around `{image}`, the base64 of an image; empty: the image itself."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Variables of its environment."""


PEERS = (
    Peer("hand-written batcher", ("fastapi", "uvicorn[standard]"), ("python", "hand_written.py", "{port}"), "/predict", ""),
    Peer(
        "MLServer",
        ("mlserver",),
        ("mlserver", "start", "."),
        "/v2/models/null/infer",
        '{{"inputs": [{{"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": ["{image}"]}}]}}',
    ),
    Peer("LitServe", ("litserve",), ("python", "lit_serve.py", "{port}"), "/predict", '{{"image": "{image}"}}'),
    Peer("BentoML", ("bentoml",), ("bentoml", "serve", "bento_ml:Null", "--port", "{port}"), "/predict", '{{"image": ["{image}"]}}'),
)


def environment(peer: Peer, root: Path) -> Path:
    """Return the `bin` of the peer's environment, which is installed the first time."""
    folder = root / peer.requirements[0]
    if not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", *peer.requirements], check=True)
        (folder / "installed").touch()
    return folder / "bin"


@contextlib.contextmanager
def running(peer: Peer, binaries: Path) -> Iterator[str]:
    """Start the peer, yield its URL once it answers, and stop it."""
    ports = _free_ports(3)
    port = ports[0]
    with tempfile.TemporaryDirectory(prefix="opsin-peer-") as name:
        folder = Path(name)
        for file in SERVERS.glob("*.py"):
            shutil.copy(file, folder)
        _write_mlserver_settings(folder, ports)
        command = [str(binaries / peer.command[0]), *(part.format(port=port) for part in peer.command[1:])]
        path = f"{binaries}:{os.environ['PATH']}"
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PATH": path} | dict(peer.variables),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _await_answer(f"http://127.0.0.1:{port}{peer.path}", process, peer)
            yield f"http://127.0.0.1:{port}{peer.path}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as sockets:
        return [sockets.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


def _write_mlserver_settings(folder: Path, ports: list[int]) -> None:
    """Write the settings of MLServer, which needs three ports: for HTTP, gRPC and metrics."""
    named = dict(zip(("http_port", "grpc_port", "metrics_port"), ports, strict=True))
    (folder / "settings.json").write_text(json.dumps({"host": "127.0.0.1", **named, "parallel_workers": 0, "debug": False}))
    model = {"name": "null", "implementation": "ml_server.Null", "max_batch_size": 16, "max_batch_time": 0.001}
    (folder / "model-settings.json").write_text(json.dumps(model))


def _await_answer(url: str, process: subprocess.Popen[bytes], peer: Peer) -> None:
    """Wait until the server answers. It is up if it sends any status, even an error."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(url, data=b"{}", timeout=5)
        except urllib.error.HTTPError as error:
            if error.code not in (404, 503):
                return
        except OSError:
            pass
        else:
            return
        time.sleep(0.2)
    raise RuntimeError(f"{peer.name} did not start")


def write_bodies(peer: Peer, images: Path, folder: Path) -> str:
    """Write the requests of a peer, one file each, and return their Content-Type."""
    folder.mkdir(parents=True)
    for image in sorted(images.glob("*.jpg")):
        content = image.read_bytes()
        if peer.body:
            content = peer.body.format(image=base64.b64encode(content).decode()).encode()
        (folder / image.name).write_bytes(content)
    return "application/json" if peer.body else "image/jpeg"


def load(url: str, bodies: Path, content_type: str, clients: int, seconds: float) -> float:
    """Requests/s. Raises RuntimeError if one failed."""
    arguments = [
        "--url",
        url,
        "--pictures",
        bodies,
        "--content-type",
        content_type,
        "--clients",
        clients,
        "--warm",
        2,
        "--seconds",
        seconds,
    ]
    report = json_of("benchmarks.load", arguments)
    if report["failures"] or not report["answered"]:
        raise RuntimeError(f"{url}: {report['answered']} answers, failures: {report['failures']}")
    return float(report["per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--environments", type=Path, default=Path(".cache/peers"), help="where the peers' environments lie or are made")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args()
    console = machine.show()
    root = options.environments.resolve()
    binaries = {peer.name: environment(peer, root) for peer in PEERS}
    rates: dict[str, list[float]] = {"Opsin": [], **{peer.name: [] for peer in PEERS}}
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as name:
        folder = Path(name)
        reference.make_null_bundle(folder / "null", NULL, 0.0)
        reference.write_small_pictures(folder / "small")
        types = {peer.name: write_bodies(peer, folder / "small", folder / peer.requirements[0]) for peer in PEERS}
        for number in range(options.rounds):
            with service.running(folder / "null") as url:
                target = f"{url}/v1/classify?model={NULL}"
                rates["Opsin"].append(load(target, folder / "small", "image/jpeg", options.clients, options.seconds))
            for peer in PEERS:
                with running(peer, binaries[peer.name]) as url:
                    rate = load(url, folder / peer.requirements[0], types[peer.name], options.clients, options.seconds)
                rates[peer.name].append(rate)
            console.print(f"round {number + 1}: " + ", ".join(f"{server} {series[-1]:.0f}/s" for server, series in rates.items()))
    table = Table("server", "requests/s, median", "min", "max", title=f"No model, images of 1 KB, {options.clients} clients")
    for server, series in sorted(rates.items(), key=lambda item: -statistics.median(item[1])):
        table.add_row(server, f"{statistics.median(series):.0f}", f"{min(series):.0f}", f"{max(series):.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
