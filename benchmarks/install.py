"""Time and bytes from pip to the first answer: `python -m benchmarks.install`.

Builds the wheels, then types in an empty environment and an empty folder what docs/install.md says: `pip install` of both wheels
by their files, with the extra `server`, and `opsin serve`. pip finds all other wheels where it is set up to look; its cache is empty.
Prints the seconds of each, the bytes that pip fetched, and those on disk. The first answer is a starter's, the label of a flag.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2

from benchmarks import machine

CHECKOUT = Path(__file__).parent.parent
PICTURE = CHECKOUT / "docs/pictures/flags/nepal.png"
START_SECONDS = 300
"""Timeout in seconds of the first answer."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.install", description="Seconds and bytes from pip to the first answer.")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/install.json"))
    options = parser.parse_args()
    machine.show()
    with TemporaryDirectory() as made:
        folder = Path(made)
        found = measure(folder)
    print(f"pip install                   {found['install_seconds']:.0f} s, {found['packages']} packages")
    print(f"fetched                       {found['fetched_bytes'] / 1e6:.0f} MB, of which torch {found['torch_bytes'] / 1e6:.0f} MB")
    print(f"of which Opsin                {found['own_bytes'] / 1e6:.1f} MB and its starters {found['starters_bytes'] / 1e6:.1f} MB")
    print(f"on disk                       {found['disk_bytes'] / 1e6:.0f} MB")
    print(f"opsin serve to first answer   {found['serve_seconds']:.1f} s, {found['label']}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    machine.write_result("python -m benchmarks.install", found, options.json)
    return 0


def measure(folder: Path) -> dict[str, float | str]:
    dist, fetched, empty = folder / "dist", folder / "fetched", folder / "empty"
    empty.mkdir()
    for project in (CHECKOUT, CHECKOUT / "bundles"):
        subprocess.run([sys.executable, "-m", "build", "--outdir", dist, project], check=True, capture_output=True)
    (wheel,) = dist.glob("opsin-*.whl")
    wheels = [f"{wheel}[server]", *dist.glob("opsin_starters-*.whl")]
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / "bin"
    before = _bytes(folder / "venv")
    pip = [programs / "python", "-m", "pip", "--quiet", "--cache-dir", folder / "cache"]
    started_at = time.monotonic()
    subprocess.run([*pip, "install", *wheels], cwd=empty, check=True)
    installed = time.monotonic() - started_at
    disk = _bytes(folder / "venv") - before
    subprocess.run([*pip, "download", "--dest", fetched, *wheels], cwd=empty, check=True)
    sizes = {file.name: file.stat().st_size for file in fetched.iterdir()}
    started_at = time.monotonic()
    label = first_answer(programs, empty, folder / "kept")
    return {
        "install_seconds": installed,
        "packages": len(sizes),
        "fetched_bytes": sum(sizes.values()),
        "torch_bytes": sum(size for name, size in sizes.items() if name.startswith(("torch-", "nvidia", "triton-"))),
        "own_bytes": sum(size for name, size in sizes.items() if name.startswith("opsin-")),
        "starters_bytes": sum(size for name, size in sizes.items() if name.startswith("opsin_starters-")),
        "disk_bytes": disk,
        "serve_seconds": time.monotonic() - started_at,
        "label": label,
    }


def first_answer(programs: Path, folder: Path, cache: Path) -> str:
    """Run `opsin serve` in a folder until it has answered, and return the label. Asks again and again, as a page that waits would."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPSIN_")} | {"OPSIN_CACHE": str(cache)}
    command = [programs / "opsin", "serve", "--port", str(port)]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as service:
        try:
            until = time.monotonic() + START_SECONDS
            while service.poll() is None and time.monotonic() < until:
                try:
                    url = f"http://127.0.0.1:{port}/v1/classify?model=flags"
                    answer = httpx2.post(url, content=PICTURE.read_bytes(), timeout=START_SECONDS)
                    if answer.is_success:
                        return str(answer.json()["results"][0]["predictions"][0]["label"])
                except httpx2.TransportError:
                    pass
                time.sleep(0.05)
            raise RuntimeError("the service did not answer")
        finally:
            service.terminate()


def _bytes(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())


if __name__ == "__main__":
    sys.exit(main())
