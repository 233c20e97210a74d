"""The headers by which a client says that it sends a request again."""

import hashlib

from fastapi import Request

from ontogeny.server.api import errors
from ontogeny.server.api.bodies import body_digest
from ontogeny.server.request_identity import IDEMPOTENCY_KEY, RETRY_COUNT, RequestIdentity

MAX_KEY_LENGTH = 255  # characters of an idempotency key


async def identify(request: Request) -> RequestIdentity:
    """Returns the features by which a request is recognized when it is sent again.

    Raises:
        ApiError: The idempotency key is empty or too long.
    """
    key, count = request.headers.get(IDEMPOTENCY_KEY), request.headers.get(RETRY_COUNT, "")
    if key is not None and not 0 < len(key) <= MAX_KEY_LENGTH:
        raise errors.bad_request(f"an Idempotency-Key has 1 to {MAX_KEY_LENGTH} characters")
    route = f"{request.method} {request.url.path}\n".encode()
    digest = hashlib.sha256(route + await body_digest(request)).hexdigest()
    is_count = count.isascii() and count.isdigit() and len(count) < 10
    return RequestIdentity(digest, key, int(count) if is_count else 0, request.state.received_at)
