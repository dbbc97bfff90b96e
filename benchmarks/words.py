"""Measures what recalled labels and buckets of texts gain, and compares the service with a pair of towers: `python -m benchmarks.words`.

The pair has a published size and random weights; it is written into `--cache` the first time. Figures are ratios within one run, of
measurements that take turns:

- **labels**: seconds of a request with 100 new labels ÷ of the same request again, as a share of what arithmetic
  promises, 1 + operations of the texts ÷ of the image; also with seven templates. One slot, one thread.
- **lengths**: texts/s of a worker, ÷ of its network in a loop that pads every text to the longest that it reads, as a share of the ratio of
  operations. One slot, one thread.
- **cached**: images/s of 16 clients that ask for 20 labels each, all of them recalled, ÷ of 16 clients that ask for vectors of the images.
- **images**: images/s of `/v1/embed` ÷ of one process that decodes and infers in a loop on the same CPUs, in its best layout.
- **infinity**: images/s and texts/s ÷ those of infinity, which serves the same network with equal weights in an environment of its own
  (`--environments`, made there with pip the first time).
- **search**: CPU seconds of the product and the sorting in `opsin search` over 100,000 vectors.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import infinity, machine, peers, service, text_pairs
from benchmarks.bounds import LoopLayout
from benchmarks.load import LoadReport
from benchmarks.serving import json_of
from benchmarks.text_pairs import BenchmarkPair
from models.loading import load
from server.worker.device_layout import threads_allowed

RESULTS = Path(__file__).parent / "results"
LABELS = 100
LABEL_WORDS = 4
"""About eight tokens of XLM-R's kind."""
TEMPLATES = (
    *("a photo of a {}", "a good photo of {}", "the {} outside", "a drawing of the {}"),
    *("the {} from behind", "a small {}", "this is a {}"),
)
REPEATS = 3
"""Requests whose labels are recalled, for each that computes them."""
TEXTS = 128
"""Number of texts in a request."""
TEXT_CLIENTS = 4
LOOP_TEXTS = 32
LOOP_BATCHES = (4, 16)
CACHED_LABELS = 20
CLIENTS = (8, 16)
LOOP_IMAGES = (1, 4, 8)
"""Batches of the loop that decodes and infers."""
FINALISTS = 3
WARM = 4.0
TEXTS_TOGETHER, BODIES = 8, 64
"""Number of texts of a request to infinity, and of different requests."""
SAME = {"images": 0.999, "texts": 0.99999}
"""Least cosines of vectors of both servers; they resize images by different libraries."""
JSON = "application/json"
VECTORS, DIMENSIONS, NEAREST = 100_000, 768, 10
REQUEST_SECONDS = 600.0


@dataclass(frozen=True)
class TextFigure:
    """A ratio, or seconds, of every round."""

    name: str
    aim: str
    values: list[float]
    details: dict[str, list[float]]
    """Parts of the figure by name: the promise of arithmetic, and what was divided."""


@dataclass(frozen=True)
class TextBenchmark:
    """Things that all parts of a run share."""

    pair: BenchmarkPair
    photographs: Path
    rounds: int
    seconds: float
    """Length of a load."""
    environments: Path
    """Folder of those of other servers."""
    log: Callable[[str], None]

    @property
    def jpegs(self) -> list[bytes]:
        return [file.read_bytes() for file in sorted(self.photographs.glob("*.jpg"))]


@dataclass
class FigureRounds:
    """The findings of a figure's rounds so far."""

    values: list[float] = field(default_factory=list)
    details: dict[str, list[float]] = field(default_factory=dict)

    def note(self, value: float, **details: float) -> None:
        self.values.append(value)
        for name, detail in details.items():
            self.details.setdefault(name, []).append(detail)

    def figure(self, name: str, aim: str) -> TextFigure:
        return TextFigure(name, aim, self.values, self.details)


def labels(ground: TextBenchmark) -> list[TextFigure]:
    """Measure two requests: the first encodes the image and its labels, the second only the image."""
    with _asking(ground, threads=1) as client:
        return [
            _measure_recalled(ground, client, f"labels: {LABELS}, as they are", LABEL_WORDS, ("{}",)),
            _measure_recalled(ground, client, f"labels: {LABELS} in {len(TEMPLATES)} templates", LABEL_WORDS // 2, TEMPLATES),
        ]


def _measure_recalled(ground: TextBenchmark, client: httpx2.Client, name: str, length: int, templates: Sequence[str]) -> TextFigure:
    """Measure recalled labels of so many words (`length`)."""
    rounds, labels = FigureRounds(), text_pairs.labels(LABELS * (ground.rounds + 1), length)
    for number in range(ground.rounds + 1):
        new_labels = labels[number * LABELS :][:LABELS]
        form = [("image", ("image.jpg", ground.jpegs[0])), *(("label", (None, label)) for label in new_labels)]
        form += [("template", (None, template)) for template in templates]
        first = _took(client, form, expected_cached=0)
        second = statistics.median(_took(client, form, expected_cached=LABELS) for _ in range(REPEATS))
        if not number:
            continue  # its batches had shapes that the worker had never run
        texts = [template.replace("{}", label) for label in new_labels for template in templates]
        promise = 1 + sum(ground.pair.text_flops(texts)) / ground.pair.flops(1).image
        rounds.note(first / second / promise, promise=promise, times=first / second, first_s=first, second_s=second)
        ground.log(f"{name}, round {number}: {first:.2f} s, then {second:.3f} s: {first / second:.1f} times, promised {promise:.1f}")
    return rounds.figure(name, "≥ 0.8")


def _took(client: httpx2.Client, form: Sequence[Any], expected_cached: int) -> float:
    """Seconds of one request, so many of whose labels are recalled. Raises RuntimeError if others were."""
    started_at = time.perf_counter()
    answer = client.post("/v1/zero-shot", files=form).raise_for_status()
    took = time.perf_counter() - started_at
    if (recalled := answer.json()["labels"]["cached"]) != expected_cached:
        raise RuntimeError(f"{recalled} labels were recalled, not {expected_cached}: no figure counts")
    return took


def lengths(ground: TextBenchmark) -> list[TextFigure]:
    """Captions of very different lengths, each asked for once."""
    torch.set_num_threads(1)
    loop, padding = load(ground.pair.bundle, packed=True), ground.pair.padding()
    name, rounds = "lengths: texts/s in buckets ÷ padded to the longest", FigureRounds()
    trial = text_pairs.captions(max(LOOP_BATCHES), seed=0)
    batch = max(LOOP_BATCHES, key=lambda size: text_pairs.texts_per_second(loop, padding, trial, size))
    with _asking(ground, threads=1) as client:
        _texts_per_second(client, text_pairs.captions(TEXTS, seed=0))
        for number in range(1, ground.rounds + 1):
            texts = text_pairs.captions(TEXT_CLIENTS * TEXTS, seed=number)
            rate, padded = _texts_per_second(client, texts), text_pairs.texts_per_second(loop, padding, texts[:LOOP_TEXTS], batch)
            promise = ground.pair.flops(ground.pair.text.length).text / statistics.mean(ground.pair.text_flops(texts))
            rounds.note(rate / padded / promise, promise=promise, times=rate / padded, served_per_s=rate, padded_per_s=padded)
            ground.log(f"{name}, round {number}: {rate:.1f} and {padded:.1f}: {rate / padded:.2f} times, promised {promise:.2f}")
    return [rounds.figure(name, "≥ 0.75")]


def _texts_per_second(client: httpx2.Client, texts: Sequence[str]) -> float:
    def ask(first: int) -> None:
        body = {"texts": list(texts[first : first + TEXTS]), "encoding": "base64"}
        client.post("/v1/embed", json=body).raise_for_status()

    started_at = time.perf_counter()
    with ThreadPoolExecutor(TEXT_CLIENTS) as pool:
        list(pool.map(ask, range(0, len(texts), TEXTS)))
    return len(texts) / (time.perf_counter() - started_at)


def measure_cached(ground: TextBenchmark) -> list[TextFigure]:
    """Measure answers with vectors in base64, which cost the gateway least."""
    options_by_task = {
        "zero-shot": [*(("label", label) for label in text_pairs.labels(CACHED_LABELS, LABEL_WORDS)), ("template", "{}")],
        "embed": [("encoding", "base64")],
    }
    name, rounds = f"cached: /v1/zero-shot with {CACHED_LABELS} known labels ÷ /v1/embed", FigureRounds()
    with service.running(ground.pair.folder) as url:
        targets = {task: f"{url}/v1/{task}?{urlencode(options)}" for task, options in options_by_task.items()}
        httpx2.post(targets["zero-shot"], files={"image": ground.jpegs[0]}, timeout=REQUEST_SECONDS).raise_for_status()
        for number in range(1, ground.rounds + 1):
            turns = list(targets) if number % 2 else list(reversed(targets))
            rates = {task: _burst(ground, targets[task], CLIENTS[-1]) for task in turns}
            labelled, plain = rates["zero-shot"], rates["embed"]
            rounds.note(labelled / plain, zero_shot_per_s=labelled, embed_per_s=plain)
            ground.log(f"{name}, round {number}: {labelled:.2f} and {plain:.2f} images/s")
    return [rounds.figure(name, "≥ 0.95")]


def images(ground: TextBenchmark) -> list[TextFigure]:
    """Measure images/s, each divided by the mean of the loop before and after it."""
    swept = _loop(ground, _layouts(threads_allowed()), ground.seconds / 4)
    finalists = [speed["layout"] for speed in sorted(swept, key=lambda speed: -float(speed["images_per_second"]))[:FINALISTS]]

    def bound() -> float:
        return max(float(speed["images_per_second"]) for speed in _loop(ground, finalists, ground.seconds / 2))

    name, rounds, before = "images: /v1/embed ÷ a loop of decode and forward", FigureRounds(), bound()
    with service.running(ground.pair.folder) as url:
        for number in range(1, ground.rounds + 1):
            rate = max(_burst(ground, f"{url}/v1/embed?encoding=base64", clients) for clients in CLIENTS)
            after = bound()
            mean = (before + after) / 2
            rounds.note(rate / mean, served_per_s=rate, loop_per_s=mean)
            ground.log(f"{name}, round {number}: {rate:.2f} images/s; the loop {before:.2f} before and {after:.2f} after")
            before = after
    return [rounds.figure(name, "≥ 0.92")]


def _layouts(cpus: int) -> list[dict[str, int]]:
    shapes = sorted({(1, cpus), (cpus, 1)})
    return [
        asdict(LoopLayout(threads, batch, loops, decoders)) for (loops, threads), batch, decoders in product(shapes, LOOP_IMAGES, (0, 1))
    ]


def _loop(ground: TextBenchmark, layouts: Sequence[Mapping[str, int]], seconds: float) -> list[dict[str, Any]]:
    """Speeds of these layouts, in a process of its own."""
    arguments = ["--bundle", ground.pair.bundle.path, "--pictures", ground.photographs, "--dtype", "float32", "--seconds", seconds]
    speeds: list[dict[str, Any]] = json_of("benchmarks.bounds", [*arguments, "--forward", "[]", "--process", json.dumps(layouts)])[
        "process"
    ]
    return speeds


def compare_with_infinity(ground: TextBenchmark) -> list[TextFigure]:
    """Compare with infinity, each server called in the form that it documents. Raises RuntimeError if their vectors differ."""
    if ground.pair.bundle.spec.architecture != "maws_clip":
        raise SystemExit("infinity: --pair maws is needed, whose towers transformers has too")
    texts = [text_pairs.captions(TEXTS_TOGETHER, seed=seed) for seed in range(BODIES)]
    plain = [json.dumps({"texts": request_texts}).encode() for request_texts in texts]
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as name:
        folder = Path(name)
        infinity.write_model(ground.pair.bundle, folder / "model")
        peer = infinity.peer(folder / "model")
        ours = {"images": _bodies(folder / "images", ground.jpegs), "texts": _bodies(folder / "texts", plain)}
        theirs = {
            "images": _bodies(folder / "their-images", map(infinity.image_body, ground.jpegs)),
            "texts": _bodies(folder / "their-texts", map(infinity.text_body, texts)),
        }
        binaries = peers.environment(peer, ground.environments.resolve())
        with service.running(ground.pair.folder) as url, peers.running(peer, binaries) as other:
            embed_url = f"{url}/v1/embed?encoding=base64"
            return [
                _compare(ground, unit, (embed_url, ours[unit], own_type), (other, theirs[unit], JSON), count)
                for unit, own_type, count in (("images", "image/jpeg", 1), ("texts", JSON, TEXTS_TOGETHER))
            ]


Requests = tuple[str, Path, str]
"""URL, a folder of bodies, their media type."""


def _compare(ground: TextBenchmark, unit: str, ours: Requests, theirs: Requests, count: int) -> TextFigure:
    """Compare units/s. count: number of the unit in a request."""
    name, rounds, cosine = f"infinity: {unit}/s of Opsin ÷ of infinity", FigureRounds(), float((_vector(ours) * _vector(theirs)).sum())
    if cosine < SAME[unit]:
        raise RuntimeError(f"{name}: the cosine of both vectors is {cosine:.6f}: they serve different networks, or prepare otherwise")
    for number in range(1, ground.rounds + 1):
        turns = (ours, theirs) if number % 2 else (theirs, ours)
        rates = {requests: count * peers.load(*requests, CLIENTS[-1], ground.seconds) for requests in turns}
        rounds.note(rates[ours] / rates[theirs], opsin_per_s=rates[ours], infinity_per_s=rates[theirs], cosine=cosine)
        ground.log(f"{name}, round {number}: {rates[ours]:.2f} and {rates[theirs]:.2f}")
    return rounds.figure(name, "≥ 1.15")


def _vector(requests: Requests) -> NDArray[np.float32]:
    """Return the first vector of the first answer: (dim,)."""
    url, folder, media_type = requests
    body = (folder / "000.jpg").read_bytes()
    answer = httpx2.post(url, content=body, headers={"Content-Type": media_type}, timeout=REQUEST_SECONDS).raise_for_status().json()
    encoded = answer["data"][0]["embedding"] if "data" in answer else answer["embeddings"][0]
    return np.frombuffer(base64.b64decode(encoded), "<f4")


def _bodies(folder: Path, contents: Iterable[bytes]) -> Path:
    """Write a folder in the format of `benchmarks.load`, whatever is in its files."""
    folder.mkdir()
    for number, content in enumerate(contents):
        (folder / f"{number:03}.jpg").write_bytes(content)
    return folder


def search(ground: TextBenchmark) -> list[TextFigure]:
    """CPU time of all threads."""
    from opsin.vector_file import FileVectors

    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((VECTORS, DIMENSIONS), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    zeros = np.zeros(VECTORS, np.int64)
    files = FileVectors(vectors, np.full(VECTORS, "a.jpg"), zeros, zeros, "a@1", "", "", "")
    spent = []
    for row in range(ground.rounds + 1):
        started_at = time.process_time()
        best = files.nearest(vectors[row], NEAREST)
        spent.append(time.process_time() - started_at)
        assert best[0][0] == row
    ground.log(f"search: {', '.join(f'{seconds:.3f}' for seconds in spent[1:])} s")
    return [TextFigure(f"search: CPU seconds over {VECTORS:,} vectors of {DIMENSIONS}", "≤ 0.1", spent[1:], {})]


PARTS: Mapping[str, Callable[[TextBenchmark], list[TextFigure]]] = {
    "search": search,
    "labels": labels,
    "lengths": lengths,
    "cached": measure_cached,
    "images": images,
    "infinity": compare_with_infinity,
}


@contextmanager
def _asking(ground: TextBenchmark, threads: int) -> Iterator[httpx2.Client]:
    """Start a service with this number of threads and slots, and yield a client."""
    with service.running(ground.pair.folder, threads=threads) as url, httpx2.Client(base_url=url, timeout=REQUEST_SECONDS) as client:
        yield client


def _burst(ground: TextBenchmark, url: str, clients: int) -> float:
    """Images/s of so many clients. Raises RuntimeError if a request failed: then no figure counts."""
    load_options = ["--clients", clients, "--warm", WARM, "--seconds", ground.seconds]
    report = LoadReport(**json_of("benchmarks.load", ["--url", url, "--pictures", ground.photographs, *load_options]))
    if report.failures or not report.per_second:
        raise RuntimeError(f"{url}: {report.answered} answers in {ground.seconds:g} s, failures: {report.failures or 'none'}")
    return report.per_second


def show(figures: Sequence[TextFigure], console: Console) -> None:
    table = Table("figure", "median", "min", "max", "aim", "medians")
    for figure in figures:
        details = ", ".join(f"{name} {statistics.median(values):.3g}" for name, values in figure.details.items())
        spread = (statistics.median(figure.values), min(figure.values), max(figure.values))
        table.add_row(figure.name, *(f"{value:.3f}" for value in spread), figure.aim, details)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.words", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[], metavar="part", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", choices=list(text_pairs.CONFIGS), default="published")
    parser.add_argument("--pair", choices=list(text_pairs.ARCHITECTURES), default="maws")
    parser.add_argument("--seconds", type=float, default=20.0, help="of counted load per measurement (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path(".cache/words"), help="where pairs lie or are written (default: %(default)s)")
    parser.add_argument("--environments", type=Path, default=Path(".cache/peers"), help="where infinity's environment lies or is made")
    parser.add_argument("--json", type=Path, help="write the figures here (default: a file in benchmarks/results/)")
    options = parser.parse_args(arguments)
    console, host = Console(width=None if sys.stdout.isatty() else 150), machine.describe()
    console.print(*host.lines(), sep="\n")
    started = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    pair = text_pairs.make_pair(options.cache / options.size, options.pair, options.size)
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as name:
        text_pairs.write_photographs(Path(name))
        ground = TextBenchmark(pair, Path(name), options.rounds, options.seconds, options.environments, console.print)
        figures = [figure for part in options.parts or PARTS for figure in PARTS[part](ground)]
    show(figures, console)
    content = {"size": options.size, "pair": options.pair, "rounds": options.rounds, "figures": [asdict(figure) for figure in figures]}
    RESULTS.mkdir(exist_ok=True)
    file = options.json or RESULTS / f"words-{started}.json"
    file.write_text(json.dumps(machine.result_head(host, parser.prog) | content, indent=2) + "\n")
    console.print(f"wrote {file}")


if __name__ == "__main__":
    main()
