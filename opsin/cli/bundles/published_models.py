"""`opsin models`: the published model sizes, and their cost."""

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
        typer.Argument(metavar="[NAME]...", help="Parts of names, such as `large`. [default: all]", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object per line, with the whole config.")] = False,
) -> None:
    """List the published sizes: parameters, cost of a forward pass, tokens, and the paper.

    Costs are counted here, on a model without storage: GFLOPs of one sample at its native size, a multiply-add counted as two (papers
    often count it as one).
    """
    with requires_extra("server"):
        from models.flops import dummy_forward, forward_cost
        from models.systems.published_sizes import sizes
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
