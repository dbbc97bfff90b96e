"""Classify a folder at every rung of the bundle's ladder: python examples/merging.py FOLDER [--url URL]"""

import argparse
from statistics import median

from opsin import Client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--url")
    arguments = parser.parse_args()
    with Client(arguments.url) as client:
        model = next(model for model in client.models() if model.task == "classify" and model.details.get("ladder"))
        rungs = [rung["name"] for rung in model.details["ladder"]]
        exact = labels_of(client, model, arguments.folder, "off")
        for rung in rungs:
            merged = labels_of(client, model, arguments.folder, rung)
            same = sum(merged[name].label == exact[name].label for name in exact)
            merging = next(iter(merged.values())).merging
            print(
                f"{rung:>12}: {merging.tokens_in} → {merging.tokens_out} tokens, {same} of {len(exact)} labels as without merging, "
                f"median {median(one.timing.inference_ms for one in merged.values()):.1f} ms in the network"
            )


def labels_of(client, model, folder, merge):
    """Return file name → its classification. Files that are not images are left out."""
    outcomes = client.map("classify", folder, pattern="*.png", model=model.id, merge=merge, concurrency=4)
    return {one.source.name: one.result for one in outcomes if one.error is None}


if __name__ == "__main__":
    main()
