"""Recognise who does what, and when, and save the annotated clip: python examples/people.py CLIP [-o FILE.mp4] [--url URL]"""

import argparse
from pathlib import Path

from opsin import Client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--seconds", type=float, help="length of the part to analyse")
    parser.add_argument("-o", "--output", type=Path, default=Path("annotated.mp4"))
    parser.add_argument("--url")
    arguments = parser.parse_args()
    with Client(arguments.url) as client:
        job = client.actions(arguments.clip, end_s=arguments.seconds, top_k=1, wait=False)
        result = job.result()
        for person in result.people:
            print(f"person {person.person}, {len(person.boxes)} sightings from {person.first_s:.1f} to {person.last_s:.1f} s")
            for second in person.actions:
                for best in second.labels:
                    print(f"  {second.start_s:5.1f} s  {best.label} {best.score:.2f}")
        arguments.output.write_bytes(job.file("video/mp4"))  # from the same job: nothing is computed again
    print(arguments.output)


if __name__ == "__main__":
    main()
