"""API keys and recorded usage. The database keeps only a hash of each key.

A key has the form `og-ID-SECRET`. The secret has 256 random bits, so a plain SHA-256 hash of the key cannot be
reversed by guessing.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ontogeny.errors import BadInput
from ontogeny.server.config import MAX_QUOTA
from ontogeny.server.store import Store

ABSENT_HASH = hashlib.sha256(b"no such key").digest()
MAX_PER_MINUTE = 10**12
LIMITS = {  # the largest value and the unit of each limit of a key
    "requests_per_minute": (MAX_PER_MINUTE, "requests per minute"),
    "tokens_per_minute": (MAX_PER_MINUTE, "tokens per minute"),
    "max_pending_examples": (MAX_QUOTA, "waiting examples"),
    "max_stored_bytes": (MAX_QUOTA, "bytes"),
    "max_sessions": (MAX_QUOTA, "sessions"),
}
COLUMNS = (
    "id, name, is_admin, requests_per_minute, tokens_per_minute, created_at, revoked_at, max_pending_examples, "
    "max_stored_bytes, max_sessions"
)


class ApiKey(NamedTuple):
    """A key as the database knows it, without its secret."""

    id: str
    name: str
    is_admin: bool
    requests_per_minute: int | None  # None: unlimited
    tokens_per_minute: int | None
    created_at: float  # seconds since 1970
    revoked_at: float | None
    max_pending_examples: int | None = None  # None: the limit of the server
    max_stored_bytes: int | None = None
    max_sessions: int | None = None


LOCAL = ApiKey("local", "local", True, None, None, 0.0, None)  # every caller, as long as no key exists


class UsageRecord(NamedTuple):
    """Requests and tokens of one key on one deployment on one day (UTC)."""

    key: str
    deployment: str
    day: str
    num_requests: int
    prompt_tokens: int
    completion_tokens: int


def create_key(
    store: Store,
    name: str,
    *,
    admin: bool = False,
    **limits: int | None,
) -> tuple[ApiKey, str]:
    """Creates a key.

    Args:
        store: The database that keeps the key.
        name: The person or program that uses the key: 1 to 100 printable characters.
        admin: Whether the key may roll back, freeze and unfreeze any branch.
        limits: Values of `LIMITS`; None or absent for no rate limit, and for the quota of the server.

    Returns:
        The key, and its text, which cannot be recovered later.

    Raises:
        BadInput: The name or a limit is outside its range.
    """
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise BadInput("the name of a key must have 1 to 100 printable characters")
    _check_limits(limits)
    key = ApiKey(secrets.token_hex(4), name, admin, None, None, time.time(), None)._replace(**limits)
    text = f"og-{key.id}-{secrets.token_urlsafe(32)}"
    with store.transaction():
        query = f"INSERT INTO keys ({COLUMNS}, hash) VALUES ({', '.join('?' * len(key))}, ?)"
        store.execute(query, *key, hash_text(text))
    return key, text


def list_keys(store: Store) -> list[ApiKey]:
    """Returns all keys, revoked ones included, in order of creation."""
    return store.select(ApiKey, f"SELECT {COLUMNS} FROM keys ORDER BY created_at, id")


def has_keys(store: Store) -> bool:
    """Whether a key was ever created; from then on every request needs a key, even if all keys are revoked."""
    return store.select_value("SELECT 1 FROM keys LIMIT 1") is not None


def has_valid_key(store: Store) -> bool:
    """Whether there is a key that is not revoked."""
    return store.select_value("SELECT 1 FROM keys WHERE revoked_at IS NULL LIMIT 1") is not None


def revoke_key(store: Store, id: str) -> ApiKey:
    """Revokes a key; a key that is already revoked stays as it is. Raises `BadInput` for an unknown id."""
    with store.transaction():
        key = _get_key(store, id)
        store.execute("UPDATE keys SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?", time.time(), id)
    return key


def change_limits(store: Store, id: str, **limits: int | None) -> ApiKey:
    """Changes limits of a key.

    Args:
        store: The database that keeps the key.
        id: The key.
        limits: New values of `LIMITS`; None for no rate limit, and for the quota of the server.

    Returns:
        The changed key.

    Raises:
        BadInput: There is no such key, or a limit is outside its range.
    """
    _check_limits(limits)
    with store.transaction():
        key = _get_key(store, id)._replace(**limits)
        for name in limits:
            store.execute(f"UPDATE keys SET {name} = ? WHERE id = ?", getattr(key, name), id)
    return key


def find_valid(store: Store, texts: Sequence[str]) -> tuple[bool, dict[str, ApiKey]]:
    """Finds keys by their texts, in one statement. Wrong and right secrets take the same time to check.

    Args:
        store: The database that keeps the keys.
        texts: Texts that may be those of keys.

    Returns:
        What `has_keys` returns, and the valid keys by text.
    """
    ids = [read_id(text) for text in texts]
    query = (  # which returns at least one record if there is any key
        f"SELECT hash, {COLUMNS} FROM keys WHERE id IN ({', '.join('?' * len(ids))}) OR id = (SELECT min(id) FROM keys)"
    )
    stored: dict[str, tuple[bytes, ApiKey]] = {}
    for hash, *fields in store.execute(query, *ids):
        key = ApiKey(*fields)
        stored[key.id] = hash, key._replace(is_admin=bool(key.is_admin))
    valid: dict[str, ApiKey] = {}
    for text, id in zip(texts, ids, strict=True):
        hash, key = stored.get(id, (ABSENT_HASH, None))
        if hmac.compare_digest(hash_text(text), hash) and key is not None and key.revoked_at is None:
            valid[text] = key
    return bool(stored), valid


def authenticate(store: Store, text: str) -> ApiKey | None:
    """Returns the valid key of this text, or None; see `find_valid`."""
    return find_valid(store, [text])[1].get(text)


def is_valid_id(store: Store, id: str) -> bool:
    """Whether requests without a secret may be those of a key: it exists and was not revoked, or none was created."""
    if id == LOCAL.id:
        return True
    return store.select_value("SELECT 1 FROM keys WHERE id = ? AND revoked_at IS NULL", id) is not None


def add_usage(store: Store, records: Iterable[UsageRecord]) -> None:
    """Adds to the recorded usage in one transaction."""
    query = (
        "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key, deployment, day) DO UPDATE SET "
        "num_requests = usage.num_requests + excluded.num_requests, "
        "prompt_tokens = usage.prompt_tokens + excluded.prompt_tokens, "
        "completion_tokens = usage.completion_tokens + excluded.completion_tokens"
    )
    with store.transaction("usage"):  # which does not hold up those who write anything else
        for record in records:
            store.execute(query, *record)


def list_usage(store: Store) -> list[UsageRecord]:
    """Returns the recorded usage by day, key and deployment."""
    return store.select(UsageRecord, "SELECT * FROM usage ORDER BY day, key, deployment")


def _check_limits(limits: Mapping[str, int | None]) -> None:
    """Raises `BadInput` for a limit outside its range."""
    for name, limit in limits.items():
        maximum, unit = LIMITS[name]
        if limit is not None and not 1 <= limit <= maximum:
            raise BadInput(f"the limit must lie between 1 and {maximum:,} {unit}, not at {limit}")


def _get_key(store: Store, id: str) -> ApiKey:
    """Returns the key of this id; raises `BadInput` if there is none."""
    key = _select_key(store, id)
    if key is None:
        ids = ", ".join(key.id for key in list_keys(store)) or "none"
        raise BadInput(f"there is no key '{id}'; existing keys: {ids}")
    return key


def _select_key(store: Store, id: str) -> ApiKey | None:
    """Returns the key of this id, or None."""
    return store.select_one(ApiKey, f"SELECT {COLUMNS} FROM keys WHERE id = ?", id)


def read_id(text: str) -> str:
    """The id in the text of a key; an empty text if it is none."""
    parts = text.split("-", 2)
    return parts[1] if len(parts) == 3 and parts[0] == "og" else ""


def hash_text(text: str) -> bytes:
    """The SHA-256 hash of the text of a key."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
