"""Errors in which a call can end instead of a result."""

from __future__ import annotations

BUNDLE_UNAVAILABLE = "urn:opsin:bundle-unavailable"


class OpsinError(Exception):
    """A call that the service did not answer with a result. The fields are those of its problem document (RFC 9457)."""

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        title: str = "",
        field: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        type: str = "",
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        """The HTTP status; None if there was no answer at all."""
        self.title = title
        self.field = field
        """The option or image that is to blame, such as `top_k` or `image[3]`."""
        self.request_id = request_id
        """Under which the service's logs speak of this request."""
        self.retry_after = retry_after
        """Seconds after which the service expects to have room again."""
        self.type = type
        """The kind of problem, as `urn:opsin:bundle-unavailable`; empty where nothing said so."""

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field and not self.detail.startswith(self.field) else ""
        return f"{self.status} {self.title}: {where}{self.detail}" if self.status else self.detail

    @property
    def is_lasting(self) -> bool:
        """Whether the same request would be refused again, however long one waits, until somebody mends the bundle."""
        return self.type == BUNDLE_UNAVAILABLE


class Refused(OpsinError):
    """The request cannot be served as it is (4xx): an unknown model, a file that is no image, an option out of range."""


class Unavailable(OpsinError):
    """The service has no room (429) or cannot work just now (503); the same request may succeed later. Of a bundle that no worker can load
    (`urn:opsin:bundle-unavailable`) it will once the bundle is mended."""


class DeadlinePassed(OpsinError):
    """No result within the timeout (504, or the client's own timer)."""


class Failed(OpsinError):
    """The service's own fault (5xx)."""


class Unreachable(OpsinError):
    """Nothing answered at the address, the connection broke before an answer came, or a proxy says so of the service behind it."""


def of_status(status: int, *, told: bool) -> type[OpsinError]:
    """told: the response has a problem document. Opsin's 504 has one, a proxy's has not; 502 is never Opsin's."""
    if status in (429, 503):
        return Unavailable
    if status == 502 or (status == 504 and not told):
        return Unreachable
    if status == 504:
        return DeadlinePassed
    return Refused if status < 500 else Failed
