"""A server's database of format 3 to 7, as earlier versions wrote it."""

import contextlib
import sqlite3
from pathlib import Path

from ontogeny.server.databases.sqlite import DATABASE

FORMAT_3 = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, hash BLOB NOT NULL, is_admin INTEGER NOT NULL,
    requests_per_minute INTEGER, tokens_per_minute INTEGER, created_at REAL NOT NULL, revoked_at REAL
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
    snapshot TEXT, deleted INTEGER NOT NULL, created_at REAL NOT NULL, PRIMARY KEY (branch, number)
) WITHOUT ROWID;
CREATE TABLE decisions (
    number INTEGER PRIMARY KEY AUTOINCREMENT, branch TEXT NOT NULL, kind TEXT NOT NULL, example INTEGER,
    version INTEGER, held_out_loss REAL, reason TEXT NOT NULL, created_at REAL NOT NULL
);
CREATE INDEX decisions_by_branch ON decisions (branch, number);
CREATE TABLE sessions (
    id TEXT PRIMARY KEY, deployment TEXT NOT NULL, key TEXT NOT NULL, num_steps INTEGER NOT NULL, state BLOB NOT NULL,
    used_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX sessions_by_key ON sessions (key, used_at);
PRAGMA user_version=3;
"""

FROM_8_TO_7 = "DROP TABLE snapshot_store; PRAGMA user_version=7;"
FROM_7_TO_6 = "DROP INDEX versions_by_file; PRAGMA user_version=6;"
FROM_6_TO_5 = """
DROP INDEX branches_to_learn;
DROP INDEX decisions_of_erasures;
ALTER TABLE branches DROP COLUMN owner;
ALTER TABLE branches DROP COLUMN fence;
ALTER TABLE branches DROP COLUMN newest_example;
ALTER TABLE versions DROP COLUMN computed_by;
ALTER TABLE sessions DROP COLUMN revision;
ALTER TABLE decisions DROP COLUMN process;
PRAGMA user_version=5;
"""
FROM_5_TO_4 = """
ALTER TABLE versions DROP COLUMN steps;
ALTER TABLE decisions DROP COLUMN share;
DROP TABLE text_scores;
PRAGMA user_version=4;
"""


def copy_as_format(source: Path, target: Path, number: int) -> None:
    """Writes a state folder with a database of format 3 to 7 that has the same rows as the database in `source`."""
    if number == 3:
        return copy_as_format_3(source, target)
    target.mkdir()
    with (
        contextlib.closing(sqlite3.connect(source / DATABASE)) as current,
        contextlib.closing(sqlite3.connect(target / DATABASE)) as old,
    ):
        current.backup(old)
        old.executescript(FROM_8_TO_7)
        if number <= 6:
            old.executescript(FROM_7_TO_6)
        if number <= 5:
            old.executescript(FROM_6_TO_5)
        if number == 4:
            old.executescript(FROM_5_TO_4)


def copy_as_format_3(source: Path, target: Path) -> None:
    """Writes a state folder with a database of format 3 that has the same rows as the database in `source`."""
    target.mkdir()
    with contextlib.closing(sqlite3.connect(target / DATABASE)) as old:
        old.executescript("PRAGMA journal_mode=WAL;" + FORMAT_3)
        old.execute("ATTACH ? AS current", (str(source / DATABASE),))
        query = "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
        for (table,) in old.execute(query).fetchall():
            columns = ", ".join(column[1] for column in old.execute(f"PRAGMA main.table_info({table})"))
            old.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM current.{table}")
        old.commit()
