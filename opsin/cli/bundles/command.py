"""`opsin bundles`: list, show, verify and complete the bundles of a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsin.cli.bundles import class_names, tokenizers
from opsin.cli.services import settings_of
from opsin.cli.shared.console import escape_controls, escape_markup, format_bytes, format_count, make_console, make_table
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.requirements import requires_extra

if TYPE_CHECKING:
    from rich.table import Table

    from models.bundle import Bundle, BundleSpec
    from models.bundle_schema import Int8, Rung


app = typer.Typer(help="List, show, verify and complete bundles on disk.", no_args_is_help=True)

Root = Annotated[Path, typer.Option("--bundles", help="Folder of NAME/VERSION/ bundles.", envvar="OPSIN_BUNDLES")]
Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME[@VERSION]]...", help="All if none is named.")]
DEFAULT_FOLDER = Path("bundles")


@app.command("list")
def list_(bundles: Root = DEFAULT_FOLDER) -> None:
    """List bundles, one per line. Use `opsin bundles show` for metrics other than accuracy."""

    readable, damaged = _read_all(bundles)
    with requires_extra("server"):
        from models.bundle import BundleError
        from models.bundle_folders import find_misplaced
    heads = ("Name", "Version", "Task", "Architecture", "Size", "Default rung", "Accuracy")
    table = make_table(*heads, right=("Size", "Accuracy"))
    for bundle in readable:
        spec = bundle.spec
        table.add_row(
            spec.name, spec.version, spec.task, spec.architecture, format_bytes(spec.size), spec.default_rung or "off", _accuracy(spec)
        )
        try:
            bundle.members()
        except BundleError as error:  # such a bundle is not served
            damaged.append(str(error))
    if readable:
        make_console().print(table)
    elif not damaged:
        typer.echo(f"{bundles}: no bundles")
    for sentence in find_misplaced(bundles):
        typer.echo(escape_controls(sentence), err=True)
    if damaged:
        raise CommandError(*damaged)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")],
    bundles: Root = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print bundle.json.")] = False,
) -> None:
    """Show a bundle's metadata: licence, labels, provenance, measured quality and ladder."""
    for bundle in _select_bundles(bundles, [name]):
        if as_json:
            typer.echo(escape_controls(bundle.spec.to_bytes().decode()), nl=False)
        else:
            _print_spec(bundle)


@app.command()
def join(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The pipeline's name.")],
    pose: Annotated[str | None, typer.Option(help="For actions: bundle that estimates poses, NAME[@VERSION].")] = None,
    actions: Annotated[str | None, typer.Option(help="For actions: bundle of LART.")] = None,
    shape: Annotated[str | None, typer.Option(help="For photographs: bundle of an MCC for objects.")] = None,
    depth: Annotated[str | None, typer.Option(help="For photographs: bundle that estimates depth, such as MiDaS.")] = None,
    detector: Annotated[str | None, typer.Option(help="Bundle that detects people, if that of `--pose` does not.")] = None,
    appearance: Annotated[str | None, typer.Option(help="Bundle of an MViT with a box head, for a LART that reads appearance.")] = None,
    body: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Your SMPL mesh, .npz or .safetensors, for a LART that reads joints. It is not copied: workers need it at this path.",
        ),
    ] = None,
    version: Annotated[str, typer.Option(help="The pipeline's version.")] = "1.0.0",
    rate: Annotated[float | None, typer.Option(help="Frames per second of LART's training. [default: the bundle's]")] = None,
    step: Annotated[int | None, typer.Option(min=1, help="Number of rows that each window answers. [default: a third]")] = None,
    bundles: Root = DEFAULT_FOLDER,
) -> None:
    """Join bundles to a pipeline, and check that they fit each other.

    With --pose and --actions it recognises who does what, and when, in videos; with --shape and --depth it reconstructs shapes from
    photographs without depth.
    """
    with requires_extra("server"):
        from pydantic import ValidationError

        from models.bundle import BundleError
        from models.systems.pipeline_bundles import write_action_pipeline, write_photo_pipeline
    if body is not None and not body.is_file():
        raise UsageError(f"--body {body}: no such file")
    action_members = {"pose": pose, "actions": actions, "detector": detector, "appearance": appearance}
    photograph_members = {"shape": shape, "depth": depth}
    is_photographs = any(photograph_members.values())
    chosen, required = (photograph_members, ("shape", "depth")) if is_photographs else (action_members, ("pose", "actions"))
    action_options = {**action_members, "body": body, "rate": rate, "step": step} if is_photographs else {}
    if unwanted := [f"--{name}" for name, value in action_options.items() if value is not None]:
        raise UsageError(f"{', '.join(unwanted)}: not for a pipeline with --shape and --depth")
    if missing := [f"--{role}" for role in required if chosen[role] is None]:
        raise UsageError(f"{' and '.join(missing)}: missing; a pipeline has --pose and --actions, or --shape and --depth")
    members: Any = {role: _find_member(bundles, member) for role, member in chosen.items() if member is not None}
    try:
        if is_photographs:
            pipeline = write_photo_pipeline(bundles, name, version, members["shape"], members["depth"])
        else:
            pipeline = write_action_pipeline(bundles, name, version, members, rate=rate, step=step, body=body)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"bundles join: {first['loc'][0]}: {first['msg'].removeprefix('Value error, ')}") from error
    except BundleError as error:
        raise CommandError(str(error)) from error
    external = [f"{role} {file.path}" for role, file in pipeline.spec.external.items()]
    typer.echo(f"{pipeline.path}  {', '.join([*(member.id for member in pipeline.spec.members.values()), *external])}")


@app.command()
def tokenizer(
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="The image-text bundle.")],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="tokenizer.json, vocab.txt, vocab.json, SentencePiece's .model, or a folder.")
    ],
    templates: Annotated[Path | None, typer.Option(help="Sentences with {} for the label, one per line. [default: unchanged]")] = None,
    bundles: Root = DEFAULT_FOLDER,
) -> None:
    """Add the tokenizer of an image-text bundle, or replace it. The bundle's digest changes; its weights do not.

    A running service uses it after a restart.
    """
    bundle = _select_one(bundles, name, name)
    try:
        with requires_extra("server"):
            changed = tokenizers.with_tokenizer(bundle, file, templates)
    except OSError as error:
        raise CommandError(f"bundles tokenizer: {error}") from error
    typer.echo(f"{changed.spec.id}  {tokenizers.summary(changed.spec)}")
    typer.echo("A running service uses it after a restart.")


@app.command()
def verify(names: Names = None, bundles: Root = DEFAULT_FOLDER) -> None:
    """Check each bundle's description, its labels, and the size and SHA-256 of its files. Exit code 1 if one is damaged."""
    with requires_extra("server"):
        from models.bundle import BundleError
        from models.loading import check_fit
    readable, damaged = (_select_bundles(bundles, names), list[str]()) if names else _read_all(bundles)
    for bundle in readable:
        try:
            bundle.verify()
            check_fit(bundle)
        except BundleError as error:
            damaged.append(str(error))
        else:
            typer.echo(f"{bundle.spec.id}  {format_bytes(bundle.spec.size)}  OK")
    if damaged:
        raise CommandError(*damaged)


@app.command()
def label(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The classifier's name.")],
    pair: Annotated[str, typer.Option("--from", help="Bundle of an image-text pair: NAME[@VERSION].")],
    labels: Annotated[Path, typer.Option(help="Labels: one per line, a JSON list, or a bundle.json.")],
    template: Annotated[
        list[str] | None, typer.Option("--template", help="Sentence with one {} for the label; repeatable. [default: the bundle's]")
    ] = None,
    version: Annotated[str, typer.Option(help="The classifier's version.")] = "1",
    bundles: Root = DEFAULT_FOLDER,
) -> None:
    """Make a classifier from an image-text bundle and labels: without the text tower, with the scores of zero-shot classification."""
    original = _select_one(bundles, pair, f"--from {pair}")
    with requires_extra("server"):
        from pydantic import ValidationError

        from models.bundle import BundleError
        from models.systems.image_text.zero_shot_classifier import make_zero_shot_classifier
    try:
        with requires_extra("server"):
            names = class_names.read(labels)
            classifier, truncated = make_zero_shot_classifier(original, names, bundles, name, version, templates=template or None)
    except ValidationError as error:
        raise UsageError(f"bundles label: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
    except BundleError as error:
        raise CommandError(str(error)) from error
    if truncated:
        typer.echo(f"opsin: {format_count(truncated, 'label')} truncated: longer than {original.spec.id} reads", err=True)
    sizes = f"{format_bytes(classifier.spec.weights.bytes)} where the pair has {format_bytes(original.spec.size)}"
    typer.echo(f"{classifier.path}  {format_count(len(classifier.spec.labels), 'label')}, {sizes}")


def _read_all(root: Path) -> tuple[list[Bundle], list[str]]:
    """Return the bundles below root, and a sentence for each that cannot be read."""
    with requires_extra("server"):
        from models.bundle import BundleError
        from models.bundle_folders import discover, read_discovered
    if not root.is_dir():
        starters = settings_of(None).starters_folder
        raise UsageError(f"{root}: no such folder; name it with --bundles" + (f"; the starters are in {starters}" if starters else ""))
    readable: list[Bundle] = []
    damaged: list[str] = []
    for path in discover(root):
        try:
            readable.append(read_discovered(path))
        except BundleError as error:
            damaged.append(str(error))
    return readable, damaged


def _select_bundles(root: Path, names: list[str]) -> list[Bundle]:
    """Return the bundles called `name` (all its versions) or `name@version`. Raises UsageError for a name without a bundle."""
    readable, damaged = _read_all(root)
    chosen: list[Bundle] = []
    for name in names:
        matching = [bundle for bundle in readable if name in (bundle.spec.name, bundle.spec.id)]
        if not matching:
            for sentence in damaged:
                typer.echo(sentence, err=True)
            raise UsageError(f"no bundle {name!r} in {root}; there are {', '.join(bundle.spec.id for bundle in readable) or 'none'}")
        chosen += matching
    return chosen


def _select_one(root: Path, name: str, subject: str) -> Bundle:
    """Return the bundle of that name. Raises UsageError, which names the subject, if it has several versions."""
    chosen = _select_bundles(root, [name])
    if len(chosen) > 1:
        raise UsageError(f"{subject}: has several versions; name one of {', '.join(bundle.spec.id for bundle in chosen)}")
    return chosen[0]


def _find_member(root: Path, name: str) -> Bundle:
    """Return the bundle of that name, preferably not a pipeline. A starter is copied, since members must be in the pipeline's folder.

    Raises UsageError.
    """

    def matching_bundles(folder: Path) -> list[Bundle]:
        return [bundle for bundle in _read_all(folder)[0] if name in (bundle.spec.name, bundle.spec.id) and not bundle.spec.members]

    starters = settings_of(None).starters_folder
    if starters is not None and not matching_bundles(root):
        for bundle in matching_bundles(starters)[:1]:
            shutil.copytree(bundle.path, root / bundle.spec.name / bundle.spec.version)
            typer.echo(f"{root / bundle.spec.name / bundle.spec.version}  copied from the starters")
    return (matching_bundles(root) or _select_bundles(root, [name]))[0]


def _accuracy(spec: BundleSpec) -> str:
    """Format the measured accuracy of the default rung, or of merging off if there is none, else of the first rung, with its name."""
    if rung := spec.rung(spec.default_rung) if spec.default_rung else None:
        return _format_accuracy(rung)
    accuracy = spec.quality.get("accuracy")
    if isinstance(accuracy, float):
        return f"{accuracy:.1%}"
    off_row: dict[str, Any] = next((row for row in spec.quality.get("ladder", ()) if row["rung"] == "off"), {})
    off_accuracies = (f"{measure['value']:.1%} {metric}" for metric, measure in off_row.items() if isinstance(measure, dict))
    rung_accuracies = (f"{_format_accuracy(rung)} at {rung.name}" for rung in spec.ladder if rung.accuracy is not None)
    return next(off_accuracies, None) or next(rung_accuracies, None) or ("other measures" if spec.quality else "not measured")


def _format_accuracy(rung: Rung) -> str:
    """Format a rung's accuracy and its metric."""
    return "not measured" if rung.accuracy is None else f"{rung.accuracy:.1%} {rung.metric}"


def _print_spec(bundle: Bundle) -> None:
    from rich.table import Table

    spec, console = bundle.spec, make_console()
    inputs = {"preprocess": spec.preprocess, "clip": spec.clip, "sound": spec.sound}
    console.print(f"[bold]{spec.id}[/]  {escape_markup(spec.description)}".rstrip())
    facts: dict[str, Any] = {
        "folder": bundle.path,
        "task": spec.task,
        "architecture": f"{spec.architecture}  {_format_fields(spec.config)}",
        **{name: _format_fields(part.model_dump(exclude_none=True)) for name, part in inputs.items() if part is not None},
        "weights": f"{format_bytes(spec.weights.bytes)}, SHA-256 {spec.weights.sha256}",
        **{name: f"{format_bytes(file.bytes)}, SHA-256 {file.sha256}" for name, file in spec.files.items()},
        **{role: f"{file.path}, SHA-256 {file.sha256}" for role, file in spec.external.items()},
        **({"texts": texts} if (texts := tokenizers.summary(spec)) else {}),
        **({"trained on": spec.trained_on} if spec.trained_on else {}),
        **({"note": spec.note} if spec.note else {}),
        "license": spec.license,
        **(
            {format_count(len(spec.labels), "label"): ", ".join(spec.labels[:40]) + (", …" if len(spec.labels) > 40 else "")}
            if spec.labels
            else {}
        ),
        **({"int8": _format_int8(spec.int8)} if spec.int8 else {}),
        **{f"quality.{key}": _format_value(value) for key, value in spec.quality.items()},
        **{f"provenance.{key}": _format_value(value) for key, value in spec.provenance.items()},
    }
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(f"[dim]{escape_markup(name)}[/]", escape_markup(str(value)))
    console.print(table)
    if spec.ladder:
        console.print(_ladder_table(spec))


def _format_int8(int8: Int8) -> str:
    """Format the accuracies in float32 and in int8, rung by rung."""
    rungs = "  ".join(f"{name} {accuracies.float32:.2%} → {accuracies.int8:.2%}" for name, accuracies in int8.rungs.items())
    return f"accuracy on {int8.images} images, bound {int8.bound:g}: {rungs}"


def _ladder_table(spec: BundleSpec) -> Table:
    table = make_table("Rung", "Schedule", "Accuracy", "Throughput", title="Ladder")
    for rung in spec.ladder:
        table.add_row(
            f"{rung.name} (default)" if rung.name == spec.default_rung else rung.name,
            _format_value(rung.schedule) + ("" if rung.schedule_sight is None else f", sight {_format_value(rung.schedule_sight)}"),
            _format_accuracy(rung),
            "not measured" if rung.throughput is None else f"{rung.throughput:.2f}×",
        )
    return table


def _format_fields(values: dict[str, Any]) -> str:
    return "  ".join(f"{key}={_format_value(value)}" for key, value in values.items())


def _format_value(value: object) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
