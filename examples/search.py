"""Search a folder of images by words: python examples/search.py FOLDER WORD … [--model NAME] [--url URL]

The words are looked for in the labels that the model knows: "dog" also finds what ImageNet calls a "hot dog". Where a pair of images and
texts is served, `opsin embed` and `opsin search` find any sentence.
"""

import argparse
import sys

from opsin import Client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("words", nargs="+")
    parser.add_argument("--model", default="photos", help="a classifier whose labels have names (default: %(default)s)")
    parser.add_argument("--pattern", default="**/*.*", help="which files of the folder (default: %(default)s)")
    parser.add_argument("--most", type=int, default=10, help="how many to print (default: %(default)s)")
    parser.add_argument("--url")
    asked = parser.parse_args()
    with Client(asked.url) as client:
        labels = client.model(asked.model).details["spec"]["labels"]
        meant = {index for index, label in enumerate(labels) if all(word.lower() in label.lower() for word in asked.words)}
        if not meant:
            sys.exit(f"{asked.model}: no label with {' and '.join(asked.words)} among {len(labels)}, such as {', '.join(labels[:5])}")
        outcomes = client.map("classify", asked.folder, pattern=asked.pattern, model=asked.model, top_k=len(labels))
    scores = {one.source: score(one.result, meant) for one in outcomes if one.error is None}
    named = ", ".join(labels[index] for index in sorted(meant))
    print(f"{len(scores)} images, {len(outcomes.failures)} other files; labels meant: {named}")
    for path in sorted(scores, key=scores.__getitem__, reverse=True)[: asked.most]:
        print(f"{scores[path]:6.1%}  {path}")


def score(found, meant):
    """Probability of any of the labels, by their indices."""
    return sum(one.score for one in found.predictions if one.index in meant)


if __name__ == "__main__":
    main()
