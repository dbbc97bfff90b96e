"""Where a client wants to be told how its job has ended."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from server.http.problems import Kind, Problem
from server.http.requests import RESPOND_ASYNC, Head
from server.http.url_allowlist import NotAllowed, read
from server.queue.record import FINAL_EVENTS, STATES
from server.quote import quote

URL, EVENTS = "X-Webhook-URL", "X-Webhook-Events"
ENDS = tuple(state for state in STATES if state in FINAL_EVENTS)


@dataclass(frozen=True)
class Webhook:
    """Empty: nobody wants to be told."""

    url: str = ""
    events: str = ""
    """Those states of an ended job that count, separated by commas."""


def read_webhook(head: Head, hosts: Collection[tuple[str, int]]) -> Webhook:
    """hosts: names and ports that may be told. Raises Problem (422)."""
    url, events = _read_once(head)
    if url is None:
        if events is not None:
            raise Problem(Kind.INVALID_OPTION, f"given without {URL}", EVENTS)
        return Webhook()
    if not hosts:
        raise Problem(Kind.INVALID_OPTION, "this service calls nobody back (OPSIN_WEBHOOK_HOSTS)", URL)
    try:
        remote = read(url, hosts)
    except NotAllowed as error:
        raise Problem(Kind.INVALID_OPTION, f"{error}; use an https URL of a host that OPSIN_WEBHOOK_HOSTS lists", URL) from None
    wanted = ENDS if events is None else [event.strip() for event in events.split(",")]
    for event in wanted:
        if event not in ENDS:
            raise Problem(Kind.INVALID_OPTION, f"{quote(event)}: use {', '.join(ENDS)}, separated by commas", EVENTS)
    return Webhook(f"https://{remote.authority}{remote.target}", ",".join(wanted))  # as the queue tells hosts apart


def refuse_webhook(head: Head) -> None:
    """Raises Problem (422) where the answer is not to come later."""
    for name, value in zip((URL, EVENTS), _read_once(head), strict=True):
        if value is not None:
            raise Problem(Kind.INVALID_OPTION, f"only requests with `Prefer: {RESPOND_ASYNC}` are called back", name)


def _read_once(head: Head) -> tuple[str | None, str | None]:
    """Return URL and events. Raises Problem (422) if a header was sent twice."""
    for name in (URL, EVENTS):
        if len(head.raw(name.lower().encode())) > 1:
            raise Problem(Kind.INVALID_OPTION, "given twice", name)
    return head.first(b"x-webhook-url"), head.first(b"x-webhook-events")
