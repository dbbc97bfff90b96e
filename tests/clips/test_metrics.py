"""Work on clips and sound in the metrics: frames and seconds of a worker, and inputs that a gateway refuses."""

from __future__ import annotations

import pytest

from tests.clips.test_route import COUNT, FPS
from tests.clips.test_sound import BELL, FILM, SECONDS, answered, ask
from tests.support.bundles.clips import NETWORKS, view_numbers
from tests.support.live_service import Service
from tests.support.waiting import eventually

TOLERANCE_S = 0.01


def test_frames_and_seconds_of_clips_and_sound_are_counted(watching: Service) -> None:
    def counted(name: str, model: str) -> float:
        return watching.sum_metric(f"opsin_{name}", model=model)

    def all_counted() -> list[float]:
        names = ("video_decoded_frames_total", "video_seconds_total", "sound_seconds_total", "steps_total")
        return [counted(name, model) for model in ("mae-st", "both") for name in names]

    before = all_counted()
    answered(watching.gateway, {"video": FILM}, model="mae-st", views=5, crops=1)
    both = answered(watching.gateway, {"video": FILM, "audio": BELL}, model="both", windows=2)
    heard = both["results"][0]["sound"]["seconds"]
    wanted = [COUNT / FPS, 0.0, 5.0, SECONDS, heard, 2.0]
    last = int(view_numbers(COUNT, FPS, NETWORKS["mae-st"].model().config.frames, 5, offset=True).max())

    def grown() -> list[float]:
        more = [now - then for now, then in zip(all_counted(), before, strict=True)]
        return [*more[1:4], *more[5:]]

    def is_counted() -> bool:
        return grown() == pytest.approx(wanted, abs=TOLERANCE_S)

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
    def refused() -> float:
        return watching.gateway.metric("opsin_media_refused_total", part=part, reason=reason) or 0.0

    before = refused()
    assert ask(watching.gateway, files).status_code in (415, 422)
    assert refused() == before + 1
