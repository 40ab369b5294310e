"""Errors in the API's own shape: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from typing import Final

from starlette.responses import JSONResponse

from sightrail.guardrails.errors import (
    Abandoned,
    ConfigurationError,
    DeadlineExceeded,
    ImageError,
    ImageRefused,
    MissingDependencyError,
    PromptError,
    RequestRefused,
    UnsupportedModelError,
)


class ApiError(Exception):
    """What a client is told.

    Args:
        status: of HTTP.
        message: says what is wrong and what to do; never holds content of the request.
        code: for programs.
        param: the field it is about.
        retry_after_s: when to try again.
        kind: its type in the API; by its status where None.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
        kind: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s
        by_status = _TYPES.get(status, "server_error" if status >= 500 else _INVALID)
        self.body = {
            "error": {
                "message": message,
                "type": kind or by_status,
                "param": param,
                "code": code,
            }
        }

    def response(self) -> JSONResponse:
        """The answer to the client."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


_INVALID: Final = "invalid_request_error"
_TYPES: Final = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    504: "timeout_error",
}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The client's own mistake."""
    return ApiError(400, message, param=param, code=code)


def api_error(error: Exception) -> ApiError:
    """What a client is told about an exception; nothing of the inside for one nobody foresaw."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, DeadlineExceeded | TimeoutError):
        return ApiError(504, "The answer was not there in time.", code="timeout")
    if isinstance(error, ImageRefused | RequestRefused):
        return ApiError(400, "The policy refuses this request.", code="content_filter")
    if isinstance(error, PromptError | ConfigurationError | ImageError):
        return invalid(str(error))
    if isinstance(error, UnsupportedModelError | MissingDependencyError):
        return invalid(str(error), code="not_supported")
    if isinstance(error, Abandoned):
        return ApiError(499, "The client went away.", code="abandoned")
    return ApiError(500, "The server failed on this request.", code="internal_error")
