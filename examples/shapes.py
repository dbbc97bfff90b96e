"""Reconstruct a shape, ask the kept scene again, finer: python examples/shapes.py IMAGE DEPTH --fov DEGREES [-o FILE.ply] [--url URL]"""

import argparse
from pathlib import Path

from opsin import Client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("depth", type=Path, help="16-bit PNG in millimetres, or .npy in metres")
    parser.add_argument("--fov", type=float, required=True, help="horizontal field of view in degrees")
    parser.add_argument("--finer", type=float, default=0.08, help="spacing of the second question")
    parser.add_argument("-o", "--output", type=Path, default=Path("shape.ply"))
    parser.add_argument("--url")
    asked = parser.parse_args()
    with Client(asked.url) as client:
        job = client.reconstruct(asked.image, asked.depth, fov=asked.fov, format="ply", wait=False)
        for event in job.events():
            if event.name == "progress":
                print(f"level {event.data['done']} of {event.data['total']} so far")
        shape = job.result()
        print(f"{shape.count} points of {shape.queries} places asked, {shape.scale:.3f} m a unit")
        finer = client.scene(shape.scene, spacing=asked.finer, format="ply")
    finer.save(asked.output)
    low, high = finer.points.min(axis=0), finer.points.max(axis=0)
    print(f"{asked.output}: {finer.count} points, {' × '.join(f'{side:.2f}' for side in high - low)} m")


if __name__ == "__main__":
    main()
