"""`opsin models` and `opsin import --list`: the published model sizes with their cost, and the checkpoints of each system."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict
from functools import cache
from typing import Annotated

import typer

from opsin.cli.shared.console import format_bytes, make_console, make_table
from opsin.cli.shared.errors import UsageError
from opsin.cli.shared.requirements import requires_extra

FLOAT32_BYTES = 4
"""Bytes per parameter in float32, as in nearly all files. Some files also hold the state of an optimiser."""
MIN_WIDTH_CHARS = 140
"""Minimum width of the table, even on narrow terminals: a truncated address is useless."""
NOT_STATED = "not stated"


def models(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Parts of names, such as `large`. [default: all]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object per line, with the whole config.")] = False,
) -> None:
    """List the published sizes: parameters, cost of a forward pass, tokens, and the paper.

    Costs are counted here, on a model without storage: GFLOPs of one sample at its native size, a multiply-add counted as two (papers
    often count it as one).
    """
    with requires_extra("server"):
        from models.flops import dummy_forward, forward_cost
        from models.registry import sizes
    chosen = [size for name, size in sizes().items() if not names or any(part in name for part in names)]
    if not chosen:
        raise UsageError(f"models: no name contains {' or '.join(names or [])}; available: {', '.join(sizes())}")
    heads = ("Name", "System", "Parameters", "GFLOPs", "per", "Tokens", "Source")
    table = make_table(*heads, right=("Parameters", "GFLOPs", "Tokens"))
    for size in chosen:
        model_cost = forward_cost(size.architecture, size.config)
        unit = dummy_forward(size.architecture).unit
        if as_json:
            facts = {"name": size.name, "system": size.system, "architecture": size.architecture, "source": size.source}
            typer.echo(json.dumps({**facts, **asdict(model_cost), "unit": unit, "config": asdict(size.config)}, default=str))
            continue
        table.add_row(
            size.name,
            size.system,
            f"{model_cost.parameters / 1e6:,.1f} M",
            f"{model_cost.flops / 1e9:,.1f}",
            unit,
            str(model_cost.tokens or "–"),
            size.source,
        )
    if not as_json:
        make_console().print(table)


def list_checkpoints() -> None:
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
    from models.registry import architectures, sizes

    published = sizes()[name]
    config = dataclasses.replace(published.config, classes=0) if headless else published.config
    with on_meta_device():
        return sum(parameter.numel() for parameter in architectures()[published.architecture].build(config).parameters())
