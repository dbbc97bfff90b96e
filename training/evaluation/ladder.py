"""The ladder of a network: its rungs with their speeds, and the one that is served unless a request says otherwise."""

from __future__ import annotations

from collections.abc import Mapping

from models.bundle_schema import Rung
from models.merge_schedule import MergeSchedule
from models.systems.mae_st.model import VideoMAE
from models.systems.vit.model import ViT
from training.evaluation import metrics
from training.evaluation.settings import LadderSettings


def schedules(settings: LadderSettings) -> dict[str, MergeSchedule]:
    return {rung.name: MergeSchedule.parse(rung.schedule) for rung in settings.rungs}


def ladder(
    settings: LadderSettings, network: ViT | VideoMAE, accuracy: Mapping[str, float], chosen_by: Mapping[str, float]
) -> tuple[list[Rung], str | None]:
    """Return the rungs and the name of the default one: the most accurate by `chosen_by` of those that are fast enough."""
    merging = schedules(settings)
    speed = metrics.relative_throughput(network, merging, batch_size=settings.batch_size, rounds=settings.rounds)
    rungs = [
        Rung(name=name, schedule=schedule.to_json(), accuracy=round(accuracy[name], 5), throughput=round(speed[name], 3))
        for name, schedule in merging.items()
    ]
    fast = [name for name in merging if speed[name] >= settings.min_throughput]
    return rungs, max(fast, key=lambda name: (chosen_by[name], speed[name]), default=None)
