"""A parsed request → the bundle and the plan for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from server.gateway.inference.error_mapping import of_refusal
from server.gateway.inference.stages import ParsedRequest, ResolvedRequest, item_field
from server.http.problems import Problem, ProblemKind
from server.media.part_hints import suggest_recording_part
from server.tasks.capabilities import KeepsScenes, accepted_parts, plan_of
from server.tasks.options import InvalidOption
from server.tasks.registry import default_name, serves

if TYPE_CHECKING:
    from server.gateway.app_state import Gateway


async def resolve_request(parsed: ParsedRequest, gateway: Gateway) -> ResolvedRequest:
    """Find the bundle and make the plan, then fetch the parts that are named by URL: nothing is fetched for a request that is refused.

    Raises Problem for parts that the bundle does not take or lacks, and for options beyond it; and what the fetcher raises."""
    context, interface, parts = parsed.context, parsed.interface, parsed.parts
    requested = interface.task_for(parts)
    assert requested is not None, "`parse_request` has refused it"
    spec = await gateway.directory.find(parsed.common.model, default_name(requested, parts))
    context.set_bundle(spec)
    task = next((task for task in interface.tasks if serves(task, spec)), requested)
    accepted = {part.name: part for part in accepted_parts(task, spec)}
    for name in parts:
        if name not in accepted:
            hint = f"; a bare body is its `{name}`: send a form, as with curl -F {next(iter(accepted))}=@FILE" if parsed.is_raw_body else ""
            raise Problem(ProblemKind.INVALID_OPTION, f"{spec.id} takes {', '.join(accepted)}, and no {name}{hint}", name)
    for part in accepted.values():
        if part.required and part.name not in parts:
            raise Problem(ProblemKind.INVALID_OPTION, f"missing: {spec.id} needs `{part.name}`; send it, too", part.name)
    try:
        plan = plan_of(task, parsed.options, spec)
    except InvalidOption as error:
        _check_images(parts.get("image", ()))  # the option may suit what was really sent
        raise of_refusal(error) from error
    if isinstance(task, KeepsScenes):
        plan = task.with_partition(plan, gateway.dispatcher.link.digits)
    priority = context.check_priority(parsed.common.priority)
    if parsed.urls:
        assert gateway.fetcher is not None, "`parse_request` has refused it"
        parts = {**parts, **await gateway.fetcher.fetch(parsed.urls, context.reservation, context.client)}
    if context.payload_bytes is None:
        context.payload_bytes = sum(len(content) for elements in parts.values() for content in elements)
    return ResolvedRequest(
        task,
        spec,
        plan,
        context,
        part=interface.find_repeated(parts) or next(iter(parts)),
        priority=priority,
        items=interface.items(parts),
        media_type=parsed.media_type,
        fingerprint=parsed.fingerprint,
    )


def _check_images(images: Sequence[bytes]) -> None:
    """Refuse a video or a sound that was sent as an image. Raises Problem (415)."""
    for index, content in enumerate(images):
        if reason := suggest_recording_part(content):
            raise Problem(ProblemKind.NOT_AN_IMAGE, reason, item_field("image", index, len(images)))
