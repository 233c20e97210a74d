"""The errors that the application of a server answers in the form of the OpenAI API."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as RoutingError
from starlette.requests import ClientDisconnect

from ontogeny.engine.engine import QueueFull
from ontogeny.errors import StorageUnavailable
from ontogeny.renamed import renamed_hint
from ontogeny.server.api.errors import (
    INTERNAL_ERROR,
    MALFORMED_BODY,
    ApiError,
    bad_request,
    disconnected,
    error_body,
    insufficient_quota,
    invalid_request,
    queue_full,
    storage_unavailable,
    unavailable,
)
from ontogeny.server.api.validation_messages import describe_media_type
from ontogeny.server.learning.loading import BranchUnavailable
from ontogeny.server.processes.ownership import OwnedElsewhere
from ontogeny.server.quotas import QuotaExceeded
from ontogeny.server.request_identity import IdempotencyKeyReused
from ontogeny.server.sessions.store import SessionChanged

ROUTING_MESSAGES = {
    400: MALFORMED_BODY,
    404: "there is no such route; /docs lists all routes",
    405: "the route does not support this method; /docs lists all routes",
}
REUSED_KEY = "this Idempotency-Key was used before for another request; choose another key"


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
