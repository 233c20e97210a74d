"""Format 5: PostgreSQL collects no statistics of what users have written.

The statistics of a column contain some of its values. Users who may read the table can read them, also after an
erasure, until the table is analyzed again.
"""

from alembic import op

revision, down_revision = "5", "4"
COLUMNS = (("examples", "text", "BYTEA"), ("sessions", "state", "BYTEA"), ("sessions", "answer", "TEXT"))


def upgrade() -> None:
    """Switches the statistics off, and deletes those that exist, as a change of the type does."""
    for table, column, kind in COLUMNS:
        op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS 0")
        query = "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal AND tgrelid = "
        triggers = op.get_bind().exec_driver_sql(f"{query} '{table}'::regclass").all()
        for name, _ in triggers:  # which PostgreSQL does not permit on a column whose type changes
            op.execute(f"DROP TRIGGER {name} ON {table}")
        op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} TYPE {kind}")
        for _, definition in triggers:
            op.execute(definition)
