"""Migrations of the tables in PostgreSQL by Alembic; the tables of SQLite are those of `server.schema`.

Each module of `versions` is one step; a database is upgraded when a server or a command that may write opens it.
"""

from functools import cache
from pathlib import Path

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from ontogeny.errors import BadInput


def _scripts() -> ScriptDirectory:
    """The steps of this version of the package."""
    return ScriptDirectory(str(Path(__file__).parent))


@cache
def current_format() -> str:
    """The number of the last step that this version of the package knows."""
    return str(_scripts().get_current_head())


def read_format(connection: Connection) -> str | None:
    """Returns the number of the last step that a database has made, or None if it has no tables."""
    return MigrationContext.configure(connection).get_current_revision()


def check_format(connection: Connection, label: str) -> None:
    """Raises `BadInput` if a newer version of ontogeny has upgraded the database.

    Args:
        connection: Of the database.
        label: The words with which the message names the database.
    """
    number = read_format(connection)
    if number is not None and number not in {script.revision for script in _scripts().walk_revisions()}:
        raise BadInput(
            f"{label} has tables of format {number}; this version of ontogeny reads up to format {current_format()}: "
            "use a newer version"
        )


def upgrade(connection: Connection) -> None:
    """Makes all steps that are missing, within the transaction of the connection."""
    scripts = _scripts()
    environment = EnvironmentContext(
        Config(), scripts, fn=lambda revision, _: scripts._upgrade_revs("head", revision)  # type: ignore[arg-type]
    )  # fmt: skip
    with environment:
        environment.configure(connection=connection)
        environment.run_migrations()
