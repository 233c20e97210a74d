"""Quotas of storage: how much each key may store, and how much it stores.

A key may have a number of examples that wait to be learned, a number of sessions, and a number of bytes: of the texts
of its examples, the states of its sessions and the states that were uploaded to its branches from elsewhere. (The
server limits the number of all other snapshots, because it can compute the versions without them.) Code that stores
something calls `check` in the same transaction, after the addition, so that an addition beyond a quota is undone.
Erased examples and deleted sessions free their part at once. Keys without limits of their own have those of the server.
"""

import contextlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

from ontogeny.errors import StorageUnavailable
from ontogeny.server.config import ServerConfig
from ontogeny.server.databases.base import QueryResult, Statement
from ontogeny.server.schema import UNDECIDED
from ontogeny.server.store import Store

Quota = Literal["pending_examples", "stored_bytes", "sessions"]
LIMITS = "max_pending_examples, max_stored_bytes, max_sessions"
NUM_PENDING = f"""
SELECT count(*) FROM branches {{join}} examples USING (branch)
WHERE owner_key IN (?, 'shared') AND number > last_decided AND {UNDECIDED} AND key = ?
"""
STORAGE = f"""
SELECT defaults.max_pending_examples, defaults.max_stored_bytes, defaults.max_sessions,
keys.max_pending_examples, keys.max_stored_bytes, keys.max_sessions,
coalesce(num_sessions, 0), coalesce(session_bytes + example_bytes, 0), ({NUM_PENDING})
FROM (SELECT 1) AS once LEFT JOIN default_limits AS defaults ON true
LEFT JOIN keys ON keys.id = ? LEFT JOIN storage ON storage.key = ?
"""
UPLOADED_STATES = """
SELECT DISTINCT snapshot FROM branches {join} versions {hint} USING (branch)
WHERE owner_key = ? AND parent IS NULL AND source_branch IS NULL AND snapshot IS NOT NULL
AND NOT deleted
"""
ADVICE = {
    "pending_examples": "{} examples that wait to be learned; erase some, or wait until they are learned",
    "stored_bytes": "{} bytes; delete sessions or erase examples",
    "sessions": "{} sessions; delete some",
}


class QuotaExceeded(Exception):
    """A key would store more than it may; the message is one sentence that says what to delete."""


class StorageLimits(NamedTuple):
    """How much a key may store."""

    max_pending_examples: int
    max_stored_bytes: int
    max_sessions: int


class KeyStorage(NamedTuple):
    """What a key stores, and how much it may store; a shared branch counts for the keys that sent its examples."""

    key: str
    num_pending_examples: int
    max_pending_examples: int
    num_stored_bytes: int
    max_stored_bytes: int
    num_sessions: int
    max_sessions: int


def set_default_limits(store: Store, config: ServerConfig) -> None:
    """Records the limits of keys that have none of their own, for the server and for commands."""
    limits = _limits_from(config)
    if store.select_one(StorageLimits, f"SELECT {LIMITS} FROM default_limits") != limits:
        with store.transaction():
            store.execute("DELETE FROM default_limits")
            store.insert("default_limits", limits)


def get_storage(store: Store, key: str) -> KeyStorage:
    """Returns what the key of this id stores, and its limits."""
    return read_storage(store, key, [store.run(statement) for statement in storage_statements(store, key)])


def storage_statements(store: Store, key: str) -> list[Statement]:
    """The statements that read what the key of this id stores, for `read_storage`."""
    join, hint = store.database.ordered_join, store.database.index_hint("versions_with_snapshot")
    return [
        Statement(STORAGE.format(join=join), (key, key, key, key)),
        Statement(UPLOADED_STATES.format(join=join, hint=hint), (key,)),
    ]


def read_storage(store: Store, key: str, results: Sequence[QueryResult]) -> KeyStorage:
    """Converts the results of `storage_statements`."""
    (record,), files = results
    num_sessions, num_bytes, num_pending = record[6:]
    for (file,) in files:
        with contextlib.suppress(StorageUnavailable):  # only for files of earlier versions, whose names lack the size
            num_bytes += store.snapshots.num_bytes(file)
    return KeyStorage(
        key=key,
        num_pending_examples=num_pending,
        num_stored_bytes=num_bytes,
        num_sessions=num_sessions,
        **_choose_limits(record[:3], record[3:6])._asdict(),
    )


def list_storage(store: Store) -> list[KeyStorage]:
    """Returns what every key stores that exists or stores anything."""
    query = "SELECT key FROM storage UNION SELECT id FROM keys WHERE revoked_at IS NULL ORDER BY 1"
    return [get_storage(store, key) for key in store.select_values(query)]


def check(store: Store, key: str, *quotas: Quota) -> None:
    """Raises `QuotaExceeded` if a key stores more than it may; must be called in the transaction that adds something.

    Args:
        store: The database.
        key: The id of the key.
        quotas: The quotas of which a part was added.
    """
    check_storage(get_storage(store, key), *quotas)


def check_storage(storage: KeyStorage, *quotas: Quota) -> None:
    """Raises `QuotaExceeded` if a key stores more than it may; see `check`."""
    for quota in quotas:
        number, limit = getattr(storage, f"num_{quota}"), getattr(storage, f"max_{quota}")
        if number > limit:
            advice = ADVICE[quota].format(f"{limit:,}")
            raise QuotaExceeded(f"the key may have at most {advice}")


def _choose_limits(server_limits: Sequence[int | None], key_limits: Sequence[int | None]) -> StorageLimits:
    """The limits of a key: its own ones, and those of the server where it has none."""
    defaults = _limits_from(ServerConfig())  # of a state that no server has used
    choices = zip(key_limits, server_limits, defaults, strict=True)
    return StorageLimits(*(next(limit for limit in limits if limit is not None) for limits in choices))


def _limits_from(config: ServerConfig) -> StorageLimits:
    """The limits in the settings of a server."""
    return StorageLimits(config.max_pending_examples, config.max_stored_bytes, config.max_sessions)
