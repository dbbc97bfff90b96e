"""Errors that a call of the client can raise."""

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
        """The invalid option or image, such as `top_k` or `image[3]`."""
        self.request_id = request_id
        """ID of the request in the service's logs."""
        self.retry_after = retry_after
        """Time in seconds after which the service expects to have capacity again."""
        self.type = type
        """The kind of problem, such as `urn:opsin:bundle-unavailable`; empty if the response names none."""

    def __str__(self) -> str:
        prefix = f"{self.field}: " if self.field and not self.detail.startswith(self.field) else ""
        return f"{self.status} {self.title}: {prefix}{self.detail}" if self.status else self.detail

    @property
    def is_lasting(self) -> bool:
        """Whether a retry is pointless until the bundle is repaired."""
        return self.type == BUNDLE_UNAVAILABLE


class Refused(OpsinError):
    """The request is not valid (4xx): an unknown model, a file that is not an image, an option out of range."""


class Unavailable(OpsinError):
    """The service has no capacity (429) or is unavailable (503); the same request may succeed later. If no worker can load the bundle
    (`urn:opsin:bundle-unavailable`), it succeeds only after the bundle is repaired."""


class DeadlinePassed(OpsinError):
    """No result within the timeout (504, or the client's own timer)."""


class Failed(OpsinError):
    """The service's own fault (5xx)."""


class Unreachable(OpsinError):
    """Nothing answered at the address, the connection broke before an answer, or a proxy reports that of the service behind it."""


def error_class(status: int, *, has_problem: bool) -> type[OpsinError]:
    """Return the class of the error for a status. Opsin's 504 has a problem document, a proxy's has none; 502 is never Opsin's."""
    if status in (429, 503):
        return Unavailable
    if status == 502 or (status == 504 and not has_problem):
        return Unreachable
    if status == 504:
        return DeadlinePassed
    return Refused if status < 500 else Failed
