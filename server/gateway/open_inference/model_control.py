"""Who may load and unload bundles: nobody unless the operator allows it, and never a web page from elsewhere."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.requests import Request

from server.http.problems import Kind, Problem
from server.settings import Settings
from server.tasks.options import quoted

PORTS = {"http": 80, "https": 443}


def check(request: Request, settings: Settings) -> None:
    """Raises Problem (403). Browsers name the page's origin in `Origin`; other clients send none."""
    host = request.headers.get("host", "")
    for origin in request.headers.getlist("origin"):
        if not _same(origin, host):
            raise Problem(Kind.MODEL_CONTROL, f"web pages of another origin ({quoted(origin)}) never may load or unload models")
    if settings.model_control != "explicit":
        raise Problem(Kind.MODEL_CONTROL, "loading and unloading models is off; the operator turns it on with OPSIN_MODEL_CONTROL=explicit")


def _same(origin: str, host: str) -> bool:
    """Whether an Origin's host and port are those of the Host header, which leaves out the scheme's own port."""
    try:
        page, here = urlsplit(origin), urlsplit(f"//{host}")
        port = PORTS.get(page.scheme)
        return page.hostname is not None and (page.hostname, page.port or port) == (here.hostname, here.port or port)
    except ValueError:  # no address
        return False
