"""ONNX files that no service should run: each is refused in a sentence that names the reason, and leaves no bundle."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from onnx import helper

from tests.support.bundles import onnx_classifiers
from tests.support.bundles.onnx_classifiers import ImageGraph, Make, constant, value
from tests.support.processes import opsin

SECONDS = 60.0
"""The issue's bound on any refusal; the command is ended then, which fails the test."""
OUTSIDE = r"weights?.*(which is not a file in the folder of the graph|in the graph's folder, or a link)"


def refusal(folder: Path, file: Path, *options: str) -> str:
    """Return the sentence of the refusal."""
    ended = opsin("import", file, "-o", folder / "bundles/foreign", "--license", "CC0-1.0", *options, seconds=SECONDS)
    assert ended.returncode in (1, 2), (ended.returncode, ended.stdout, ended.stderr)
    assert "Traceback" not in ended.stderr and 20 < len(ended.stderr) < 800, ended.stderr
    assert not list((folder / "bundles").rglob("*.onnx")) and not (folder / "bundles/foreign").exists()
    return " ".join(ended.stderr.split())


EXTERNAL: dict[str, tuple[Make, str]] = {
    "an absolute path": (onnx_classifiers.absolute_path, OUTSIDE),
    "above": (onnx_classifiers.above_the_folder, OUTSIDE),
    "a link": (onnx_classifiers.through_a_link, OUTSIDE),
    "a linked folder": (onnx_classifiers.through_a_linked_folder, OUTSIDE),
    "a pipe": (onnx_classifiers.from_a_pipe, "weight"),
    "beyond the end": (onnx_classifiers.beyond_the_end, "weight"),
    "absent": (onnx_classifiers.without_its_data, r"weights\.bin"),
    "in a branch": (onnx_classifiers.external_in_branch, "hidden"),
}
STRANGE: dict[str, tuple[Make, str]] = {
    "custom operator": (onnx_classifiers.custom_operator, r"operator Gelu of own\.ops"),
    "another program": (onnx_classifiers.other_program, "operator EPContext of com.microsoft"),
    "unknown operator": (onnx_classifiers.unknown_operator, "Clairvoyance"),
    "functions": (onnx_classifiers.own_functions, "own|function"),
    "far opset": (onnx_classifiers.future_opset, "opset.*99|99.*opset|version 99"),
    "far IR": (onnx_classifiers.future_ir, "99"),
    "no numbers": (onnx_classifiers.nan_scores, "not a number|no numbers?|not finite|NaN"),
    "no numbers for some images": (onnx_classifiers.nan_scores_for_some_images, "not a number|no numbers?|not finite|NaN"),
    "two inputs": (onnx_classifiers.two_inputs, "prior"),
    "a map": (onnx_classifiers.map_output, r"scores.*\(batch, 1, 2, 2\)"),
    "strings": (onnx_classifiers.other_input_kind, "string image"),
    "zeros": (onnx_classifiers.zero_scores, "zero"),
    "a traced batch": (onnx_classifiers.traced_batch, "fails on a batch of 3"),
    "other images": (onnx_classifiers.batch_dependent, "changes with the other images of its batch"),
    "a long name": (onnx_classifiers.long_name, "N … .*own"),
    "one channel": (onnx_classifiers.one_channel, r"\(batch, 1, 16, 16\)"),
    "truncated": (onnx_classifiers.truncate, "ONNX"),
    "text": (onnx_classifiers.text_file, "ONNX"),
    "empty": (onnx_classifiers.empty, "ONNX|empty"),
}
GREEDY: dict[str, tuple[Make, str]] = {
    "a hundred gigabytes": (onnx_classifiers.hundred_gigabytes, "more than the 1024 MiB"),
    "a hundred gigabytes at last": (onnx_classifiers.hundred_gigabytes_at_run_time, "more than the 1024 MiB"),
    "a growing loop": (onnx_classifiers.growing_loop, "more than the 1024 MiB"),
    "a long loop": (onnx_classifiers.long_loop, "has not ended after"),
}


@pytest.mark.parametrize("case", EXTERNAL)
def test_data_outside_its_folder_is_refused(case: str, tmp_path: Path) -> None:
    make, message = EXTERNAL[case]
    assert _matches(message, refusal(tmp_path, make(tmp_path / "given"), "--as", "classify"))


@pytest.mark.parametrize("case", STRANGE)
def test_what_no_service_runs_is_refused(case: str, tmp_path: Path) -> None:
    make, message = STRANGE[case]
    assert _matches(message, refusal(tmp_path, make(tmp_path / "given"), "--as", "classify"))


@pytest.mark.slow
@pytest.mark.parametrize("case", GREEDY)
def test_what_takes_memory_or_time_is_refused(case: str, tmp_path: Path) -> None:
    make, message = GREEDY[case]
    assert _matches(message, refusal(tmp_path, make(tmp_path / "given"), "--as", "classify"))


def _matches(pattern: str, sentence: str) -> str:
    assert re.search(pattern, sentence), sentence
    return sentence


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe.onnx", tmp_path / "folder.onnx"
    os.mkfifo(pipe)
    folder.mkdir()
    for file in (pipe, folder, tmp_path / "absent.onnx", Path("/dev/zero")):
        assert file.name in refusal(tmp_path, file)


def two_outputs() -> ImageGraph:
    after = [helper.make_node("Identity", ["plain"], ["scores"]), helper.make_node("Neg", ["plain"], ["against"])]
    return ImageGraph(after=after, more_outputs=[value("against", onnx_classifiers.FLOAT, ["batch", onnx_classifiers.OUTPUTS])])


@pytest.mark.parametrize(
    ("graph", "options", "message"),
    [
        (ImageGraph(side="any"), [], "image_size"),
        (ImageGraph(), ["--set", "image_size=32"], r"image_size|\(batch, 3, 16, 16\)"),
        (ImageGraph(), ["--set", "image_size=zero"], "image_size"),
        (ImageGraph(), ["--set", "mean=1,2"], "mean"),
        (ImageGraph(), ["--set", "std=0,0,0"], "std"),
        (ImageGraph(), ["--set", "std=1e-320,1,1"], "std"),
        (ImageGraph(), ["--set", "mean=nan,nan,nan"], "mean"),
        (ImageGraph(), ["--set", "fit=stretch"], "fit.*crop"),
        (ImageGraph(), ["--set", "interpolation=nearest"], "interpolation.*bicubic"),
        (ImageGraph(), ["--set", "heads=4"], "heads"),
        (ImageGraph(), ["--set", "output=plain"], "output.*scores"),
        (two_outputs(), [], "output.*(scores.*against|against.*scores)"),
        (ImageGraph(), ["--as", "actions"], "classify.*embed"),
    ],
)
def test_settings_that_do_not_fit_are_named(graph: ImageGraph, options: list[str], message: str, tmp_path: Path) -> None:
    file = graph.write(tmp_path / "given/model.onnx")
    chosen = options if "--as" in options else ["--as", "classify", *options]
    assert _matches(message, refusal(tmp_path, file, *chosen))


def test_an_encoder_that_looks_like_depth_is_shown_the_way(tmp_path: Path) -> None:
    """A plane of numbers of open sides, as transformers export the vectors of all tokens."""
    after = [helper.make_node("Unsqueeze", ["plain", "first"], ["scores"])]
    graph = ImageGraph(after=after, weights=[constant("first", [1])], shape=["batch", "tokens", "width"])
    file = graph.write(tmp_path / "given/model.onnx")
    assert "--as embed" in refusal(tmp_path, file)
    assert _matches(r"scores.*has no row of numbers", refusal(tmp_path, file, "--set", "output=scores"))


def test_labels_must_be_as_many_as_the_scores(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\nfox\n")
    message = refusal(tmp_path, ImageGraph().write(tmp_path / "given/model.onnx"), "--as", "classify", "--labels", str(labels))
    assert _matches("3.*4|4.*3", message)


def test_an_encoder_takes_no_labels(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\nfox\nowl\n")
    message = refusal(tmp_path, ImageGraph().write(tmp_path / "given/model.onnx"), "--as", "embed", "--labels", str(labels))
    assert "an encoder has no labels" in message
