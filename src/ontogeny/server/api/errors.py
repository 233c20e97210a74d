"""Errors in the form that clients of the OpenAI API expect."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from ontogeny.errors import StorageUnavailable
from ontogeny.server.api.validation_messages import describe_validation_errors
from ontogeny.server.quotas import QuotaExceeded

ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
UNAVAILABLE_RETRY_AFTER = "5"  # seconds
MALFORMED_BODY = "the body is not JSON in UTF-8, or has too many digits or levels"  # where the parser gives no reason
INTERNAL_ERROR = "the server failed; see its log"
GENERATION_ERROR = "an error occurred while the answer was generated, so it is not complete; see the server's log"
STORAGE_ERROR = "the server cannot use its disk or its database at present; retry later"
log = logging.getLogger(__name__)


class ErrorDetails(BaseModel):
    """An error for a person (`message`) and for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of an error response."""

    error: ErrorDetails


class ApiError(HTTPException):
    """An error response.

    Args:
        status: The HTTP status.
        message: One sentence for the person who reads the response.
        code: A short name of the error for programs.
        param: The field of the request that caused the error.
        headers: Headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers or {})
        self.code, self.param = code, param

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body of the response."""
        return error_body(self.status_code, self.detail, self.code, self.param)

    @property
    def response(self) -> JSONResponse:
        """The whole response."""
        return JSONResponse(self.body, self.status_code, self.headers)


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Returns the JSON body of an error response; see `ApiError` for the arguments."""
    type_ = ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    message = message.encode(errors="backslashreplace").decode()  # half a surrogate pair of an uploaded state
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def unauthorized(message: str) -> ApiError:
    """Creates the error of a missing, wrong or revoked key."""
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def forbidden(action: str) -> ApiError:
    """Creates the error of a key that may not perform an action; `action` is the subject of the sentence."""
    return ApiError(403, f"{action} needs an admin key", code="insufficient_permissions")


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Creates the error of a request that cannot be processed."""
    return ApiError(400, message, code=code, param=param)


def invalid_request(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Creates the error of a request with an invalid field from the errors that pydantic reports."""
    field, message = describe_validation_errors(errors)
    return bad_request(f"{field or 'the request'}: {message}", field or None)


def missing_resource(message: str, code: str = "not_found", param: str | None = None) -> ApiError:
    """Creates the error of an absent model, session, branch or example."""
    return ApiError(404, message, code=code, param=param)


def too_many_requests(message: str, seconds: float, code: str = "rate_limit_exceeded") -> ApiError:
    """Creates the error of a full queue or an exceeded limit; `seconds` is the time until a retry may succeed."""
    return ApiError(429, message, code=code, headers={"Retry-After": str(max(1, round(seconds + 0.5)))})


def insufficient_quota(error: QuotaExceeded) -> ApiError:
    """Creates the error of a key that may not store more; clients that know `x-should-retry` do not try again."""
    return ApiError(429, str(error), code="insufficient_quota", headers={"x-should-retry": "false"})


def queue_full(seconds: float) -> ApiError:
    """Creates the error of a full queue; see `too_many_requests`."""
    return too_many_requests("the queue is full; retry later", seconds, "queue_full")


def unavailable(message: str, code: str = "unavailable") -> ApiError:
    """Creates the error of a server or deployment that cannot answer now."""
    return ApiError(503, message, code=code, headers={"Retry-After": UNAVAILABLE_RETRY_AFTER})


def generation_failed() -> ApiError:
    """Creates the error of an answer that could not be completed; the log has the cause."""
    return ApiError(500, GENERATION_ERROR)


def storage_unavailable(error: StorageUnavailable) -> ApiError:
    """Creates the error of a disk that is full or fails, and logs the reason, which may name paths."""
    log.warning("a request cannot be served: %s", error)
    return unavailable(STORAGE_ERROR, "storage_unavailable")


def disconnected() -> ApiError:
    """Creates the error of a client that closed the connection."""
    return ApiError(499, "the client closed the connection", code="client_disconnected")  # only the log shows it


def timed_out() -> ApiError:
    """Creates the error of a request that exceeded the time limit before its first result."""
    return unavailable("the request exceeded the time limit; retry later", "time_limit")


RESPONSES: dict[int | str, dict[str, Any]] = {  # documented for every route
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "A field of the request is invalid.",
        401: "The key is missing, wrong or revoked.",
        403: "The request needs an admin key, or comes from a page of another origin.",
        404: "The model, session, branch or example does not exist.",
        405: "The route does not support this method.",
        408: "The request did not arrive in time.",
        409: "The deployment is frozen, or another request changed the branch in the meantime.",
        413: "The request body is too large.",
        415: "The header `Content-Type` does not say that the body is JSON.",
        421: "The server does not answer for the host of the request.",
        429: "The key exceeded its rate limit or may not store more, or the queue is full.",
        503: "The server is starting, has failed, cannot use its disk or its database, or exceeded the time limit.",
    }.items()
}
