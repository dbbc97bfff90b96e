"""Webhook headers: the URL that a client wants to be notified at when its job ends."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from server.http.problems import Problem, ProblemKind
from server.http.requests import RESPOND_ASYNC, Head
from server.http.url_allowlist import AddressNotAllowed, parse_remote_url
from server.queue.record import FINAL_EVENTS, STATES
from server.quote import quote

URL, EVENTS = "X-Webhook-URL", "X-Webhook-Events"
FINAL_STATES = tuple(state for state in STATES if state in FINAL_EVENTS)


@dataclass(frozen=True)
class Webhook:
    """A webhook; empty if the client wants none."""

    url: str = ""
    events: str = ""
    """States of an ended job that are reported, separated by commas."""


def read_webhook(head: Head, hosts: Collection[tuple[str, int]]) -> Webhook:
    """Return the webhook of a request. hosts: names and ports that may be called. Raises Problem (422)."""
    url, events = _read_once(head)
    if url is None:
        if events is not None:
            raise Problem(ProblemKind.INVALID_OPTION, f"given without {URL}", EVENTS)
        return Webhook()
    if not hosts:
        raise Problem(ProblemKind.INVALID_OPTION, "this service has no webhooks (OPSIN_WEBHOOK_HOSTS)", URL)
    try:
        remote = parse_remote_url(url, hosts)
    except AddressNotAllowed as error:
        raise Problem(ProblemKind.INVALID_OPTION, f"{error}; use an https URL of a host that OPSIN_WEBHOOK_HOSTS lists", URL) from None
    states = FINAL_STATES if events is None else [event.strip() for event in events.split(",")]
    for state in states:
        if state not in FINAL_STATES:
            raise Problem(ProblemKind.INVALID_OPTION, f"{quote(state)}: use {', '.join(FINAL_STATES)}, separated by commas", EVENTS)
    return Webhook(f"https://{remote.authority}{remote.target}", ",".join(states))  # as the queue tells hosts apart


def refuse_webhook(head: Head) -> None:
    """Refuse webhooks of a request that is not asynchronous. Raises Problem (422)."""
    for name, value in zip((URL, EVENTS), _read_once(head), strict=True):
        if value is not None:
            raise Problem(ProblemKind.INVALID_OPTION, f"only requests with `Prefer: {RESPOND_ASYNC}` are called back", name)


def _read_once(head: Head) -> tuple[str | None, str | None]:
    """Return URL and events. Raises Problem (422) if a header was sent twice."""
    for name in (URL, EVENTS):
        if len(head.raw(name.lower().encode())) > 1:
            raise Problem(ProblemKind.INVALID_OPTION, "given twice", name)
    return head.first(b"x-webhook-url"), head.first(b"x-webhook-events")
