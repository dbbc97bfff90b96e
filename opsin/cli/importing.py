"""`opsin import`: somebody else's checkpoint → a bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from opsin.cli import catalogue, hubs, label_files
from opsin.cli.engine import libraries
from opsin.cli.exits import Failure, Misuse
from opsin.cli.interrupts import leave_tidily
from opsin.cli.screen import size
from opsin.cli.services import settings_of
from opsin.cli.tokenizers import prepared, summary
from opsin.engine import enter

if TYPE_CHECKING:
    from models.bundle import Bundle, BundleSpec

LONGEST = 80
"""Characters of a config field that are printed."""
PRECISE = "float32 on every computer"
MOST_TRIED = 2**31
"""Bytes of weights that an import runs to tell the number format."""


class ImportCommand(TyperCommand):
    """Names the families in its help: they are looked up when somebody asks, since `opsin --help` must not wait for them."""

    def get_help(self, ctx: Any) -> str:
        enter()
        try:
            from models.registry import family_names
        except ModuleNotFoundError:  # a client alone, which cannot import
            return super().get_help(ctx)
        self.epilog = f"Families: {', '.join(family_names())}."
        return super().get_help(ctx)


def import_(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            help="A torch or safetensors checkpoint, an ONNX graph, a folder of T5X or transformers, hf://OWNER/REPO[@REVISION] or "
            "timm:NAME.TAG.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR/NAME", help="Writes DIR/NAME/VERSION/; with --name, DIR.", show_default=False),
    ] = None,
    family: Annotated[str | None, typer.Option(help="Whose it is, where its keys fit several families.", show_default=False)] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Class names: one per line, a JSON list, or a bundle.json.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="What keys cannot tell, such as heads=4; repeatable.", show_default=False),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Of a pair: tokenizer.json, vocab.txt, vocab.json, SentencePiece's .model, or a folder.", show_default=False),
    ] = None,
    templates: Annotated[
        Path | None, typer.Option(help="With --tokenizer: sentences with {} for the label, one per line.", show_default=False)
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option("--license", help="The weights' licence, such as CC-BY-NC-4.0; else that of the model card.", show_default=False),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The bundle's name.", show_default=False)] = None,
    version: Annotated[str, typer.Option(help="The bundle's version.")] = "1",
    listed: Annotated[bool, typer.Option("--list", help="List the published checkpoints of all systems, and end.")] = False,
) -> None:
    """Turn a published checkpoint into a bundle. Only tensors are read: no code in the file is ever run."""
    if listed:
        catalogue.show()
        return
    if source is None or output is None:
        raise Misuse("import: say what to import and where to, as in `opsin import model.safetensors -o bundles/NAME`; --list lists files")
    root, name = (output, name) if name else (output.parent, output.name)
    if (root / name / version).exists():
        raise Misuse(f"{root / name / version}: exists already; choose another --version")
    class_names = label_files.read(labels) if labels else None
    leave_tidily()
    overrides = dict(_setting(text) for text in settings or [])
    found = hubs.find(source)
    file = found.path
    with libraries("server"):
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        from models.bundle import BundleError, write
        from models.onnx.importing import SUFFIX, import_graph
        from models.published.container import CheckpointError, WrongSetting
        from models.published.importing import import_checkpoint
    try:
        if file.suffix == SUFFIX:
            if family or labels:
                raise Misuse(f"import: {file}: a graph's signature tells what it is; --family and --labels are for checkpoints")
            weights = None
            spec = import_graph(file, overrides=overrides, name=name, version=version, license=licence or "unknown")
        else:
            spec, weights = import_checkpoint(
                file,
                family=family,
                labels=class_names,
                overrides=overrides,
                name=name,
                version=version,
                license=licence,
                origin=found.origin,
            )
    except CheckpointError as error:
        is_fault = found.is_model and not isinstance(error, WrongSetting)
        told = str(error).replace(str(file), source) if found.origin else str(error)
        raise (Failure(f"import: {told}") if is_fault else Misuse(told)) from error
    of_repository = spec.task == "zero-shot" and tokenizer is None and not templates
    if spec.task == "zero-shot" and tokenizer is None:
        tokenizer = found.tokenizer
    if templates and not tokenizer:
        raise Misuse("--templates needs --tokenizer, and a pair of images and texts: nothing else reads texts")
    try:
        with _folder_in(root) as folder:
            content = file
            if weights is not None:
                content = folder / "weights.safetensors"
                save_file(weights, content)
            files: dict[str, Path] = {}
            if tokenizer:
                try:
                    text, files = prepared(spec, content, tokenizer, templates, folder)
                    spec = spec.model_copy(update={"text": text})
                except Misuse as error:
                    if not of_repository:
                        raise
                    notes = [*spec.provenance.get("notes", []), f"the tokenizer is not taken: {error}".replace(str(file), source)]
                    spec = spec.model_copy(update={"provenance": spec.provenance | {"notes": notes}})
            bundle = write(root, spec, content, files=files)
    except BundleError as error:
        raise Failure(f"import: {error}") from error
    except (OSError, SafetensorError) as error:
        raise Failure(f"import: {root / name / version}: cannot be written ({error})") from error

    if found.origin:
        typer.echo(f"repository    {spec.provenance['repository']} at {spec.provenance['revision']}")
    typer.echo(f"family        {spec.provenance['family']}")
    typer.echo(f"task          {spec.task}")
    config = spec.model_dump(mode="json")["config"]
    typer.echo(f"architecture  {spec.architecture}: " + ", ".join(f"{key} {_short(value)}" for key, value in config.items()))
    for line in _inputs(spec):
        typer.echo(line)
    if texts := summary(bundle.spec):
        typer.echo(f"texts         {texts}")
    if "transform" in spec.provenance:
        typer.echo(f"transform     {spec.provenance['transform']}")
    if spec.labels:
        typer.echo(f"labels        {len(spec.labels)}: {', '.join(spec.labels[:4])}{', …' if spec.labels[4:] else ''}")
    if "left_out" in spec.provenance:
        typer.echo(f"left out      {', '.join(spec.provenance['left_out'])}")
    for note in spec.provenance.get("notes", []):
        typer.echo(f"note          {note}")
    if spec.ladder:
        typer.echo(f"ladder        {', '.join(rung.name for rung in spec.ladder)} (not measured)")
    typer.echo(f"license       {spec.license}")
    if line := _format(bundle):
        typer.echo(f"format        {line}")
    typer.echo(f"written       {bundle.path} ({size(bundle.spec.size)})")


@contextmanager
def _folder_in(root: Path) -> Iterator[Path]:
    """A folder for a while, in one that is made with its parents where they are missing; these go again if the import fails."""
    absent = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".importing-", dir=root) as folder:
            yield Path(folder)
    except BaseException:
        with suppress(OSError):  # somebody else has put something there
            for made in absent:
                made.rmdir()
        raise


def _format(bundle: Bundle) -> str:
    """The number format that this computer serves the bundle in, and by how much its answers differ; empty for what is not served alone."""
    from models.bundle import BundleError
    from models.loading import not_served
    from models.registry import architectures
    from server.worker import layout, warmup

    if not_served(bundle.spec) is not None or bundle.spec.answers == "actions":  # these are members of pipelines
        return ""
    is_precise = bundle.spec.task in architectures()[bundle.spec.architecture].precise_tasks
    if bundle.spec.weights.bytes > MOST_TRIED:
        return PRECISE if is_precise else "measured by the first worker, as GET /v1/models then says; OPSIN_DTYPE=float32 pins float32"
    settings = settings_of(None)
    try:
        _, name, difference = warmup.in_the_faster_format(bundle, layout.choose(settings), settings.dtype)
    except (BundleError, ValueError, RuntimeError) as error:
        return f"unknown: it does not run here ({error})"
    if is_precise:
        return PRECISE
    if name == "float32":
        return "float32 on this computer; others may take bfloat16, if that is faster there; OPSIN_DTYPE=float32 pins float32"
    by = "an unknown amount" if difference is None else f"at most {difference:.1e}"
    return f"{name} on this computer; warm-up's answers differ from float32's by {by}; OPSIN_DTYPE=float32 pins float32"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _inputs(spec: BundleSpec) -> Iterator[str]:
    """Lines that say how images, clips and sounds become input."""
    pictures, clip, sound = spec.preprocess, spec.clip, spec.sound
    if pictures is not None:
        crop = f"{pictures.image_size} × {pictures.image_width}" if pictures.image_width else f"{pictures.image_size}"
        squeezed = "squeezed to" if pictures.fit == "squeeze" else f"squeezed to {pictures.short_side}, crop"
        how = f"short side {pictures.short_side}, crop" if pictures.fit == "crop" else squeezed
        yield f"images        {how} {crop}, {pictures.interpolation}, mean {pictures.mean}, std {pictures.std}"
    if clip is not None:
        smooth = ", smoothed where they shrink" if clip.smooth else ""
        yield f"clips         {clip.frames} frames, {clip.stride:g} apart at {clip.rate:g} a second{smooth}"
    if sound is not None:
        bank = f"{sound.frames} frames of {sound.mel_bins} mel bins"
        yield f"sound         {bank} at {sound.sample_rate} Hz, mean {sound.mean}, std {sound.std}"


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise Misuse(f"--set {text}: write KEY=VALUE, as in --set heads=4")
    return key.strip(), value.strip()
