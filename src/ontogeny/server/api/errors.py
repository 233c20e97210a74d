"""What goes wrong, in the form that clients of the OpenAI API expect."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse


class ApiError(HTTPException):
    """An answer that is an error; `headers` go with it."""

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
    def response(self) -> JSONResponse:
        return JSONResponse(body(self.status_code, self.detail, self.code, self.param), self.status_code, self.headers)


KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def told(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Which field cannot be used, and why, of what pydantic found, which tries every form that a field may have.

    Where one form is the right one but for something in it, that is told; else that it has none of them.
    """
    tried = [error for error in errors if error["loc"][:2] == errors[0]["loc"][:2]]
    near = [error for error in tried if not error["type"].endswith("_type")] or tried
    best = max(near, key=lambda error: len(error["loc"]))
    message = best["msg"].removeprefix("Value error, ")
    if best["type"].endswith("_type") and len(tried) > 1:
        best, message = {"loc": best["loc"][:2]}, "is in none of the forms that it may have"
    return ".".join(str(part) for part in best["loc"][1:] if isinstance(part, str) and part.isidentifier()), message


def unauthorized(why: str) -> ApiError:
    return ApiError(401, why, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def forbidden(what: str) -> ApiError:
    return ApiError(403, f"{what} takes an admin key", code="insufficient_permissions")


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, code=code, param=param)


def absent(what: str, code: str = "not_found", param: str | None = None) -> ApiError:
    return ApiError(404, what, code=code, param=param)


def too_many(message: str, seconds: float, code: str = "rate_limit_exceeded") -> ApiError:
    """429; `seconds` until it is worth trying again."""
    return ApiError(429, message, code=code, headers={"Retry-After": str(max(1, round(seconds + 0.5)))})


def unavailable(message: str, code: str = "unavailable") -> ApiError:
    return ApiError(503, message, code=code, headers={"Retry-After": "5"})


DOCUMENTED: dict[int | str, dict[str, Any]] = {
    status: {
        "description": what,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    for status, what in {
        400: "Something in the request cannot be used",
        401: "No key, a wrong one or one that was revoked",
        403: "Not with this key",
        404: "There is no such thing",
        405: "Not with this method",
        408: "The request did not arrive in time",
        409: "Something else changed it meanwhile",
        413: "The request is too large",
        429: "Too many requests or tokens, or the queue is full",
        503: "Not now",
    }.items()
}
SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
