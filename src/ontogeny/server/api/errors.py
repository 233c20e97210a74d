"""Errors in the form that clients of the OpenAI API expect."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as RoutingError
from starlette.requests import ClientDisconnect

from ontogeny.engine.engine import QueueFull
from ontogeny.errors import StorageUnavailable
from ontogeny.renamed import renamed_hint
from ontogeny.server.api.validation_messages import describe_media_type, describe_validation_errors
from ontogeny.server.learning.loading import BranchUnavailable
from ontogeny.server.processes.ownership import OwnedElsewhere
from ontogeny.server.quotas import QuotaExceeded
from ontogeny.server.request_identity import IdempotencyKeyReused
from ontogeny.server.sessions.store import SessionChanged

ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
UNAVAILABLE_RETRY_AFTER = "5"  # seconds
MALFORMED_BODY = "the body is not JSON in UTF-8, or has too many digits or levels"  # where the parser gives no reason
ROUTING_MESSAGES = {
    400: MALFORMED_BODY,
    404: "there is no such route; /docs lists all routes",
    405: "the route does not support this method; /docs lists all routes",
}
REUSED_KEY = "this Idempotency-Key was used before for another request; choose another key"
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


def add_error_handlers(app: FastAPI) -> None:
    """Makes an application answer every error in the form of the OpenAI API."""

    @app.exception_handler(ApiError)
    async def handle_api_error(request: Request, error: ApiError) -> JSONResponse:
        return error.response

    @app.exception_handler(ClientDisconnect)
    async def handle_disconnect(request: Request, error: ClientDisconnect) -> JSONResponse:
        return disconnected().response

    @app.exception_handler(QueueFull)
    async def handle_full_queue(request: Request, error: QueueFull) -> JSONResponse:
        return queue_full(error.retry_after).response

    @app.exception_handler(StorageUnavailable)
    async def handle_storage_error(request: Request, error: StorageUnavailable) -> JSONResponse:
        return storage_unavailable(error).response

    @app.exception_handler(QuotaExceeded)
    async def handle_quota_error(request: Request, error: QuotaExceeded) -> JSONResponse:
        return insufficient_quota(error).response

    @app.exception_handler(IdempotencyKeyReused)
    async def handle_reused_key(request: Request, error: IdempotencyKeyReused) -> JSONResponse:
        return bad_request(REUSED_KEY, code="idempotency_key_reused").response

    @app.exception_handler(RoutingError)
    async def handle_routing_error(request: Request, error: RoutingError) -> JSONResponse:
        hints = [renamed_hint("route", f"/{segment}") for segment in request.scope["path"].split("/")]
        hint = next((hint for hint in hints if hint is not None), None) if error.status_code == 404 else None
        body = error_body(error.status_code, hint or ROUTING_MESSAGES.get(error.status_code, str(error.detail)))
        return JSONResponse(body, error.status_code, dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def handle_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = error.errors()
        is_body = errors[0]["loc"][0] == "body"
        if is_body and error.body and (media_type_error := describe_media_type(request.headers)) is not None:
            return ApiError(415, media_type_error, code="unsupported_media_type").response
        if errors[0]["type"] == "missing" and errors[0]["loc"] == ("body",):
            return bad_request("the request has no body; it must be JSON").response
        return invalid_request(errors).response

    @app.exception_handler(BranchUnavailable)
    async def handle_unavailable_branch(request: Request, error: BranchUnavailable) -> JSONResponse:
        return unavailable(str(error), "branch_unavailable").response

    @app.exception_handler(SessionChanged)
    async def handle_changed_session(request: Request, error: SessionChanged) -> JSONResponse:
        return unavailable(
            "other requests change the session at the same time; retry later", "session_changed"
        ).response

    @app.exception_handler(OwnedElsewhere)
    async def handle_other_owner(request: Request, error: OwnedElsewhere) -> JSONResponse:
        request.scope["state"]["owned_elsewhere"] = error  # for `RequestForwarding`, which drops this response
        return unavailable("another process owns the branch; retry", "owner").response

    @app.exception_handler(Exception)
    async def handle_internal_error(request: Request, error: Exception) -> JSONResponse:
        return ApiError(500, INTERNAL_ERROR).response


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
