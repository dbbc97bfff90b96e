"""Work on clips and sound in the metrics: frames and seconds of a worker, and inputs that a gateway refuses."""

from __future__ import annotations

import pytest

from tests.clips.test_route import COUNT, FPS
from tests.clips.test_sound import BELL, FILM, SECONDS, ask, classify
from tests.support.bundles.clips import NETWORKS, view_numbers
from tests.support.live_service import Service
from tests.support.waiting import eventually

TOLERANCE_S = 0.01


def test_frames_and_seconds_of_clips_and_sound_are_counted(watching: Service) -> None:
    def sum_of(name: str, model: str) -> float:
        return watching.sum_metric(f"opsin_{name}", model=model)

    def all_counted() -> list[float]:
        names = ("video_decoded_frames_total", "video_seconds_total", "sound_seconds_total", "steps_total")
        return [sum_of(name, model) for model in ("mae-st", "both") for name in names]

    before = all_counted()
    classify(watching.gateway, {"video": FILM}, model="mae-st", views=5, crops=1)
    both = classify(watching.gateway, {"video": FILM, "audio": BELL}, model="both", windows=2)
    sound_s = both["results"][0]["sound"]["seconds"]
    expected = [COUNT / FPS, 0.0, 5.0, SECONDS, sound_s, 2.0]
    last = int(view_numbers(COUNT, FPS, NETWORKS["mae-st"].model().config.frames, 5, offset=True).max())

    def grown() -> list[float]:
        growth = [now - then for now, then in zip(all_counted(), before, strict=True)]
        return [*growth[1:4], *growth[5:]]

    def is_counted() -> bool:
        return grown() == pytest.approx(expected, abs=TOLERANCE_S)

    eventually(is_counted, "both are counted, after their answers")
    decoded = all_counted()[0] - before[0]
    assert last < decoded <= COUNT, "those up to the last one that a view sees, and what was read ahead"
    assert watching.sum_metric("opsin_video_stage_seconds_total", model="mae-st", stage="decode") > 0


@pytest.mark.parametrize(
    ("files", "part", "reason"),
    [
        ({"video": b"no video at all" * 99}, "video", "format"),
        ({"audio": BELL[:60]}, "audio", "unusable"),
        ({"video": FILM[:900]}, "video", "unusable"),
    ],
)
def test_refused_inputs_are_counted_by_part_and_reason(watching: Service, files: dict[str, bytes], part: str, reason: str) -> None:
    def refusal_count() -> float:
        return watching.gateway.metric("opsin_media_refused_total", part=part, reason=reason) or 0.0

    before = refusal_count()
    assert ask(watching.gateway, files).status_code in (415, 422)
    assert refusal_count() == before + 1
