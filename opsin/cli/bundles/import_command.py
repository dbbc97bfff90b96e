"""`opsin import`: somebody else's checkpoint → a bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from opsin.cli.bundles import checkpoint_list, import_report, import_source
from opsin.cli.bundles.class_names import read as read_class_names
from opsin.cli.bundles.tokenizers import prepare_tokenizer
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.interrupts import exit_cleanly_on_sigterm
from opsin.cli.shared.requirements import requires_extra
from opsin.engine import enter


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
    purpose: Annotated[
        Literal["classify", "embed"] | None,
        typer.Option("--as", help="Task of an ONNX graph, where nothing else tells which.", show_default=False),
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
        checkpoint_list.show()
        return
    if source is None or output is None:
        raise UsageError("import: say what to import and where to, as in `opsin import model.safetensors -o bundles/NAME`; --list lists files")
    if purpose == "embed" and labels:
        raise UsageError("--labels: an encoder has none; leave out --labels, or say --as classify")
    root, name = (output, name) if name else (output.parent, output.name)
    if (root / name / version).exists():
        raise UsageError(f"{root / name / version}: exists already; choose another --version")
    class_names = read_class_names(labels) if labels else None
    exit_cleanly_on_sigterm()
    overrides = dict(_setting(text) for text in settings or [])
    found = import_source.find(source)
    file = found.path
    with requires_extra("server"):
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        from models.bundle import BundleError, write
        from models.checkpoints.checkpoint_file import CheckpointError, InvalidSetting
        from models.checkpoints.import_checkpoint import import_checkpoint
        from models.systems.onnx.import_graph import SUFFIX, import_graph
    try:
        if file.suffix.lower() == SUFFIX:
            if family:
                raise UsageError(f"import: {file}: a graph's signature tells what it is; --family is for checkpoints")
            weights = None
            spec, files = import_graph(
                file, purpose=purpose, labels=class_names, overrides=overrides, name=name, version=version, license=licence
            )
        else:
            if purpose:
                raise UsageError("--as: a checkpoint tells its task itself; --as is for ONNX graphs")
            files = {}
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
        is_fault = found.is_model and not isinstance(error, InvalidSetting)
        told = str(error).replace(str(file), source) if found.origin else str(error)
        raise (CommandError(f"import: {told}") if is_fault else UsageError(told)) from error
    of_repository = spec.task == "zero-shot" and tokenizer is None and not templates
    if spec.task == "zero-shot" and tokenizer is None:
        tokenizer = found.tokenizer
    if templates and not tokenizer:
        raise UsageError("--templates needs --tokenizer, and a pair of images and texts: nothing else reads texts")
    try:
        with _folder_in(root) as folder:
            content = file
            if weights is not None:
                content = folder / "weights.safetensors"
                save_file(weights, content)
            if tokenizer:
                try:
                    text, files = prepare_tokenizer(spec, content, tokenizer, templates, folder)
                    spec = spec.model_copy(update={"text": text})
                except UsageError as error:
                    if not of_repository:
                        raise
                    notes = [*spec.provenance.get("notes", []), f"the tokenizer is not taken: {error}".replace(str(file), source)]
                    spec = spec.model_copy(update={"provenance": spec.provenance | {"notes": notes}})
            bundle = write(root, spec, content, files=files)
    except BundleError as error:
        raise CommandError(f"import: {error}") from error
    except (OSError, SafetensorError) as error:
        raise CommandError(f"import: {root / name / version}: cannot be written ({error})") from error

    import_report.show(bundle)


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


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise UsageError(f"--set {text}: write KEY=VALUE, as in --set heads=4")
    return key.strip(), value.strip()
