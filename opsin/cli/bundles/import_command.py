"""`opsin import`: a published checkpoint → a bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from opsin.cli.bundles import import_report, published_models
from opsin.cli.bundles.class_names import read as read_class_names
from opsin.cli.bundles.tokenizers import prepare_tokenizer
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.interrupts import exit_cleanly_on_sigterm
from opsin.cli.shared.requirements import requires_extra
from opsin.engine import enter

HUB_SCHEMES = ("hf://", "timm:")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model")
"""Files of a repository that hold a tokenizer."""


class ImportCommand(TyperCommand):
    """A command whose help names the model families, which are read only then, so that `opsin --help` stays fast."""

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
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR/NAME", help="Folder to write: DIR/NAME/VERSION/; with --name, DIR.")
    ] = None,
    family: Annotated[str | None, typer.Option(help="Model family, if the checkpoint's keys match more than one.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Class names: one per line, a JSON list, or a bundle.json.")] = None,
    purpose: Annotated[
        Literal["classify", "embed"] | None, typer.Option("--as", help="Task of an ONNX graph, if its signature fits several.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Config value that cannot be inferred from the checkpoint, such as heads=4. May be repeated."
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="For an image-text model: tokenizer.json, vocab.txt, vocab.json, SentencePiece's .model, or a folder."),
    ] = None,
    templates: Annotated[Path | None, typer.Option(help="With --tokenizer: sentences with {} for the label, one per line.")] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="The weights' licence, such as CC-BY-NC-4.0. [default: that of the model card]")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The bundle's name.")] = None,
    version: Annotated[str, typer.Option(help="The bundle's version.")] = "1",
    listed: Annotated[bool, typer.Option("--list", help="List the published checkpoints of all systems, and exit.")] = False,
) -> None:
    """Turn a published checkpoint into a bundle. Only tensors are read: no code in the file is ever run."""
    if listed:
        published_models.list_checkpoints()
        return
    if source is None or output is None:
        raise UsageError(
            "import: name a checkpoint and an output, as in `opsin import model.safetensors -o bundles/NAME`; --list lists files"
        )
    if purpose == "embed" and labels:
        raise UsageError("--labels: an encoder has no labels; leave out --labels, or use --as classify")
    root, name = (output, name) if name else (output.parent, output.name)
    if (root / name / version).exists():
        raise UsageError(f"{root / name / version}: exists already; choose another --version")
    labels_read = read_class_names(labels) if labels else None
    exit_cleanly_on_sigterm()
    overrides = dict(_parse_setting(text) for text in settings or [])
    import_from = find_source(source)
    file = import_from.path
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
                raise UsageError(f"import: {file}: --family is for checkpoints, not for ONNX graphs")
            weights = None
            spec, files = import_graph(
                file, purpose=purpose, labels=labels_read, overrides=overrides, name=name, version=version, license=licence
            )
        else:
            if purpose:
                raise UsageError("--as: only valid for ONNX graphs; the task of a checkpoint is inferred")
            files = {}
            spec, weights = import_checkpoint(
                file,
                family=family,
                labels=labels_read,
                overrides=overrides,
                name=name,
                version=version,
                license=licence,
                origin=import_from.origin,
            )
    except CheckpointError as error:
        is_fault = import_from.is_model and not isinstance(error, InvalidSetting)
        message = str(error).replace(str(file), source) if import_from.origin else str(error)
        raise (CommandError(f"import: {message}") if is_fault else UsageError(message)) from error
    is_from_repository = spec.task == "zero-shot" and tokenizer is None and not templates
    if spec.task == "zero-shot" and tokenizer is None:
        tokenizer = import_from.tokenizer
    if templates and not tokenizer:
        raise UsageError("--templates: only valid with --tokenizer, for an image-text model")
    try:
        with _temporary_folder(root) as folder:
            content = file
            if weights is not None:
                content = folder / "weights.safetensors"
                save_file(weights, content)
            if tokenizer:
                try:
                    text, files = prepare_tokenizer(spec, content, tokenizer, templates, folder)
                    spec = spec.model_copy(update={"text": text})
                except UsageError as error:
                    if not is_from_repository:
                        raise
                    notes = [*spec.provenance.get("notes", []), f"the tokenizer was not imported: {error}".replace(str(file), source)]
                    spec = spec.model_copy(update={"provenance": spec.provenance | {"notes": notes}})
            bundle = write(root, spec, content, files=files)
    except BundleError as error:
        raise CommandError(f"import: {error}") from error
    except (OSError, SafetensorError) as error:
        raise CommandError(f"import: {root / name / version}: cannot be written ({error})") from error

    import_report.show(bundle)


@contextmanager
def _temporary_folder(root: Path) -> Iterator[Path]:
    """Yield a temporary folder inside `root`. Missing parents are created, and removed again if the block fails."""
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".importing-", dir=root) as folder:
            yield Path(folder)
    except BaseException:
        with suppress(OSError):  # there are other files in it
            for made in missing:
                made.rmdir()
        raise


def _parse_setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise UsageError(f"--set {text}: write KEY=VALUE, as in --set heads=4")
    return key.strip(), value.strip()


@dataclass(frozen=True)
class ImportSource:
    """A file or folder to import."""

    path: Path
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Repository and commit, for the provenance; empty for local files."""

    @property
    def is_model(self) -> bool:
        """Whether it is a model folder as in hubs, with a config: failures are then not the user's mistake."""
        return (self.path / "config.json").is_file()

    @property
    def tokenizer(self) -> Path | None:
        """The folder, if it is a model folder that also has a tokenizer."""
        return self.path if self.is_model and any((self.path / name).is_file() for name in TOKENIZER_FILES) else None


def find_source(text: str) -> ImportSource:
    """Return the source named by a path, `hf://OWNER/REPO[@REVISION]` or `timm:NAME.TAG`, and download a repository.

    Raises UsageError, and CommandError if the download fails.
    """
    if not text.startswith(HUB_SCHEMES):
        return ImportSource(Path(text))
    with requires_extra("hub"):
        from opsin.hub import HubError, InvalidAddressError, fetch, parse
    try:
        address = parse(text)
        snapshot = fetch(address)
    except InvalidAddressError as error:
        raise UsageError(f"import: {error}") from error
    except HubError as error:
        raise CommandError(f"import: {error}") from error
    return ImportSource(snapshot.folder, {"repository": address.repository, "revision": snapshot.commit, "file": str(address)})
