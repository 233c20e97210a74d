"""Records of the requests that taught something or changed a branch, so that a repeated one does nothing again.

The record is written in the transaction of the example. It expires, and erasing the example removes the digest of the
text from it (see the trigger `erase_request` of the schema).
"""

import time
from typing import NamedTuple

from ontogeny.server.request_identity import (
    IDEMPOTENCY_KEY_WINDOW,
    RETRY_WINDOW,
    IdempotencyKeyReused,
    RequestIdentity,
)
from ontogeny.server.store import Store

MAX_RECORDS = 10_000  # of one API key


class LearnedRequest(NamedTuple):
    """The record of a request that taught something or changed a branch."""

    key: str
    idempotency_key: str | None
    digest: str | None  # None once the example is erased
    num_retries: int
    received_at: float
    expires_at: float
    example: int | None  # None if the text held nothing new; below 0: the version that a restoration or fork has made


COLUMNS = ", ".join(LearnedRequest._fields)


def find_record(store: Store, key: str, request: RequestIdentity) -> LearnedRequest | None:
    """Returns the record of an earlier request that this one repeats, or None.

    Without an idempotency key, a retry repeats the last request of the same content. A first attempt repeats a retry
    that was received later but overtook it.

    Raises:
        IdempotencyKeyReused: The idempotency key belongs to another request.
    """
    current_time = time.time()
    if request.idempotency_key is not None:
        query = f"SELECT {COLUMNS} FROM learned_requests WHERE key = ? AND idempotency_key = ? AND expires_at > ?"
        record = store.select_one(LearnedRequest, query, key, request.idempotency_key, current_time)
        if record is not None and record.digest not in (None, request.digest):
            raise IdempotencyKeyReused
        return record
    query = (
        f"SELECT {COLUMNS} FROM learned_requests WHERE key = ? AND digest = ? AND idempotency_key IS NULL "
        "AND expires_at > ? "
        "AND (? > 0 OR (num_retries > 0 AND received_at >= ?)) ORDER BY received_at DESC LIMIT 1"
    )
    return store.select_one(
        LearnedRequest, query, key, request.digest, current_time, request.num_retries, request.received_at
    )


def add_record(store: Store, key: str, request: RequestIdentity, example: int | None) -> None:
    """Records a request with its example and deletes expired records; must be called in a transaction.

    Raises:
        IdempotencyKeyReused: Another process has recorded another request with this idempotency key in the meantime.
    """
    current_time = time.time()
    window = RETRY_WINDOW if request.idempotency_key is None else IDEMPOTENCY_KEY_WINDOW
    query = (
        "DELETE FROM learned_requests WHERE expires_at <= ? OR (key = ? AND rowid <= "
        "(SELECT rowid FROM learned_requests WHERE key = ? ORDER BY rowid DESC LIMIT 1 OFFSET ?))"
    )
    store.execute(query, current_time, key, key, MAX_RECORDS - 1)
    record = LearnedRequest(
        key, request.idempotency_key, request.digest, request.num_retries, request.received_at, current_time + window,
        example,
    )  # fmt: skip
    query = f"INSERT INTO learned_requests ({COLUMNS}) VALUES ({', '.join('?' * len(record))}) ON CONFLICT DO NOTHING"
    if not store.execute(query, *record).rowcount:
        raise IdempotencyKeyReused
