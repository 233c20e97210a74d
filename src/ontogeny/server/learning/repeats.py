"""Records of the requests that taught something or changed a branch, so that a repeated one does nothing again.

The record is written in the transaction of the example. It expires, and erasing the example removes the digest of the
text from it (see the trigger `erase_request` of the schema).
"""

import time
from typing import Any, NamedTuple

from ontogeny.server.databases.base import QueryResult, Statement
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
    return read_record(store, request, store.run(record_query(key, request)))


def record_query(key: str, request: RequestIdentity) -> Statement:
    """The statement that searches for the record of an earlier request, for `read_record`; see `find_record`."""
    current_time = time.time()
    if request.idempotency_key is not None:
        query = f"SELECT {COLUMNS} FROM learned_requests WHERE key = ? AND idempotency_key = ? AND expires_at > ?"
        return Statement(query, (key, request.idempotency_key, current_time))
    query = (
        f"SELECT {COLUMNS} FROM learned_requests WHERE key = ? AND digest = ? AND idempotency_key IS NULL "
        "AND expires_at > ? "
        "AND (? > 0 OR (num_retries > 0 AND received_at >= ?)) ORDER BY received_at DESC LIMIT 1"
    )
    return Statement(query, (key, request.digest, current_time, request.num_retries, request.received_at))


def read_record(store: Store, request: RequestIdentity, result: QueryResult) -> LearnedRequest | None:
    """Converts the result of `record_query`; see `find_record`."""
    record = next(iter(store.read_records(LearnedRequest, result)), None)
    if request.idempotency_key is not None and record is not None and record.digest not in (None, request.digest):
        raise IdempotencyKeyReused
    return record


def add_record(store: Store, key: str, request: RequestIdentity, example: int | None) -> None:
    """Records a request with its example and deletes expired records; must be called in a transaction.

    Raises:
        IdempotencyKeyReused: Another process has recorded another request with this idempotency key in the meantime.
    """
    deletion, addition = record_statements(key, request, "?", example)
    store.run(deletion)
    if not store.run(addition).rowcount:
        raise IdempotencyKeyReused


def record_statements(key: str, request: RequestIdentity, example: str, *parameters: Any) -> list[Statement]:
    """The statements that record a request and delete expired records; the last one changes nothing if it has a record.

    Args:
        key: The API key that sent the request.
        request: What identifies it.
        example: An expression for the number of its example.
        *parameters: Of the expression.
    """
    current_time = time.time()
    window = RETRY_WINDOW if request.idempotency_key is None else IDEMPOTENCY_KEY_WINDOW
    deletion = (
        "DELETE FROM learned_requests WHERE expires_at <= ? OR (key = ? AND rowid <= "
        "(SELECT rowid FROM learned_requests WHERE key = ? ORDER BY rowid DESC LIMIT 1 OFFSET ?))"
    )
    query = f"INSERT INTO learned_requests ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, {example}) ON CONFLICT DO NOTHING"
    record = (
        key, request.idempotency_key, request.digest, request.num_retries, request.received_at, current_time + window
    )  # fmt: skip
    return [
        Statement(deletion, (current_time, key, key, MAX_RECORDS - 1)),
        Statement(query, (*record, *parameters)),
    ]
