"""The tables of a server's database, and the conversion of a database of an earlier format in place.

The database holds acknowledged training examples, so it is converted rather than refused. A conversion is one
transaction: after a crash or on a full disk, the database is that of before.
"""

import re
import sqlite3
from collections.abc import Iterator

from ontogeny.runs.formats import FORMATS, SERVER_DATABASE

UNDECIDED = "NOT deferred AND erased_at IS NULL"  # the condition of an example, if its number is above `last_decided`
SCHEMA = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, hash BLOB NOT NULL, is_admin INTEGER NOT NULL,
    requests_per_minute INTEGER, tokens_per_minute INTEGER, created_at REAL NOT NULL, revoked_at REAL,
    max_pending_examples INTEGER, max_stored_bytes INTEGER, max_sessions INTEGER
) WITHOUT ROWID;
CREATE TABLE usage (
    key TEXT NOT NULL, deployment TEXT NOT NULL, day TEXT NOT NULL,
    num_requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    PRIMARY KEY (key, deployment, day)
) WITHOUT ROWID;
CREATE TABLE branches (
    branch TEXT PRIMARY KEY, deployment TEXT NOT NULL, owner_key TEXT NOT NULL, trained_digest TEXT NOT NULL,
    learner_digest TEXT NOT NULL, current_version INTEGER NOT NULL, last_decided INTEGER NOT NULL,
    epoch INTEGER NOT NULL, frozen INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE examples (
    number INTEGER PRIMARY KEY AUTOINCREMENT, branch TEXT NOT NULL, key TEXT NOT NULL, text TEXT,
    deferred INTEGER NOT NULL DEFAULT 0, erased_at REAL, created_at REAL NOT NULL
);
CREATE INDEX examples_by_branch ON examples (branch, number);
CREATE TABLE inherited_examples (
    branch TEXT NOT NULL, version INTEGER NOT NULL, example INTEGER NOT NULL, PRIMARY KEY (branch, version, example)
) WITHOUT ROWID;
CREATE INDEX inherited_by_example ON inherited_examples (example);
CREATE TABLE versions (
    branch TEXT NOT NULL, number INTEGER NOT NULL, parent INTEGER, example INTEGER, first_example INTEGER,
    last_example INTEGER, digest TEXT NOT NULL, held_out_loss REAL NOT NULL, weight_distance REAL NOT NULL,
    snapshot TEXT, deleted INTEGER NOT NULL, created_at REAL NOT NULL, source_branch TEXT, source_version INTEGER,
    root_version INTEGER NOT NULL DEFAULT 0, steps TEXT, PRIMARY KEY (branch, number)
) WITHOUT ROWID;
CREATE TABLE decisions (
    number INTEGER PRIMARY KEY AUTOINCREMENT, branch TEXT NOT NULL, kind TEXT NOT NULL, example INTEGER,
    version INTEGER, held_out_loss REAL, reason TEXT NOT NULL, created_at REAL NOT NULL, share REAL
);
CREATE INDEX decisions_by_branch ON decisions (branch, number);
CREATE TABLE sessions (
    id TEXT PRIMARY KEY, deployment TEXT NOT NULL, key TEXT NOT NULL, num_steps INTEGER NOT NULL, state BLOB NOT NULL,
    used_at REAL NOT NULL, request_digest TEXT, idempotency_key TEXT, answer TEXT
) WITHOUT ROWID;
CREATE INDEX sessions_by_key ON sessions (key, used_at);
"""
# The tables that format 4 added. An erasure stays in `unfinished_erasures` until nothing is left of its example.
ADDED_TABLES = """
CREATE TABLE unfinished_erasures (example INTEGER PRIMARY KEY);
CREATE INDEX examples_by_key ON examples (branch, key, number);
CREATE INDEX decisions_by_example ON decisions (example, number) WHERE example IS NOT NULL;
CREATE INDEX branches_by_owner ON branches (owner_key);
CREATE INDEX versions_with_snapshot ON versions (branch, number, snapshot) WHERE snapshot IS NOT NULL;
CREATE TABLE learned_requests (
    key TEXT NOT NULL, idempotency_key TEXT, digest TEXT, num_retries INTEGER NOT NULL, received_at REAL NOT NULL,
    expires_at REAL NOT NULL, example INTEGER, UNIQUE (key, idempotency_key)
);
CREATE INDEX learned_requests_by_digest ON learned_requests (key, digest);
CREATE INDEX learned_requests_by_expiry ON learned_requests (expires_at);
CREATE INDEX learned_requests_by_example ON learned_requests (example);
CREATE TRIGGER erase_request AFTER UPDATE OF text ON examples WHEN new.text IS NULL BEGIN
    DELETE FROM learned_requests WHERE example = new.number AND idempotency_key IS NULL;
    UPDATE learned_requests SET digest = NULL WHERE example = new.number; END;
CREATE TABLE default_limits (
    max_pending_examples INTEGER NOT NULL, max_stored_bytes INTEGER NOT NULL, max_sessions INTEGER NOT NULL
);
CREATE TABLE storage (
    key TEXT PRIMARY KEY, num_sessions INTEGER NOT NULL, session_bytes INTEGER NOT NULL, example_bytes INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TRIGGER add_example AFTER INSERT ON examples BEGIN
    INSERT INTO storage VALUES (new.key, 0, 0, ifnull(length(CAST(new.text AS BLOB)) + 1000, 0))
    ON CONFLICT DO UPDATE SET example_bytes = example_bytes + excluded.example_bytes; END;
CREATE TRIGGER erase_example AFTER UPDATE OF text ON examples BEGIN
    UPDATE storage SET example_bytes = example_bytes - ifnull(length(CAST(old.text AS BLOB)) + 1000, 0)
    + ifnull(length(CAST(new.text AS BLOB)) + 1000, 0) WHERE key = new.key; END;
CREATE TRIGGER add_session AFTER INSERT ON sessions BEGIN
    INSERT INTO storage VALUES (new.key, 1, length(new.state), 0) ON CONFLICT DO UPDATE
    SET num_sessions = num_sessions + 1, session_bytes = session_bytes + excluded.session_bytes; END;
CREATE TRIGGER write_session AFTER UPDATE OF state ON sessions BEGIN
    UPDATE storage SET session_bytes = session_bytes - length(old.state) + length(new.state)
    WHERE key = new.key; END;
CREATE TRIGGER delete_session AFTER DELETE ON sessions BEGIN
    UPDATE storage SET num_sessions = num_sessions - 1, session_bytes = session_bytes - length(old.state)
    WHERE key = old.key; END;
"""
# The table that format 5 added. The last columns of a record are sums over all records of its branch up to it.
TEXT_SCORES = """
CREATE TABLE text_scores (
    number INTEGER PRIMARY KEY AUTOINCREMENT, branch TEXT NOT NULL, example INTEGER NOT NULL UNIQUE,
    version INTEGER NOT NULL, num_bytes INTEGER NOT NULL, frozen_bits REAL NOT NULL, live_bits REAL NOT NULL,
    created_at REAL NOT NULL, num_texts INTEGER NOT NULL, total_bytes REAL NOT NULL, squared_bytes REAL NOT NULL,
    total_frozen_bits REAL NOT NULL, total_bits_saved REAL NOT NULL, squared_bits_saved REAL NOT NULL,
    bytes_times_bits_saved REAL NOT NULL
);
CREATE INDEX text_scores_by_branch ON text_scores (branch, number);
"""
# The columns that format 6 added, and the indexes that find branches to learn and erasures. `owner` is the
# process that learns a branch of a shared database, `fence` goes up whenever it changes; `revision` counts writes.
OWNERSHIP = """
ALTER TABLE branches ADD COLUMN owner INTEGER;
ALTER TABLE branches ADD COLUMN fence INTEGER NOT NULL DEFAULT 0;
ALTER TABLE branches ADD COLUMN newest_example INTEGER NOT NULL DEFAULT 0;
ALTER TABLE versions ADD COLUMN computed_by TEXT;
ALTER TABLE sessions ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
ALTER TABLE decisions ADD COLUMN process INTEGER;
CREATE INDEX branches_to_learn ON branches (deployment, branch) WHERE newest_example > last_decided AND NOT frozen;
CREATE INDEX decisions_of_erasures ON decisions (number) WHERE kind = 'erased';
"""
# The index that format 7 added, which finds unused files.
FILES = "CREATE INDEX IF NOT EXISTS versions_by_file ON versions (snapshot) WHERE snapshot IS NOT NULL;"
# The table that format 8 added: the S3-compatible store of the snapshots. There is no record of a folder.
SNAPSHOT_STORE = """
CREATE TABLE snapshot_store (id TEXT NOT NULL);
"""
# Finds the last example of every branch.
UPDATE_NEWEST_EXAMPLES = """
UPDATE branches SET newest_example =
    coalesce((SELECT max(number) FROM examples WHERE examples.branch = branches.branch), 0);
"""
TABLE_STATEMENTS = SCHEMA + ADDED_TABLES + TEXT_SCORES + OWNERSHIP + FILES + SNAPSHOT_STORE
TABLES = tuple(re.findall(r"CREATE TABLE (\w+)", TABLE_STATEMENTS))
# Finds for every version the one without a parent from which it descends.
UPDATE_ROOTS = """
WITH RECURSIVE paths (branch, number, root) AS (
    SELECT branch, number, number FROM versions WHERE parent IS NULL
    UNION ALL SELECT versions.branch, versions.number, root FROM versions JOIN paths
    ON versions.branch = paths.branch AND versions.parent = paths.number
) UPDATE versions SET root_version = root FROM paths
    WHERE versions.branch = paths.branch AND versions.number = paths.number AND root != 0;
"""
# From format 3 to 4: limits of storage per key, what each key stores, the last request of each session, and the
# restored versions from which others descend. From format 4 to 5: the share of its step by which each text was learned,
# and the scores of texts; before, every text was learned as a whole or not at all. From format 5 to 6: see
# `OWNERSHIP`; from format 6 to 7: `FILES`; from format 7 to 8: `SNAPSHOT_STORE`.
CONVERSIONS = {
    3: """
ALTER TABLE keys ADD COLUMN max_pending_examples INTEGER;
ALTER TABLE keys ADD COLUMN max_stored_bytes INTEGER;
ALTER TABLE keys ADD COLUMN max_sessions INTEGER;
ALTER TABLE sessions ADD COLUMN request_digest TEXT;
ALTER TABLE sessions ADD COLUMN idempotency_key TEXT;
ALTER TABLE sessions ADD COLUMN answer TEXT;
ALTER TABLE versions ADD COLUMN source_branch TEXT;
ALTER TABLE versions ADD COLUMN source_version INTEGER;
ALTER TABLE versions ADD COLUMN root_version INTEGER NOT NULL DEFAULT 0;
"""
    + UPDATE_ROOTS
    + ADDED_TABLES
    + """
INSERT INTO storage SELECT key, 0, 0, sum(ifnull(length(CAST(text AS BLOB)) + 1000, 0)) FROM examples GROUP BY key;
INSERT INTO storage SELECT key, count(*), sum(length(state)), 0 FROM sessions WHERE true GROUP BY key
    ON CONFLICT DO UPDATE SET num_sessions = excluded.num_sessions, session_bytes = excluded.session_bytes;
""",
    4: """
ALTER TABLE versions ADD COLUMN steps TEXT;
ALTER TABLE decisions ADD COLUMN share REAL;
UPDATE decisions SET share = (kind = 'learned') WHERE kind IN ('learned', 'rejected');
"""
    + TEXT_SCORES,
    5: OWNERSHIP + UPDATE_NEWEST_EXAMPLES,
    6: FILES,
    7: SNAPSHOT_STORE,
}


def create_tables(connection: sqlite3.Connection) -> None:
    """Creates the tables of an empty database; must be called in a transaction."""
    _run(connection, TABLE_STATEMENTS)


def convert_tables(connection: sqlite3.Connection, version: int) -> None:
    """Converts a database whose format is one of `CONVERSIONS`; must be called in a transaction."""
    _run(connection, "".join(CONVERSIONS[number] for number in sorted(CONVERSIONS) if number >= version))


def _run(connection: sqlite3.Connection, statements: str) -> None:
    """Runs statements, and records the current format."""
    for statement in _split(statements):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version={FORMATS[SERVER_DATABASE]}")


def _split(statements: str) -> Iterator[str]:
    """The single statements of a text; a trigger contains semicolons of its own."""
    statement = ""
    for part in statements.splitlines(keepends=True):
        statement += part
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
