"""Reconstruct a shape, then query its scene more finely: python examples/shapes.py IMAGE DEPTH --fov DEGREES [-o FILE.ply] [--url URL]"""

import argparse
from pathlib import Path

from opsin import Client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("depth", type=Path, help="16-bit PNG in millimetres, or .npy in metres")
    parser.add_argument("--fov", type=float, required=True, help="horizontal field of view in degrees")
    parser.add_argument("--finer", type=float, default=0.08, help="spacing of the second query")
    parser.add_argument("-o", "--output", type=Path, default=Path("shape.ply"))
    parser.add_argument("--url")
    arguments = parser.parse_args()
    with Client(arguments.url) as client:
        job = client.reconstruct(arguments.image, arguments.depth, fov=arguments.fov, format="ply", wait=False)
        for event in job.events():
            if event.name == "progress":
                print(f"level {event.data['done']} of {event.data['total']} so far")
        shape = job.result()
        print(f"{shape.count} points from {shape.queries} queries, {shape.scale:.3f} m per unit")
        finer = client.scene(shape.scene, spacing=arguments.finer, format="ply")
    finer.save(arguments.output)
    low, high = finer.points.min(axis=0), finer.points.max(axis=0)
    print(f"{arguments.output}: {finer.count} points, {' × '.join(f'{side:.2f}' for side in high - low)} m")


if __name__ == "__main__":
    main()
