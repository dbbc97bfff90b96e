"""Fill a hole in several ways and show the progress: python examples/inpainting.py IMAGE MASK [-o FILE] [--url URL]"""

import argparse
from pathlib import Path

from opsin import Client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("mask", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("filled.png"))
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=0.5, help="share of the noise: at 0, the starter's default, samples are equal")
    parser.add_argument("--url")
    arguments = parser.parse_args()
    with Client(arguments.url) as client:
        job = client.inpaint(
            arguments.image, arguments.mask, samples=arguments.samples, temperature=arguments.temperature, preset="fast", wait=False
        )
        for event in job.events():
            if event.name == "progress":
                print(f"step {event.data['done']} of {event.data['total']}", end="\r")
        filled = job.result()
    print(f"{filled.masked_pixels} pixels filled in {filled.steps} steps")
    for number, sample in enumerate(filled.samples):
        path = arguments.output.with_stem(f"{arguments.output.stem}-{number}") if number else arguments.output
        sample.save(path)
        print(f"{path}: seed {sample.seed}")


if __name__ == "__main__":
    main()
