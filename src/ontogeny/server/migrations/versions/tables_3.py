"""Format 3: what is left of the rate limits of keys, for all processes; see `server.processes.shared_limits`."""

from alembic import op

revision, down_revision = "3", "2"


def upgrade() -> None:
    """Adds the table. It is not logged: nobody waits for the disk, and a crash of the database fills all buckets."""
    op.execute(
        'CREATE UNLOGGED TABLE rate_limits (key TEXT COLLATE "C", unit TEXT COLLATE "C", per_minute BIGINT, '
        "level DOUBLE PRECISION NOT NULL, updated_at TIMESTAMPTZ NOT NULL, PRIMARY KEY (key, unit, per_minute)) "
        "WITH (fillfactor = 50)"
    )
