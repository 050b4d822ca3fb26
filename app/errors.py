"""Every way in which a request can be refused, as one exception that knows its status and its code."""

from collections.abc import Mapping

RETRY_AFTER = "1"  # seconds; a queue of crops drains within about this time


class RequestError(Exception):
    """A request is refused.

    Attributes:
        status: HTTP status.
        code: stable word for programs.
        message: sentence for people: names the thing, the limit and the way out.
        headers: extra response headers.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})


class OverloadError(RequestError):
    """503: no place left for this request now; come back after `Retry-After` seconds."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(503, code, message, {"Retry-After": RETRY_AFTER})


class DeadlineError(RequestError):
    """504: the request's time ran out before its answer was ready."""

    def __init__(self) -> None:
        super().__init__(
            504, "deadline_passed", "the request's time ran out before its work was done; work not begun was dropped"
        )


class ClientGoneError(Exception):
    """The client hung up before its answer was ready."""
