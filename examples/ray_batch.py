"""Score a folder with Ray Data through the client: python examples/ray_batch.py FOLDER [-o FOLDER] [--url URL]

Needs pip install 'ray[data]'. Ray reads and spreads the files, on one machine or a cluster; the service makes batches of whatever
its workers send. An image that is refused costs the others nothing: its row has the reason instead of a label.
"""

import argparse

import numpy as np
import ray

from opsin import Client


class Classify:
    """Runs in Ray's workers: each keeps one client, whose connections stay open."""

    def __init__(self, url):
        self.client = Client(url)

    def __call__(self, batch):
        """Columns `path`, `bytes` → `path`, `label`, `score`, `error`."""
        outcomes = list(self.client.map("classify", list(batch["bytes"]), concurrency=8, progress=False, top_k=1))
        return {
            "path": batch["path"],
            "label": np.array(["" if one.error else one.result.label for one in outcomes]),
            "score": np.array([np.nan if one.error else one.result.score for one in outcomes]),
            "error": np.array([str(one.error or "") for one in outcomes]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("-o", "--output", help="also write Parquet files into this folder")
    parser.add_argument("--clients", type=int, default=2, help="Ray workers that ask at a time (default: %(default)s)")
    parser.add_argument("--url")
    asked = parser.parse_args()
    files = ray.data.read_binary_files(asked.folder, include_paths=True)
    scored = files.map_batches(
        Classify,
        batch_size=64,
        compute=ray.data.ActorPoolStrategy(size=asked.clients),
        num_cpus=0,  # they wait for the service
        fn_constructor_kwargs={"url": asked.url},
    ).materialize()
    if asked.output:
        scored.write_parquet(asked.output)
    for row in sorted(scored.take_all(), key=lambda row: row["path"]):
        print(row["path"], row["error"] or f"{row['label']} {row['score']:.1%}")


if __name__ == "__main__":
    main()
