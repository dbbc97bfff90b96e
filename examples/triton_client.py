"""Classify with NVIDIA's client (tritonclient[http]): python examples/triton_client.py IMAGE … [--model NAME] [--url URL]"""

import argparse
import os
from pathlib import Path

import numpy as np
import tritonclient.http as triton


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--model", default="flags")
    parser.add_argument("--url", default=os.environ.get("OPSIN_URL", "http://127.0.0.1:8000"))
    arguments = parser.parse_args()
    client = triton.InferenceServerClient(arguments.url.removeprefix("http://"))  # it takes host:port
    encoded = np.array([[path.read_bytes()] for path in arguments.images], object)  # (n, 1): files as they are
    image = triton.InferInput("image", list(encoded.shape), "BYTES").set_data_from_numpy(encoded)
    answer = client.infer(arguments.model, [image], parameters={"merge": "off"})
    for path, label, scores in zip(arguments.images, answer.as_numpy("labels")[:, 0], answer.as_numpy("scores"), strict=True):
        print(f"{path.name}: {label.decode()} {scores.max():.1%}")


if __name__ == "__main__":
    main()
