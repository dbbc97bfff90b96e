"""Score a folder with Ray Data through the client: python examples/ray_batch.py FOLDER [-o FOLDER] [--url URL]

Needs pip install 'ray[data]'. Ray reads and distributes the files, on one machine or a cluster; the service batches whatever its workers
send. A rejected image does not affect the others: its row has the reason instead of a label.
"""

import argparse

import numpy as np
import ray

from opsin import Client


class FolderClassifier:
    """The state of one of Ray's workers: a client, whose connections stay open."""

    def __init__(self, url):
        self.client = Client(url)

    def __call__(self, batch):
        """Classify a batch: columns `path`, `bytes` → `path`, `label`, `score`, `error`."""
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
    parser.add_argument("--clients", type=int, default=2, help="number of Ray workers (default: %(default)s)")
    parser.add_argument("--url")
    arguments = parser.parse_args()
    files = ray.data.read_binary_files(arguments.folder, include_paths=True)
    scored = files.map_batches(
        FolderClassifier,
        batch_size=64,
        compute=ray.data.ActorPoolStrategy(size=arguments.clients),
        num_cpus=0,  # they wait for the service
        fn_constructor_kwargs={"url": arguments.url},
    ).materialize()
    if arguments.output:
        scored.write_parquet(arguments.output)
    for row in sorted(scored.take_all(), key=lambda row: row["path"]):
        print(row["path"], row["error"] or f"{row['label']} {row['score']:.1%}")


if __name__ == "__main__":
    main()
