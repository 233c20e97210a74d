"""Format 7: branches that their owner offers to another process; what every process does with branches of others.

See `server.processes.transfers`.
"""

from alembic import op

revision, down_revision = "7", "6"
STATEMENTS = (
    'CREATE UNLOGGED TABLE offered_branches (branch TEXT COLLATE "C" PRIMARY KEY, fence BIGINT NOT NULL, '
    "process BIGINT NOT NULL, prompts TEXT NOT NULL)",
    "CREATE INDEX offered_branches_by_process ON offered_branches (process)",
    "ALTER TABLE processes ADD COLUMN allow_mixed BOOLEAN NOT NULL DEFAULT FALSE",
    "ALTER TABLE processes ADD COLUMN is_leaving BOOLEAN NOT NULL DEFAULT FALSE",
    "ALTER TABLE processes ADD COLUMN options TEXT NOT NULL DEFAULT '{}'",
)


def upgrade() -> None:
    """Adds the table, which is not logged because an offer that is lost is made again, and the columns."""
    for statement in STATEMENTS:
        op.execute(statement)
