"""BentoML with adaptive batching. `bentoml serve bento_ml:Null --port PORT`."""

from __future__ import annotations

from typing import Any

import bentoml

ANSWER = {"predictions": [{"label": f"class {index}", "index": index, "score": 0.1} for index in range(5)]}


@bentoml.service(workers=1, traffic={"timeout": 60})
class NullService:
    @bentoml.api(batchable=True, max_batch_size=16, max_latency_ms=10_000)
    def predict(self, image: list[str]) -> list[dict[str, Any]]:
        return [ANSWER] * len(image)
