"""Search a folder of images by words: python examples/search.py FOLDER WORD … [--model NAME] [--url URL]

It searches the words in the model's labels, so "dog" also finds ImageNet's "hot dog". If an image-text model is served, `opsin embed` and
`opsin search` find images by any sentence.
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
    arguments = parser.parse_args()
    with Client(arguments.url) as client:
        labels = client.model(arguments.model).details["spec"]["labels"]
        matching = {index for index, label in enumerate(labels) if all(word.lower() in label.lower() for word in arguments.words)}
        if not matching:
            sys.exit(
                f"{arguments.model}: no label with {' and '.join(arguments.words)} among {len(labels)}, such as {', '.join(labels[:5])}"
            )
        outcomes = client.map("classify", arguments.folder, pattern=arguments.pattern, model=arguments.model, top_k=len(labels))
    scores = {one.source: score(one.result, matching) for one in outcomes if one.error is None}
    names = ", ".join(labels[index] for index in sorted(matching))
    print(f"{len(scores)} images, {len(outcomes.failures)} other files; matching labels: {names}")
    for path in sorted(scores, key=scores.__getitem__, reverse=True)[: arguments.most]:
        print(f"{scores[path]:6.1%}  {path}")


def score(classification, matching):
    """Return the probability of any of the labels, given by their indices."""
    return sum(one.score for one in classification.predictions if one.index in matching)


if __name__ == "__main__":
    main()
