"""`opsin bundles`: what lies in a folder of bundles, and whether it is whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsin.cli.bundles import label_command, tokenizers
from opsin.cli.services import settings_of
from opsin.cli.shared.console import make_table, counted, escape_markup, escape_controls, make_console, format_bytes
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.requirements import requires_extra

if TYPE_CHECKING:
    from rich.table import Table

    from models.bundle import Bundle, BundleSpec
    from models.bundle_schema import Clip, Int8, Preprocess, Rung, Sound

app = typer.Typer(help="List, show, verify and complete bundles on disk.", no_args_is_help=True)

Root = Annotated[Path, typer.Option("--bundles", help="Folder of NAME/VERSION/ bundles.", envvar="OPSIN_BUNDLES")]
Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME[@VERSION]]...", help="All if none is named.", show_default=False)]
DEFAULT_ROOT = Path("bundles")


@app.command("list")
def list_(bundles: Root = DEFAULT_ROOT) -> None:
    """One line for each bundle. What was measured in other terms than accuracy, `opsin bundles show` tells."""

    whole, damaged = _read_all(bundles)
    with requires_extra("server"):
        from models.bundle import BundleError
        from models.bundle_folders import find_misplaced
    heads = ("Name", "Version", "Task", "Architecture", "Size", "Default rung", "Accuracy")
    table = make_table(*heads, right=("Size", "Accuracy"))
    for bundle in whole:
        spec = bundle.spec
        table.add_row(spec.name, spec.version, spec.task, spec.architecture, format_bytes(spec.size), spec.default_rung or "off", _accuracy(spec))
        try:
            bundle.members()
        except BundleError as error:  # it is not served
            damaged.append(str(error))
    if whole:
        make_console().print(table)
    elif not damaged:
        typer.echo(f"{bundles}: no bundles")
    for sentence in misplaced(bundles):
        typer.echo(escape_controls(sentence), err=True)
    if damaged:
        raise CommandError(*damaged)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", show_default=False)],
    bundles: Root = DEFAULT_ROOT,
    as_json: Annotated[bool, typer.Option("--json", help="The bundle.json itself.")] = False,
) -> None:
    """Everything that a bundle says of itself: licence, labels, provenance, measured quality, ladder."""
    for bundle in _select_bundles(bundles, [name]):
        if as_json:
            typer.echo(escape_controls(bundle.spec.to_bytes().decode()), nl=False)
        else:
            _print_spec(bundle)


@app.command()
def join(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The pipeline's name.", show_default=False)],
    pose: Annotated[str | None, typer.Option(help="Of actions: bundle that tells poses, NAME[@VERSION].", show_default=False)] = None,
    actions: Annotated[str | None, typer.Option(help="Of actions: bundle of LART.", show_default=False)] = None,
    shape: Annotated[str | None, typer.Option(help="Of photographs: bundle of an MCC of objects.", show_default=False)] = None,
    depth: Annotated[str | None, typer.Option(help="Of photographs: bundle that tells depth, as of MiDaS.", show_default=False)] = None,
    detector: Annotated[str | None, typer.Option(help="Bundle that finds people, where `--pose` does not.", show_default=False)] = None,
    appearance: Annotated[
        str | None, typer.Option(help="Bundle of an MViT with a box head, for a LART that reads appearance.", show_default=False)
    ] = None,
    body: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Your SMPL mesh, .npz or .safetensors, for a LART that reads joints. It stays where it is: workers need it at this path.",
            show_default=False,
        ),
    ] = None,
    version: Annotated[str, typer.Option(help="The pipeline's version.")] = "1.0.0",
    rate: Annotated[float | None, typer.Option(help="Frames a second of LART's training. [default: its own]", show_default=False)] = None,
    step: Annotated[int | None, typer.Option(min=1, help="Rows that a window answers for. [default: a third]", show_default=False)] = None,
    bundles: Root = DEFAULT_ROOT,
) -> None:
    """Make a pipeline of bundles, and check that its members fit each other.

    With --pose and --actions it tells who does what when in videos; with --shape and --depth it makes shapes of photographs without depth.
    """
    with requires_extra("server"):
        from pydantic import ValidationError

        from models.bundle import BundleError
        from models.systems.pipeline_bundles import join_actions, join_photographs
    if body is not None and not body.is_file():
        raise UsageError(f"--body {body}: no such file")
    of_actions = {"pose": pose, "actions": actions, "detector": detector, "appearance": appearance}
    of_photographs = {"shape": shape, "depth": depth}
    photographs = any(of_photographs.values())
    wanted, needed = (of_photographs, ("shape", "depth")) if photographs else (of_actions, ("pose", "actions"))
    others = {**of_actions, "body": body, "rate": rate, "step": step} if photographs else {}
    if unwanted := [f"--{name}" for name, given in others.items() if given is not None]:
        raise UsageError(f"{', '.join(unwanted)}: not for a pipeline with --shape and --depth")
    if missing := [f"--{role}" for role in needed if wanted[role] is None]:
        raise UsageError(f"{' and '.join(missing)}: missing; a pipeline has --pose and --actions, or --shape and --depth")
    members: Any = {role: _member(bundles, member) for role, member in wanted.items() if member is not None}
    try:
        if photographs:
            made = join_photographs(bundles, name, version, members["shape"], members["depth"])
        else:
            made = join_actions(bundles, name, version, members, rate=rate, step=step, body=body)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"bundles join: {first['loc'][0]}: {first['msg'].removeprefix('Value error, ')}") from error
    except BundleError as error:
        raise CommandError(str(error)) from error
    external = [f"{role} {file.path}" for role, file in made.spec.external.items()]
    typer.echo(f"{made.path}  {', '.join([*(member.id for member in made.spec.members.values()), *external])}")


@app.command()
def tokenizer(
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="The pair.", show_default=False)],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="tokenizer.json, vocab.txt, vocab.json, SentencePiece's .model, or a folder.", show_default=False
        ),
    ],
    templates: Annotated[
        Path | None, typer.Option(help="Sentences with {} for the label, one per line. [default: as they are]", show_default=False)
    ] = None,
    bundles: Root = DEFAULT_ROOT,
) -> None:
    """Give a pair of towers the tokenizer by which it reads texts, or another one. Its digest changes; its weights stay.

    A service that runs takes it up after a restart.
    """
    chosen = _select_bundles(bundles, [name])
    if len(chosen) > 1:
        raise UsageError(f"{name}: has several versions; name one of {', '.join(bundle.spec.id for bundle in chosen)}")
    try:
        with requires_extra("server"):
            changed = tokenizers.with_tokenizer(chosen[0], file, templates)
    except OSError as error:
        raise CommandError(f"bundles tokenizer: {error}") from error
    typer.echo(f"{changed.spec.id}  {tokenizers.summary(changed.spec)}")
    typer.echo("A service that runs reads texts by it after a restart.")


@app.command()
def verify(names: Names = None, bundles: Root = DEFAULT_ROOT) -> None:
    """Check each bundle's description, its labels, and the length and SHA-256 of its files; exit code 1 if one is damaged."""
    with requires_extra("server"):
        from models.bundle import BundleError
        from models.loading import check_fit
    whole, damaged = (_select_bundles(bundles, names), list[str]()) if names else _read_all(bundles)
    for bundle in whole:
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
    name: Annotated[str, typer.Argument(metavar="NAME", help="The classifier's name.", show_default=False)],
    pair: Annotated[str, typer.Option("--from", help="Bundle of an image-text pair: NAME[@VERSION].", show_default=False)],
    labels: Annotated[Path, typer.Option(help="Labels: one per line, a JSON list, or a bundle.json.", show_default=False)],
    template: Annotated[
        list[str] | None,
        typer.Option("--template", help="Sentence with one {} for the label; repeatable. [default: the bundle's]", show_default=False),
    ] = None,
    version: Annotated[str, typer.Option(help="The classifier's version.")] = "1",
    bundles: Root = DEFAULT_ROOT,
) -> None:
    """Make a classifier of an image-text pair and labels: without its text tower, with the scores of zero-shot classification."""
    pairs = _select_bundles(bundles, [pair])
    if len(pairs) > 1:
        raise UsageError(f"--from {pair}: has several versions; name one of {', '.join(found.spec.id for found in pairs)}")
    made = label_command.labelled(pairs[0], labels, bundles, name, version, template or None)
    sizes = f"{format_bytes(made.spec.weights.bytes)} where the pair has {format_bytes(pairs[0].spec.size)}"
    typer.echo(f"{made.path}  {counted(len(made.spec.labels), 'label')}, {sizes}")


def _read_all(root: Path) -> tuple[list[Bundle], list[str]]:
    """The bundles below root, and a sentence for each that cannot be read."""
    with requires_extra("server"):
        from models.bundle import BundleError
        from models.bundle_folders import discover, read_discovered
    if not root.is_dir():
        starters = settings_of(None).starters_folder
        raise UsageError(f"{root}: no such folder; name it with --bundles" + (f"; the starters are in {starters}" if starters else ""))
    whole: list[Bundle] = []
    damaged: list[str] = []
    for path in discover(root):
        try:
            whole.append(read_discovered(path))
        except BundleError as error:
            damaged.append(str(error))
    return whole, damaged


def _select_bundles(root: Path, names: list[str]) -> list[Bundle]:
    """The bundles called `name` (all its versions) or `name@version`. Raises UsageError if one of the names fits none."""
    whole, damaged = _read_all(root)
    chosen: list[Bundle] = []
    for name in names:
        fitting = [bundle for bundle in whole if name in (bundle.spec.name, bundle.spec.id)]
        if not fitting:
            for sentence in damaged:
                typer.echo(sentence, err=True)
            raise UsageError(f"no bundle {name!r} in {root}; there are {', '.join(bundle.spec.id for bundle in whole) or 'none'}")
        chosen += fitting
    return chosen


def _member(root: Path, name: str) -> Bundle:
    """The bundle of that name, no pipeline where there is another. A starter is copied, since members lie beside their pipeline. Raises
    UsageError."""

    def alone(folder: Path) -> list[Bundle]:
        return [found for found in _read_all(folder)[0] if name in (found.spec.name, found.spec.id) and not found.spec.members]

    starters = settings_of(None).starters_folder
    if starters is not None and not alone(root):
        for bundle in alone(starters)[:1]:
            shutil.copytree(bundle.path, root / bundle.spec.name / bundle.spec.version)
            typer.echo(f"{root / bundle.spec.name / bundle.spec.version}  copied from the starters")
    return (alone(root) or _select_bundles(root, [name]))[0]


def _accuracy(spec: BundleSpec) -> str:
    """Measured accuracy at the default rung, or of merging off where there is none; else of the first rung, with its name."""
    if rung := spec.rung(spec.default_rung) if spec.default_rung else None:
        return _measured(rung)
    accuracy = spec.quality.get("accuracy")
    if isinstance(accuracy, float):
        return f"{accuracy:.1%}"
    off: dict[str, Any] = next((row for row in spec.quality.get("ladder", ()) if row["rung"] == "off"), {})
    of_off = (f"{told['value']:.1%} {metric}" for metric, told in off.items() if isinstance(told, dict))
    of_rungs = (f"{_measured(rung)} at {rung.name}" for rung in spec.ladder if rung.accuracy is not None)
    return next(of_off, None) or next(of_rungs, None) or ("other measures" if spec.quality else "not measured")


def _measured(rung: Rung) -> str:
    """Its accuracy, and what that is."""
    return "not measured" if rung.accuracy is None else f"{rung.accuracy:.1%} {rung.metric}"


def _print_spec(bundle: Bundle) -> None:
    from rich.table import Table

    spec, console = bundle.spec, make_console()
    console.print(f"[bold]{spec.id}[/]  {escape_markup(spec.description)}".rstrip())
    facts: dict[str, Any] = {
        "folder": bundle.path,
        "task": spec.task,
        "architecture": f"{spec.architecture}  {_flat(spec.config)}",
        **{name: _flat(part.model_dump(exclude_none=True)) for name, part in _inputs(spec) if part is not None},
        "weights": f"{format_bytes(spec.weights.bytes)}, SHA-256 {spec.weights.sha256}",
        **{name: f"{format_bytes(file.bytes)}, SHA-256 {file.sha256}" for name, file in spec.files.items()},
        **{role: f"{file.path}, SHA-256 {file.sha256}" for role, file in spec.external.items()},
        **({"texts": texts} if (texts := tokenizers.summary(spec)) else {}),
        **({"trained on": spec.trained_on} if spec.trained_on else {}),
        **({"note": spec.note} if spec.note else {}),
        "license": spec.license,
        **(
            {counted(len(spec.labels), "label"): ", ".join(spec.labels[:40]) + (", …" if len(spec.labels) > 40 else "")}
            if spec.labels
            else {}
        ),
        **({"int8": _int8(spec.int8)} if spec.int8 else {}),
        **{f"quality.{key}": _value(value) for key, value in spec.quality.items()},
        **{f"provenance.{key}": _value(value) for key, value in spec.provenance.items()},
    }
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(f"[dim]{escape_markup(name)}[/]", escape_markup(str(value)))
    console.print(table)
    if spec.ladder:
        console.print(_ladder(spec))


def _inputs(spec: BundleSpec) -> tuple[tuple[str, Preprocess | Clip | Sound | None], ...]:
    """Inputs that the model sees and hears."""
    return ("preprocess", spec.preprocess), ("clip", spec.clip), ("sound", spec.sound)


def _int8(int8: Int8) -> str:
    """Accuracies in float32 and in 8-bit integers, rung by rung."""
    rungs = "  ".join(f"{name} {found.float32:.2%} → {found.int8:.2%}" for name, found in int8.rungs.items())
    return f"accuracy on {int8.images} images, bound {int8.bound:g}: {rungs}"


def _ladder(spec: BundleSpec) -> Table:
    table = make_table("Rung", "Schedule", "Accuracy", "Throughput", title="Ladder")
    for rung in spec.ladder:
        table.add_row(
            f"{rung.name} (default)" if rung.name == spec.default_rung else rung.name,
            _value(rung.schedule) + ("" if rung.schedule_sight is None else f", sight {_value(rung.schedule_sight)}"),
            _measured(rung),
            "not measured" if rung.throughput is None else f"{rung.throughput:.2f}×",
        )
    return table


def _flat(values: dict[str, Any]) -> str:
    return "  ".join(f"{key}={_value(value)}" for key, value in values.items())


def _value(value: object) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
