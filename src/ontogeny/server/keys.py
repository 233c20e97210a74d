"""Who may use a deployment, how much, and how much they have used. Of a key only a hash is kept.

A key is `og-ID-SECRET`; the secret has 256 random bits, so that a plain SHA-256 of the key cannot be guessed back.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from ontogeny.errors import BadInput
from ontogeny.server.store import Store

NOBODY = hashlib.sha256(b"no such key").digest()

MOST_PER_MINUTE = 10**12


class Key(NamedTuple):
    id: str
    name: str
    admin: bool
    requests_per_minute: int | None  # None: as many as one likes
    tokens_per_minute: int | None
    created: float  # seconds since 1970
    revoked: float | None


LOCAL = Key("local", "local", True, None, None, 0.0, None)  # whoever is on this machine, as long as there are no keys


class UsageRecord(NamedTuple):
    key: str
    deployment: str
    day: str  # UTC
    requests: int
    prompt_tokens: int
    completion_tokens: int


def create(
    store: Store,
    name: str,
    *,
    admin: bool = False,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
) -> tuple[Key, str]:
    """A new key and its text, which can be seen this once and never again."""
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise BadInput("a key's name has 1 to 100 printable characters")
    for what, limit in (("requests", requests_per_minute), ("tokens", tokens_per_minute)):
        if limit is not None and not 1 <= limit <= MOST_PER_MINUTE:
            raise BadInput(f"a key is allowed 1 to {MOST_PER_MINUTE:,} {what} per minute, not {limit}")
    key = Key(secrets.token_hex(4), name, admin, requests_per_minute, tokens_per_minute, time.time(), None)
    text = f"og-{key.id}-{secrets.token_urlsafe(32)}"
    with store.transaction() as connection:
        connection.execute(
            "INSERT INTO keys (id, name, hash, admin, requests_per_minute, tokens_per_minute, created) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (key.id, name, _hash(text), admin, requests_per_minute, tokens_per_minute, key.created),
        )
    return key, text


def listed(store: Store) -> list[Key]:
    """All keys that ever were, oldest first."""
    return [_key(row) for row in store.connection.execute("SELECT * FROM keys ORDER BY created, id")]


def any_there(store: Store) -> bool:
    """Whether there ever was a key, revoked ones included: from then on nobody is let in without."""
    return store.connection.execute("SELECT 1 FROM keys LIMIT 1").fetchone() is not None


def revoke(store: Store, id: str) -> Key:
    """From now on this key opens nothing; one that is revoked already stays so."""
    with store.transaction() as connection:
        row = connection.execute("SELECT * FROM keys WHERE id = ?", (id,)).fetchone()
        if row is None:
            known = ", ".join(r["id"] for r in connection.execute("SELECT id FROM keys")) or "none"
            raise BadInput(f"there is no key '{id}'; there are: {known}")
        connection.execute("UPDATE keys SET revoked = coalesce(revoked, ?) WHERE id = ?", (time.time(), id))
    return _key(row)


def authenticate(store: Store, text: str) -> Key | None:
    """Whose key this is; None for wrong and revoked ones. Takes as long for a wrong secret as for the right one."""
    parts = text.split("-", 2)
    row = None
    if len(parts) == 3 and parts[0] == "og":
        row = store.connection.execute("SELECT * FROM keys WHERE id = ?", (parts[1],)).fetchone()
    same = hmac.compare_digest(_hash(text), NOBODY if row is None else row["hash"])
    return _key(row) if same and row is not None and row["revoked"] is None else None


def add_usage(store: Store, used: Iterable[UsageRecord]) -> None:
    """Adds to what is on record; all of it or nothing."""
    with store.transaction() as connection:
        connection.executemany(
            "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET requests = requests + "
            "excluded.requests, prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
            "completion_tokens = completion_tokens + excluded.completion_tokens",
            list(used),
        )


def usage(store: Store) -> list[UsageRecord]:
    """By key, deployment and day."""
    return [UsageRecord(*row) for row in store.connection.execute("SELECT * FROM usage ORDER BY day, key, deployment")]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _key(row: Any) -> Key:
    named: dict[str, Any] = {field: row[field] for field in Key._fields}
    named["admin"] = bool(named["admin"])
    return Key(**named)
