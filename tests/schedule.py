"""What a process of pytest-xdist is given, and in which order.

Packages whose files share a service stay together, or it would be started for each file. What takes longest begins first: a long file
at the end would leave the other CPUs idle.
"""

from __future__ import annotations

from collections import Counter

import pytest
from xdist.scheduler import LoadFileScheduling

TOGETHER = (
    "tests/actions",
    "tests/docs",
    "tests/e2e",
    "tests/gateway",
    "tests/inpaint",
    "tests/open_inference",
    "tests/reconstruct",
    "tests/words",
)
SECONDS: dict[str, float] = {
    "tests/gateway": 180,
    "tests/docs": 120,
    "tests/actions": 110,
    "tests/models/test_onnx_export.py": 60,
    "tests/e2e": 50,
    "tests/words": 50,
    "tests/opsin/test_embedding_commands.py": 45,
    "tests/supervisor/test_serve.py": 50,
    "tests/worker/test_long_jobs.py": 40,
    "tests/opsin/test_ladder.py": 35,
    "tests/chaos/test_kills.py": 35,
    "tests/examples/test_examples.py": 35,
    "tests/models/published/test_families.py": 35,
    "tests/training/objectives/test_every_objective.py": 35,
    "tests/training/test_resume.py": 35,
    "tests/chaos/test_poison.py": 30,
    "tests/kernels/test_triton.py": 30,
    "tests/models/mcc/test_mcc_steps.py": 30,
    "tests/models/test_compiled.py": 30,
    "tests/open_inference": 30,
    "tests/queue/test_redis_away.py": 30,
    "tests/reconstruct": 30,
    "tests/training/test_published.py": 30,
    "tests/inpaint": 25,
    "tests/models/pairs/test_tokenising.py": 25,
    "tests/models/test_sizes.py": 25,
    "tests/opsin/test_export.py": 25,
    "tests/opsin/test_import.py": 25,
    "tests/supervisor/test_losses.py": 25,
    "tests/supervisor/test_redis_refuses.py": 25,
    "tests/supervisor/test_template.py": 25,
    "tests/video/test_video.py": 25,
    "tests/tasks/test_inpaint_memory.py": 20,
    "tests/process/test_secrecy.py": 15,
    "tests/worker/test_worker.py": 25,
    "tests/golden/test_goldens.py": 20,
    "tests/models/mvit/test_slowfast.py": 20,
    "tests/models/pairs/test_flip.py": 20,
    "tests/opsin/test_models.py": 20,
    "tests/supervisor/test_restarts.py": 18,
    "tests/chaos/test_jobs.py": 15,
    "tests/models/diffmae/test_diffmae_published.py": 15,
    "tests/opsin/test_cli.py": 15,
    "tests/queue/test_holdings.py": 15,
    "tests/queue/test_records.py": 15,
    "tests/training/test_processes.py": 15,
    "tests/queue/test_refusals.py": 12,
    "tests/training/test_loop.py": 12,
    "tests/training/test_make.py": 12,
    "tests/training/test_own_folder.py": 12,
    "tests/models/mcc/test_guessing.py": 15,
    "tests/models/mcc/test_mcc_flood.py": 10,
    "tests/models/pairs/test_maws.py": 10,
    "tests/models/published/test_published.py": 10,
    "tests/queue/test_workers.py": 10,
    "tests/training/judging/test_judging.py": 10,
}
"""Of the files and packages that take long for their number of tests: roughly, since only their order matters."""
USUAL_SECONDS = 0.05
"""Of a test."""


class Together(LoadFileScheduling):
    """Hands out files, and the packages that stay together, one after the other as they were collected."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)


def unit(test: str) -> str:
    """The file of the test, or its package where that stays together."""
    file = test.partition("::")[0]
    return next((package for package in TOGETHER if file.startswith(f"{package}/")), file)


def longest_first(items: list[pytest.Item]) -> None:
    """Sort tests by how long their unit takes."""
    tests = Counter(unit(item.nodeid) for item in items)
    seconds = {name: SECONDS.get(name, USUAL_SECONDS * count) for name, count in tests.items()}
    items.sort(key=lambda item: (-seconds[unit(item.nodeid)], unit(item.nodeid)))
