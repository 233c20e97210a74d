"""The last request that each session answered, so that a repeated request is answered again without a second step.

Outside programs often send equal requests one after another. Therefore a retry without an idempotency key repeats the
last request only if the attempt before it has not failed, and never another request that created a session.
"""

import json
import time
from collections import OrderedDict
from typing import Any, NamedTuple

from ontogeny.server.request_identity import (
    IDEMPOTENCY_KEY_WINDOW,
    RETRY_WINDOW,
    IdempotencyKeyReused,
    RequestIdentity,
)
from ontogeny.server.store import Store

MAX_FAILED_ATTEMPTS = 10_000


class FailedAttempts:
    """Requests without an idempotency key that ended with an error: a retry of one repeats no earlier request.

    Only the last ones are kept, in memory. All calls belong to one event loop.
    """

    def __init__(self) -> None:
        self._failed_at: OrderedDict[tuple[str, str], float] = OrderedDict()  # by key and digest

    def add(self, key: str, request: RequestIdentity) -> None:
        """Remembers that a request of a key ended with an error."""
        if request.idempotency_key is None:
            self._failed_at[key, request.digest] = time.monotonic()
            if len(self._failed_at) > MAX_FAILED_ATTEMPTS:
                self._failed_at.popitem(last=False)

    def recognize(self, key: str, request: RequestIdentity) -> RequestIdentity:
        """Returns a request that has arrived; as a first attempt if the attempt before it failed."""
        failed_at = self._failed_at.pop((key, request.digest), None)
        if failed_at is None or time.monotonic() - failed_at >= RETRY_WINDOW:
            return request
        return request._replace(num_retries=0)


class AnsweredRequest(NamedTuple):
    """Columns of a session: the request that changed it last, and the part of the answer that its state lacks."""

    id: str
    request_digest: str | None
    idempotency_key: str | None
    answer: str | None  # JSON
    used_at: float


def find_answer(store: Store, key: str, deployment: str, id: str, request: RequestIdentity) -> dict[str, Any] | None:
    """Returns the stored part of the answer if a request repeats the last one of its session, otherwise None.

    Args:
        store: The database.
        key: The id of the key that owns the session.
        deployment: The name of the deployment.
        id: The session.
        request: It may repeat the last one.

    Raises:
        IdempotencyKeyReused: The last request of the session has this idempotency key and another body or route.
    """
    query = f"SELECT {', '.join(AnsweredRequest._fields)} FROM sessions WHERE id = ? AND deployment = ? AND key = ?"
    answered = store.select_one(AnsweredRequest, query, id, deployment, key)
    is_repeated = answered is not None and _is_repeated(answered, request)
    return json.loads(answered.answer or "{}") if answered is not None and is_repeated else None


def find_created_session(store: Store, key: str, deployment: str, request: RequestIdentity) -> str | None:
    """Returns the session that a repeated request has created, if no other request has changed it since, or None.

    Without an idempotency key, equal requests of several clients could not be told apart, so none is a repeat.

    Raises:
        IdempotencyKeyReused: The last request of a session has this idempotency key and another body or route.
    """
    if request.idempotency_key is None:
        return None
    query = (
        f"SELECT {', '.join(AnsweredRequest._fields)} FROM sessions WHERE key = ? AND deployment = ? "
        "AND idempotency_key = ? ORDER BY used_at DESC"
    )
    sessions = store.select(AnsweredRequest, query, key, deployment, request.idempotency_key)
    return next((answered.id for answered in sessions if _is_repeated(answered, request)), None)


def _is_repeated(answered: AnsweredRequest, request: RequestIdentity) -> bool:
    """Whether a request repeats an answered one."""
    age = time.time() - answered.used_at
    if request.idempotency_key is None:
        is_same = answered.idempotency_key is None and answered.request_digest == request.digest
        return is_same and request.num_retries > 0 and age < RETRY_WINDOW
    if answered.idempotency_key != request.idempotency_key or age >= IDEMPOTENCY_KEY_WINDOW:
        return False
    if answered.request_digest != request.digest:
        raise IdempotencyKeyReused
    return True
