"""`opsin models`: the sizes that were published, by name, and what they cost."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from opsin.cli.shared.console import make_table, make_console
from opsin.cli.shared.errors import UsageError
from opsin.cli.shared.requirements import requires_extra


def models(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Parts of names, such as `large`. All if none.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with the whole config.")] = False,
) -> None:
    """List the published sizes: parameters, cost of a forward pass, tokens, and the paper.

    Costs are counted here, on a model without storage: GFLOPs of one sample at its native size, a multiply-add counted as two (papers
    often count it as one).
    """
    with requires_extra("server"):
        from models.flops import cost, native
        from models.systems.published_sizes import sizes
    chosen = [size for name, size in sizes().items() if not names or any(part in name for part in names)]
    if not chosen:
        raise UsageError(f"models: no name has {' or '.join(names or [])} in it; there are {', '.join(sizes())}")
    heads = ("Name", "System", "Parameters", "GFLOPs", "per", "Tokens", "Source")
    table = make_table(*heads, right=("Parameters", "GFLOPs", "Tokens"))
    for size in chosen:
        found = forward_cost(size.architecture, size.config)
        unit = dummy_forward(size.architecture).unit
        if as_json:
            facts = {"name": size.name, "system": size.system, "architecture": size.architecture, "source": size.source}
            typer.echo(json.dumps({**facts, **asdict(found), "unit": unit, "config": asdict(size.config)}, default=str))
            continue
        table.add_row(
            size.name,
            size.system,
            f"{found.parameters / 1e6:,.1f} M",
            f"{found.flops / 1e9:,.1f}",
            unit,
            str(found.tokens or "–"),
            size.source,
        )
    if not as_json:
        make_console().print(table)
