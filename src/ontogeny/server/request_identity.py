"""The features by which a request is recognized when a client sends it again.

A client names a request by an idempotency key. Without one, a request that the client counts as a retry is recognized
by its route and body.
"""

from typing import NamedTuple

IDEMPOTENCY_KEY, RETRY_COUNT = "idempotency-key", "x-stainless-retry-count"  # headers of requests
RETRY_WINDOW = 600.0  # seconds in which a retry without an idempotency key is recognized
IDEMPOTENCY_KEY_WINDOW = 24 * 3600.0  # seconds in which an idempotency key is known


class RequestIdentity(NamedTuple):
    """The features of one request."""

    digest: str  # of the route and the body
    idempotency_key: str | None
    num_retries: int  # of the client, by its own count
    received_at: float  # seconds since 1970


class IdempotencyKeyReused(Exception):
    """The idempotency key was used before, with another body or route."""
