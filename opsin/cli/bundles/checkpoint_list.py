"""`opsin import --list`: the checkpoints that were published, by system."""

from __future__ import annotations

import dataclasses
from functools import cache

from opsin.cli.shared.console import make_table, make_console, format_bytes
from opsin.cli.shared.requirements import requires_extra

BYTES = 4
"""Bytes of a parameter in float32, as nearly all files hold them; some hold more than the network, such as the state of an optimiser."""
WIDTH = 140
"""Columns of the table, also where the terminal has fewer: an address that is cut leads nowhere."""
NOT_STATED = "not stated"


def show() -> None:
    """Print the checkpoints with their address, size and licence, and what an address may be besides."""
    with requires_extra("server"):
        from models.checkpoints.catalogue import UNPUBLISHED, published_files
        from models.registry import hub_classes
    heads = ("System", "File", "Parameters", "In float32", "License", "Address")
    table = make_table(*heads, right=("Parameters", "In float32"))
    for file in published_files():
        count = _parameters(file.size, file.headless) if file.size else file.parameters
        told = (f"{count / 1e6:,.1f} M", format_bytes(BYTES * count)) if count else (NOT_STATED, "")
        table.add_row(file.system, file.file, *told, file.license or NOT_STATED, file.address)
    for system in UNPUBLISHED:
        table.add_row(system, "none was published")
    wide = make_console()
    wide.width = max(wide.width, WIDTH)
    wide.print(table, crop=False)
    classes = ", ".join(hub_classes())
    make_console().print(
        f"\nhf://OWNER/REPO takes models of transformers of the classes {classes}, and ViTs of timm; timm:NAME.TAG is hf://timm/NAME.TAG."
    )


@cache
def _parameters(name: str, headless: bool) -> int:
    """Number of parameters, counted on a model without storage."""
    from models.layers.meta_device import on_meta_device
    from models.registry import architectures
    from models.systems.published_sizes import sizes

    found = sizes()[name]
    config = dataclasses.replace(found.config, classes=0) if headless else found.config
    with on_meta_device():
        return sum(parameter.numel() for parameter in architectures()[found.architecture].build(config).parameters())
