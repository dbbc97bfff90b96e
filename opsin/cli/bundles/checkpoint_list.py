"""`opsin import --list`: the published checkpoints of each system."""

from __future__ import annotations

import dataclasses
from functools import cache

from opsin.cli.shared.console import make_table, make_console, format_bytes
from opsin.cli.shared.requirements import requires_extra

FLOAT32_BYTES = 4
"""Bytes per parameter in float32, as in nearly all files. Some files also hold the state of an optimiser."""
MIN_WIDTH_CHARS = 140
"""Minimum width of the table, even on narrow terminals: a truncated address is useless."""
NOT_STATED = "not stated"


def show() -> None:
    """Print the checkpoints with their addresses, sizes and licences, and the other kinds of addresses."""
    with requires_extra("server"):
        from models.checkpoints.catalogue import UNPUBLISHED, published_files
        from models.registry import hub_classes
    heads = ("System", "File", "Parameters", "In float32", "License", "Address")
    table = make_table(*heads, right=("Parameters", "In float32"))
    for file in published_files():
        count = _count_parameters(file.size, file.headless) if file.size else file.parameters
        figures = (f"{count / 1e6:,.1f} M", format_bytes(FLOAT32_BYTES * count)) if count else (NOT_STATED, "")
        table.add_row(file.system, file.file, *figures, file.license or NOT_STATED, file.address)
    for system in UNPUBLISHED:
        table.add_row(system, "none published")
    console = make_console()
    console.width = max(console.width, MIN_WIDTH_CHARS)
    console.print(table, crop=False)
    classes = ", ".join(hub_classes())
    make_console().print(
        f"\nhf://OWNER/REPO takes models of transformers of the classes {classes}, and ViTs of timm; timm:NAME.TAG is hf://timm/NAME.TAG."
    )


@cache
def _count_parameters(name: str, headless: bool) -> int:
    """Count the parameters of a published size, on a model without storage."""
    from models.layers.meta_device import on_meta_device
    from models.registry import architectures
    from models.systems.published_sizes import sizes

    published = sizes()[name]
    config = dataclasses.replace(published.config, classes=0) if headless else published.config
    with on_meta_device():
        return sum(parameter.numel() for parameter in architectures()[published.architecture].build(config).parameters())
