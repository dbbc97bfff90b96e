"""`opsin capacity`: how many workers, gateways and cells a load needs, by what a running service has measured of itself."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from opsin.cli.shared.console import format_bytes, make_console, make_table
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.options import Timeout, Url
from opsin.errors import OpsinError

if TYPE_CHECKING:
    from opsin.cli.capacity.plan import CapacityPlan


def capacity(
    rate: Annotated[float, typer.Option(help="Items (images, clips, texts) per second to plan for.")],
    mix: Annotated[
        list[str] | None, typer.Option(help="Shares of the bundles, as in flags=3,words=1. [default: as the service measured]")
    ] = None,
    objective: Annotated[float | None, typer.Option(help="Seconds within which 99 % of the answers should come.")] = None,
    load: Annotated[float, typer.Option(help="Share of the capacity that the rate may use; the rest is headroom.")] = 0.7,
    workers: Annotated[int | None, typer.Option(help="Predict for this number of workers, instead of finding it.")] = None,
    jobs: Annotated[float, typer.Option(help="Share of the items that belong to asynchronous jobs.")] = 0.0,
    result_ttl: Annotated[float, typer.Option(help="OPSIN_RESULT_TTL of the service, in seconds.")] = 3600.0,
    window: Annotated[
        float, typer.Option(help="Use what the service measures in the next seconds. [default: what it measured since its start]")
    ] = 0.0,
    url: Url = None,
    timeout: Timeout = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Plan workers, gateways, cells and Redis memory for a load.

    The figures are the service's own measurements of its batches, gateways and payloads. Those of Redis are in docs/scaling.md.
    """
    from opsin.cli.capacity.measurements import measure
    from opsin.cli.capacity.plan import CapacityRequest, plan
    from opsin.connection import ServiceConnection

    _require("--rate", rate)
    _require("--load", load, 1.0)
    for option, value in (("--objective", objective), ("--workers", workers), ("--result-ttl", result_ttl)):
        if value is not None:
            _require(option, value)
    if not 0 <= jobs <= 1:
        raise UsageError(f"--jobs: {jobs:g}; it must be from 0 to 1")
    if not (0 <= window < math.inf):
        raise UsageError(f"--window: {window:g} seconds; it must be 0 or more")
    request = CapacityRequest(rate, parse_mix(mix or ()), load, objective, workers, jobs, result_ttl)
    service = ServiceConnection(url, None, timeout, 2, None)
    try:
        with service.http:
            result = plan(measure(service, window), request)
    except OpsinError as error:
        raise CommandError(f"capacity: {error}") from error
    if as_json:
        typer.echo(json.dumps(asdict(result), indent=2))
    else:
        _show(result, load)


def parse_mix(values: Sequence[str]) -> dict[str, float]:
    """Parse `NAME=SHARE,…`; a name alone has share 1. Raises UsageError."""
    shares: dict[str, float] = {}
    for part in (part.strip() for value in values for part in value.split(",")):
        name, has_share, share = part.partition("=")
        try:
            number = float(share) if has_share else 1.0
        except ValueError:
            number = math.nan
        if not name or not 0 < number < math.inf:
            raise UsageError(f"--mix: {part!r}; it must be NAME=SHARE, with a share above 0, as in flags=3,words=1")
        shares[name] = shares.get(name, 0.0) + number
    return shares


def _require(option: str, value: float, largest: float = math.inf) -> None:
    if not 0 < value <= largest or math.isinf(value):
        limit = "positive" if math.isinf(largest) else f"above 0 and at most {largest:g}"
        raise UsageError(f"{option}: {value:g}; it must be {limit}")


def _show(plan: CapacityPlan, load: float) -> None:
    table = make_table("", "Needed", "Now", "By", right=("Needed", "Now"), title=f"{plan.rate:g} items/s at {load:.0%} of the capacity")
    workers, gateways, redis = plan.workers, plan.gateways, plan.redis
    slots = f"{workers.slots} {'batch' if workers.slots == 1 else 'batches'} at once"
    table.add_row("Workers", str(workers.count), str(workers.running), f"{workers.items_per_second:.3g} items/s each, {slots}")
    table.add_row("", "", "", f"load {workers.load:.0%}, slots busy {workers.busy:.0%}, batches of {workers.batch_size:.2g}")
    table.add_row("", "", "", f"99 % of the answers within {workers.p99_s:.3g} s; KEDA itemsPerWorker: {workers.items_per_worker}")
    by_cpu = f"{gateways.cpu_s_per_item * 1e3:.3g} ms of CPU per item, {gateways.cores:.2g} cores in all"
    table.add_row("Gateways", str(gateways.count), str(gateways.running), by_cpu)
    by_redis = f"{redis.cpu_s_per_item * 1e3:.3g} ms of CPU per item, {format_bytes(redis.bytes_per_second)}/s"
    table.add_row("Cells", str(redis.cells), "", by_redis)
    by_bytes = f"unfinished items {format_bytes(redis.unfinished_bytes)}, kept results {format_bytes(redis.result_bytes)}"
    used = "" if redis.used_bytes is None else format_bytes(redis.used_bytes)
    table.add_row("Redis memory", format_bytes(redis.memory_bytes), used, by_bytes)
    console = make_console()
    console.print(table)
    for bundle in plan.bundles:
        console.print(
            f"{bundle.bundle}: {bundle.rate:.3g} items/s, {bundle.seconds_per_item * 1e3:.3g} ms each in batches of up to "
            f"{bundle.batch_limit}, {format_bytes(bundle.payload_bytes)}; {bundle.measured_items} items measured",
            markup=False,
            soft_wrap=True,
        )
