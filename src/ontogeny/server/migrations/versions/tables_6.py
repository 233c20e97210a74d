"""Format 6: the requests of each key that wait, for all processes; see `server.processes.shared_queues`."""

from alembic import op

revision, down_revision = "6", "5"


def upgrade() -> None:
    """Adds the table. It is not logged: nobody waits for the disk, and every process reports its numbers again."""
    op.execute(
        'CREATE UNLOGGED TABLE waiting_requests (deployment TEXT COLLATE "C", queue TEXT COLLATE "C", '
        'key TEXT COLLATE "C", process BIGINT, num_waiting BIGINT NOT NULL, '
        "PRIMARY KEY (deployment, queue, key, process)) WITH (fillfactor = 50)"
    )
