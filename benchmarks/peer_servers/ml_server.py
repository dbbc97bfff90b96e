"""An MLServer runtime with adaptive batching of up to 16. `mlserver start FOLDER`, where FOLDER holds this file and both settings."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class NullRuntime(MLModel):
    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        count = payload.inputs[0].shape[0]
        scores = ResponseOutput(name="scores", shape=[count, 5], datatype="FP32", data=[0.1] * 5 * count)
        return InferenceResponse(model_name=self.name, outputs=[scores])
