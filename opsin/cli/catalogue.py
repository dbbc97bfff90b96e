"""`opsin import --list`: the checkpoints that were published, by system."""

from __future__ import annotations

import dataclasses
from functools import cache

from opsin.cli.engine import lacks
from opsin.cli.screen import screen


def show() -> None:
    """Print the checkpoints with their address, number of parameters and licence, and what an address may be besides."""
    try:
        from models.published.catalogue import published_files
        from models.registry import hub_classes
    except ModuleNotFoundError as error:
        raise lacks(error) from error
    from rich.table import Table

    table = Table("System", "File", "Parameters", "License", "Address", box=None, header_style="bold", pad_edge=False)
    table.columns[2].justify = "right"
    for file in published_files():
        count = f"{_parameters(file.size, file.headless) / 1e6:,.1f} M" if file.size else "not stated"
        table.add_row(file.system, file.file, count, file.license or "not stated", file.address)
    screen().print(table)
    classes = ", ".join(hub_classes())
    screen().print(
        f"\nhf://OWNER/REPO takes models of transformers of the classes {classes}, and ViTs of timm; timm:NAME.TAG is hf://timm/NAME.TAG."
    )


@cache
def _parameters(size: str, headless: bool) -> int:
    """Number of parameters, counted on a model without storage."""
    from models.layers.without_memory import without_memory
    from models.registry import architectures
    from models.sizes import sizes

    found = sizes()[size]
    config = dataclasses.replace(found.config, classes=0) if headless else found.config
    with without_memory():
        return sum(parameter.numel() for parameter in architectures()[found.architecture].build(config).parameters())
