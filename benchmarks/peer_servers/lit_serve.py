"""LitServe with batches of up to 16 and no wait for more. `python lit_serve.py PORT`."""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve

ANSWER = {"predictions": [{"label": f"class {index}", "index": index, "score": 0.1} for index in range(5)]}


class NullAPI(litserve.LitAPI):
    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request: dict[str, str]) -> bytes:
        return base64.b64decode(request["image"])

    def predict(self, x: list[bytes]) -> list[dict[str, Any]]:
        return [ANSWER] * len(x)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    server = litserve.LitServer(NullAPI(max_batch_size=16, batch_timeout=0.001), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
