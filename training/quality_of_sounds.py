"""What is measured of a network that names instruments, as a bundle's `quality`, ladder and provenance say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from models.spec import Rung
from training.data.notes import Notes
from training.data.soundfonts import Font
from training.judging import sounds
from training.judging.restoring_settings import Split
from training.judging.sounds_settings import Recorded, SoundsQuality
from training.phases import Workshop
from training.quality import Measurement, calibrated, judged_file, looked_at_once, rounded, weights_and_settings, write_report
from training.recipe import Recipe


def of_sounds(recipe: Recipe, settings: SoundsQuality, network: nn.Module, shop: Workshop) -> Measurement:
    """Calibrates the network in place, then looks at the test sounds, or at what was written when they were looked at. Raises
    TrainingError."""
    report = named(recipe, settings, network, Split.TEST, shop)
    assert isinstance(recipe.data, Notes)
    sources: dict[str, Sequence[Font | Recorded]] = {
        "trained on": recipe.data.fonts,
        "for choices": settings.validation,
        "test": [*settings.test, settings.recorded],
    }
    packages = {part: [source.package.model_dump() | {"license": source.license} for source in found] for part, found in sources.items()}
    rungs = [
        Rung(name=row["rung"], schedule=row["r"], accuracy=row["accuracy"]["value"], throughput=row["throughput"])
        for row in report["ladder"]
    ]
    return Measurement({"sounds": report}, rungs, data={"kind": recipe.data.kind, "packages": packages})


def named(recipe: Recipe, settings: SoundsQuality, network: nn.Module, split: Split, shop: Workshop) -> dict[str, Any]:
    """How well instruments are named by the network, calibrated in place: on the test split once. Raises TrainingError."""
    asked = sounds.contest(settings, recipe.data, recipe.sound, recipe.seed, shop.cache)
    hearing = sounds.suitable(rounded(network))
    temperature = sounds.temperature(asked, hearing)
    rounded(calibrated(hearing, temperature))
    judged, file = weights_and_settings(settings, hearing), judged_file(shop, "sounds", split)

    def look() -> dict[str, Any]:
        return {"temperature": round(temperature, 4), **sounds.judge(asked, hearing, split)}

    return looked_at_once(file, judged, look) if split is Split.TEST else write_report(file, {"judged": judged, **look()})
