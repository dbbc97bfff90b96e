"""Where a client wants to be told how its job has ended."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from starlette.requests import Request

from server.http.problems import Kind, Problem
from server.http.requests import PREFERENCE
from server.http.url_allowlist import NotAllowed, read
from server.queue.record import LAST_EVENTS, STATES
from server.quoting import quoted

URL, EVENTS = "X-Webhook-URL", "X-Webhook-Events"
ENDS = tuple(state for state in STATES if state in LAST_EVENTS)


@dataclass(frozen=True)
class Webhook:
    """Empty: nobody wants to be told."""

    url: str = ""
    events: str = ""
    """Those states of an ended job that count, separated by commas."""


def read_webhook(request: Request, hosts: Collection[tuple[str, int]]) -> Webhook:
    """hosts: names and ports that may be told. Raises Problem (422)."""
    url, events = _given(request)
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
            raise Problem(Kind.INVALID_OPTION, f"{quoted(event)}: use {', '.join(ENDS)}, separated by commas", EVENTS)
    return Webhook(f"https://{remote.authority}{remote.target}", ",".join(wanted))  # as the queue tells hosts apart


def refuse_webhook(request: Request) -> None:
    """Raises Problem (422) where the answer is not to come later."""
    for name, value in zip((URL, EVENTS), _given(request), strict=True):
        if value is not None:
            raise Problem(Kind.INVALID_OPTION, f"only requests with `Prefer: {PREFERENCE}` are called back", name)


def _given(request: Request) -> tuple[str | None, str | None]:
    """Raises Problem (422) for a header that is there twice."""
    given: dict[bytes, str] = {}
    for name, value in request.scope["headers"]:
        if name.startswith(b"x-webhook-"):
            if name in given:
                raise Problem(Kind.INVALID_OPTION, "given twice", URL if name == b"x-webhook-url" else EVENTS)
            given[name] = value.decode("latin-1")
    return given.get(b"x-webhook-url"), given.get(b"x-webhook-events")
