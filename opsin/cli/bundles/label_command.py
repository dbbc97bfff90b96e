"""`opsin bundles label`: an image-text pair and labels → a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from opsin.cli.bundles import class_names
from opsin.cli.shared.console import format_count
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.requirements import requires_extra

if TYPE_CHECKING:
    from models.bundle import Bundle


def label_bundle(pair: Bundle, labels: Path, root: Path, name: str, version: str, templates: Sequence[str] | None) -> Bundle:
    """Write a classifier made of an image-text bundle and labels. Raises UsageError and CommandError."""
    with requires_extra("server"):
        from pydantic import ValidationError

        from models.bundle import BundleError
        from models.systems.image_text import zero_shot_classifier
    try:
        with requires_extra("server"):
            classifier, truncated = zero_shot_classifier.make_zero_shot_classifier(pair, class_names.read(labels), root, name, version, templates=templates)
    except ValidationError as error:
        raise UsageError(f"bundles label: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
    except BundleError as error:
        raise CommandError(str(error)) from error
    if truncated:
        typer.echo(f"opsin: {format_count(truncated, 'label')} truncated: longer than {pair.spec.id} reads", err=True)
    return classifier
