"""NVIDIA's load generator, as anyone would run it against a Triton server."""

from __future__ import annotations

import base64
import csv
import json
import struct
import subprocess
import sys
from pathlib import Path

from tests.open_inference.conftest import PICTURES
from tests.support.live_service import Service

PERF_ANALYZER = Path(sys.executable).with_name("perf_analyzer")


BATCH = 2


def test_perf_analyzer_agrees_with_statistics_of_the_service(service: Service, tmp_path: Path) -> None:
    tensors = [base64.b64encode(struct.pack("<I", len(picture)) + picture).decode() for picture in PICTURES]
    Path(tmp_path, "pictures.json").write_text(json.dumps({"data": [{"image": {"b64": tensor}} for tensor in tensors]}))
    command = [str(PERF_ANALYZER), *f"-m tiny -u {service.address} -i http -b {BATCH} --shape image:1 --input-data pictures.json".split()]
    command += ["--concurrency-range", "1:2", "--measurement-mode", "count_windows", "--measurement-request-count", "20"]
    command += ["--stability-percentage", "99999", "--max-trials", "10", "-f", "report.csv"]
    before = _inferences(service)

    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    with Path(tmp_path, "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["Concurrency"] for row in rows) == ["1", "2"]
    assert all(float(row["Inferences/Second"]) > 0 and float(row["Server Compute Infer"]) > 0 for row in rows)
    assert _inferences(service) - before >= 2 * 20 * BATCH


def _inferences(service: Service) -> int:
    (statistics,) = service.gateway.http.get("/v2/models/tiny/stats").json()["model_stats"]
    return int(statistics["inference_count"])
