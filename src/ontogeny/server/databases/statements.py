"""How statements are sent to PostgreSQL: one at a time, or several together, of which none waits for the answer to
another.

SQLAlchemy opens, lends and replaces the connections, and psycopg runs the statements: text and parameters are those of
the driver anyway, and without SQLAlchemy's layer a statement takes a third of the processor time. While it waits for an
answer, a thread loses its turn to the other threads of the server, so the number of waits counts most.
"""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import psycopg

from ontogeny.server.databases.base import QueryResult, Statement

Driver = psycopg.Connection[Any]
logging.getLogger("psycopg").setLevel(logging.ERROR)  # it warns of further errors after the one that is raised


def run(driver: Driver, query: str, parameters: Sequence[Any] = ()) -> QueryResult:
    """Runs a statement, in whose text `?` stands for a parameter."""
    return _read(driver.execute(_translate(query), tuple(map(_to_parameter, parameters))))


def run_together(driver: Driver, statements: Sequence[Statement]) -> list[QueryResult]:
    """Sends statements without waiting for answers, then reads all results; none runs after one that has failed.

    A failure closes the connection, because psycopg then takes statements for prepared that PostgreSQL has not reached.
    """
    try:
        with driver.pipeline():
            cursors = [
                driver.execute(_translate(statement.query), tuple(map(_to_parameter, statement.parameters)))
                for statement in statements
            ]
    except BaseException:
        driver.close()
        raise
    return [_read(cursor) for cursor in cursors]


def run_as_text(driver: Driver, statements: Sequence[Statement]) -> list[QueryResult]:
    """Sends statements as one text that contains their parameters, and ignores their results.

    This takes less time than `run_together`. PostgreSQL's log and its list of connections may have the text, so that no
    parameter may be the text of a user.
    """
    text = b"; ".join(_translate(statement.query) for statement in statements)
    psycopg.ClientCursor(driver).execute(text, [parameter for statement in statements for parameter in statement[1]])
    return []


def is_of_storage(error: psycopg.Error) -> bool:
    """Whether an error is none of a statement, but of the connection or of the server."""
    kinds = psycopg.OperationalError | psycopg.InterfaceError | psycopg.errors.ReadOnlySqlTransaction
    return isinstance(error, kinds) or error.diag.severity_nonlocalized in ("FATAL", "PANIC")


def message_of(error: BaseException) -> str:
    """The beginning of PostgreSQL's message."""
    return (str(error).strip().splitlines() or ["no reason is known"])[0]


@cache
def _translate(query: str) -> bytes:
    """A query with the parameters of psycopg."""
    return query.replace("%", "%%").replace("?", "%s").encode()


def _to_parameter(parameter: Any) -> Any:
    """A text without the character that PostgreSQL cannot store; no name or id that is stored contains it."""
    return parameter.replace("\0", "\ufffd") if isinstance(parameter, str) else parameter


def _read(cursor: psycopg.Cursor[Any]) -> QueryResult:
    """Reads all records that a statement returned."""
    result = cursor.pgresult
    if result is None or not result.nfields:
        return QueryResult([], [], cursor.rowcount)
    columns = [(result.fname(number) or b"").decode() for number in range(result.nfields)]  # faster than `description`
    return QueryResult(cursor.fetchall(), columns, cursor.rowcount)
