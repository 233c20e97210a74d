"""Format 4: the store of snapshots that all processes use (`snapshot_stores.identity`), and an index of the files."""

from alembic import op

revision, down_revision = "4", "3"


def upgrade() -> None:
    """Adds the table, whose only record the next start writes, and the index with which unused files are found."""
    op.execute('CREATE TABLE snapshot_store (id TEXT COLLATE "C" NOT NULL)')
    op.execute("CREATE INDEX versions_by_file ON versions (snapshot) WHERE snapshot IS NOT NULL")
