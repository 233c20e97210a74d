"""PostgreSQL, through SQLAlchemy and psycopg 3.

A transaction is durable when it is committed (`synchronous_commit=on`). One without a scope takes an advisory lock that
excludes all others, so that it may read and write anything. One with a scope shares that lock, and takes another one
that excludes the same scope. A server that does not answer in the middle of a transaction loses its connection, so that
it cannot hold up the others. Every failure of the connection is a `StorageUnavailable`, after which the database can be
used as before. `availability` says how long a call waits for a database that does not answer, and `statements` how
statements are sent.
"""

import contextlib
import hashlib
import logging
import secrets
import selectors
import threading
import time
import weakref
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import psycopg
import sqlalchemy
from sqlalchemy import Connection, event, exc

from ontogeny.errors import BadInput, CommitUnknown, StorageDamaged, StorageUnavailable
from ontogeny.server import migrations, schema
from ontogeny.server.databases.availability import Availability, BoundedConnection
from ontogeny.server.databases.base import (
    MAX_CONNECTIONS,
    MAX_PROBE_TIME,
    MAX_WAIT,
    Database,
    QueryResult,
    Statement,
)
from ontogeny.server.databases.statements import Driver, is_of_storage, message_of, run, run_as_text, run_together

IDLE = psycopg.pq.TransactionStatus.IDLE
OFFERS = "offered_branches"  # a table of PostgreSQL alone, with digests of prompts
WRITER, SERVER = 0x6F6E7401, 0x6F6E7402  # classes of advisory locks
CONNECTION_SETTINGS = {
    "connect_timeout": 5,  # seconds
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 5_000,  # milliseconds until data that nobody confirms end the connection
}
SECRETS = ("password", "sslpassword")  # parameters of an address that no message contains
MAX_CONNECT_TIME = 2  # seconds, for a server, whose requests wait
MAX_STATEMENT_TIME = MAX_WAIT + 10.0  # seconds, for a server
MAX_IDLE_TIME = 5.0  # seconds that a transaction may wait for its next statement
NUM_RESERVED = 5  # connections for the threads that use `reserved_connection`
MAX_WRITERS = MAX_CONNECTIONS - 3  # threads that write at the same time, so that others can read
LEASE_WAIT = 2.0  # seconds after which the lease of a process that has ended is over
SESSION = (
    "SET synchronous_commit = on; SET default_transaction_isolation = 'read committed'; "
    f"SET lock_timeout = {int(MAX_WAIT * 1000)}; "
    f"SET idle_in_transaction_session_timeout = {int(MAX_IDLE_TIME * 1000)}"
)
GROWN_TABLES = """
SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'
AND pg_relation_size(oid) / current_setting('block_size')::bigint > 2 * relpages + 10 ORDER BY relname
"""
# `select.select` fails if a process has more than 1,024 open files.
POLL_SELECTOR = getattr(selectors, "PollSelector", selectors.SelectSelector)
# Reads the format and the first record of each table, in one statement, because it is repeated.
TABLE_CHECK = "SELECT max(version_num), {} FROM alembic_version".format(
    ", ".join(f"EXISTS (SELECT FROM {table})" for table in schema.TABLES)
)
log = logging.getLogger(__name__)


class PostgresDatabase(Database):
    """A database of a PostgreSQL server, in the first schema of its search path.

    Args:
        address: `postgresql://USER@HOST/DATABASE`, with or without a password.
        create: Whether absent tables are created.
        read_only: Whether the database may only be read; otherwise tables of an earlier format are upgraded.

    Raises:
        BadInput: The address is malformed, the database cannot be reached, or its tables are absent or newer.
    """

    has_file, is_shared = False, True
    ordered_join = "JOIN"
    num_text_bytes = "octet_length(text)"
    share_lock = "FOR SHARE"

    def __init__(self, address: str, *, create: bool, read_only: bool) -> None:
        try:
            url = sqlalchemy.make_url(address)
        except (exc.ArgumentError, ValueError):  # the latter if the port is not a number
            raise BadInput("the address of the database must have the form postgresql://USER@HOST/DATABASE") from None
        if url.get_backend_name() not in ("postgresql", "postgres"):
            raise BadInput(f"the address of the database must begin with postgresql://, not {url.drivername}://")
        url = url.set(drivername="postgresql+psycopg")
        public = url.set(drivername="postgresql").difference_update_query(SECRETS)
        self.label = f"the database '{public.render_as_string(hide_password=True)}'"
        self.connection_name = f"ontogeny-{secrets.token_hex(8)}"  # in the list of connections of the database
        self._engine = sqlalchemy.create_engine(
            url, pool_size=MAX_CONNECTIONS + NUM_RESERVED, max_overflow=0, pool_timeout=MAX_WAIT, pool_use_lifo=True,
            connect_args=CONNECTION_SETTINGS | {"application_name": self.connection_name}, isolation_level="AUTOCOMMIT",
            pool_reset_on_return=None,  # `_connect` discards a connection that is in a transaction
        )  # fmt: skip
        weakref.finalize(self, self._engine.dispose)
        self._availability = Availability(self.label, self._probe)
        event.listen(self._engine, "do_connect", self._open_connection)
        event.listen(self._engine, "connect", self._prepare_session)
        self._thread_local = threading.local()  # the connection of a thread that is in a transaction
        self._lost_at = 0.0  # when a connection was lost last; earlier ones may be lost, too
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._writers = threading.BoundedSemaphore(MAX_WRITERS)  # so that waiting writers use few connections
        try:
            self._open_tables(create, read_only)
        except StorageUnavailable as error:
            raise BadInput(str(error)) from None

    @contextlib.contextmanager
    def transaction(
        self, scope: str | None = None, statements: Sequence[Statement] = ()
    ) -> Iterator[list[QueryResult]]:
        """Opens an atomic write; see `Database`."""
        if self.damage is not None:
            raise StorageDamaged(self.damage)
        assert not self.in_transaction, "a transaction cannot contain another one"
        if not self._writers.acquire(timeout=MAX_WAIT):
            raise StorageUnavailable(f"{self.label} is locked")
        try:
            with self._open_transaction(_begin(scope), statements) as results:
                yield results
        finally:
            self._writers.release()

    @contextlib.contextmanager
    def read_transaction(self) -> Iterator[None]:
        """Lets all queries read the same state; see `Database`."""
        assert not self.in_transaction, "a transaction cannot contain another one"
        with self._open_transaction([Statement("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")]):
            yield

    def bound_waits(self) -> None:
        """Bounds all waits; see `Database`."""
        self._availability.is_watched = True

    @property
    def failed_at(self) -> float | None:
        """Since when the database cannot be reached; see `Database`."""
        return self._availability.failed_at

    @contextlib.contextmanager
    def reserved_connection(self, max_wait: float = MAX_PROBE_TIME) -> Iterator[None]:
        """Gives this thread a connection that others do not occupy; see `Database`."""
        self._thread_local.reserved_wait = max_wait
        try:
            yield
        finally:
            self._thread_local.reserved_wait = None

    @property
    def in_transaction(self) -> bool:
        """Whether this thread is in a transaction."""
        return getattr(self._thread_local, "connection", None) is not None

    def execute(self, query: str, parameters: Sequence[Any]) -> QueryResult:
        """Runs a statement; see `Database`."""
        with self._storage_errors(), contextlib.ExitStack() as stack:
            driver = getattr(self._thread_local, "driver", None)
            if driver is None:
                driver = _driver_of(stack.enter_context(self._connect()))
            return run(driver, query, parameters)

    def index_hint(self, index: str) -> str:
        """Nothing: PostgreSQL chooses by its statistics."""
        return ""

    def encode_text(self, text: str) -> bytes:
        """The text in UTF-8, because PostgreSQL's own texts cannot contain the character of code 0."""
        return text.encode()

    def last_number(self, table: str) -> int:
        """The highest number so far; see `Database`."""
        query = "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence(?, 'number')::regclass), 0)"
        return self.execute(query, (table,))[0][0]

    def reserve_numbers(self, table: str, last: int) -> None:
        """Reserves numbers; see `Database`."""
        if last:
            self.execute("SELECT setval(pg_get_serial_sequence(?, 'number'), ?)", (table, last))

    def check_tables(self) -> None:
        """Checks that all tables exist and have the current format; see `Database`."""
        try:
            with self._storage_errors(), self._connect() as connection:
                number = run(_driver_of(connection), TABLE_CHECK)[0][0]
        except psycopg.ProgrammingError as error:
            raise self.note_damage(message_of(error)) from None
        if number != migrations.current_format():
            raise self.note_damage(f"the format of its tables has changed to {number}")

    def check_integrity(self) -> None:
        """Checks the tables; PostgreSQL checks its files itself."""
        self.check_tables()

    def update_statistics(self) -> None:
        """Analyzes tables that have grown to more than twice their size at the last analysis; see `Database`.

        PostgreSQL analyzes tables by itself, but only after a while; a copy or a restored back-up has no statistics.
        """
        try:
            for (table,) in self.execute(GROWN_TABLES, ()):
                self.execute(f"ANALYZE {table}", ())
                log.info("the statistics of the table '%s' are new", table)
        except StorageUnavailable as error:
            log.warning("the statistics of the tables cannot be updated at present: %s", error)

    def truncate_log(self) -> bool:
        """Does nothing: what PostgreSQL's log keeps is decided by the operator; see the how-to on PostgreSQL."""
        return True

    def vacuum(self) -> None:
        """Writes the files of all tables anew; see `Database`."""
        for table in (*schema.TABLES, OFFERS):
            self.execute(f"VACUUM FULL {table}", ())

    @contextlib.contextmanager
    def lock_server(self, *, exclusive: bool = False) -> Generator[None]:
        """Takes a lock in a connection of its own, which servers share; see `Database`."""
        with self._storage_errors(), self._engine.connect() as connection:
            shared = "" if exclusive else "_shared"
            query = f"SELECT pg_try_advisory_lock{shared}({SERVER}, hashtext(current_schema()))"
            connection.detach()  # the lock ends with the connection, which no other thread may use
            try:
                is_free = bool(connection.exec_driver_sql(query).scalar())
                if not is_free or (exclusive and not _wait_for_leases(connection)):
                    raise BadInput(f"{'a server' if exclusive else 'a copy or repair'} uses {self.label} at present")
                yield
            finally:
                with contextlib.suppress(exc.SQLAlchemyError):  # PostgreSQL notices the end of a connection later
                    connection.exec_driver_sql("SELECT pg_advisory_unlock_all()")

    def end_connections(self, name: str) -> None:
        """Closes the connections of another process; see `Database`."""
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = ?"
        self.execute(query, (name,))

    def close(self) -> None:
        """Closes all connections that no thread uses."""
        self._availability.stop()
        self._engine.dispose()

    def _open_tables(self, create: bool, read_only: bool) -> None:
        """Creates or upgrades the tables, or checks that they are there."""
        with self._storage_errors(), self._connect() as connection:
            migrations.check_format(connection, self.label)
            number = migrations.read_format(connection)
        if number == migrations.current_format():
            return
        if number is None and not create:
            raise BadInput(f"{self.label} holds no tables of a server; `ontogeny serve` or `keys create` creates them")
        if read_only:
            raise BadInput(f"{self.label} has tables of format {number}; start the server once to upgrade them")
        with contextlib.nullcontext() if number is None else self.lock_server(exclusive=True), self.transaction():
            connection = self._thread_local.connection
            if migrations.read_format(connection) == number:  # otherwise another process was faster
                migrations.upgrade(connection)

    @contextlib.contextmanager
    def _open_transaction(
        self, begin: Sequence[Statement], statements: Sequence[Statement] = ()
    ) -> Generator[list[QueryResult]]:
        """Runs the statements of this thread between `begin` and COMMIT, or ROLLBACK after an error."""
        with self._storage_errors(), self._connect() as connection:
            driver = _driver_of(connection)
            try:
                results = run_together(driver, [*begin, *statements]) if statements else run_as_text(driver, begin)
                self._thread_local.connection, self._thread_local.driver = connection, driver
                yield results[len(begin) :]
                self._commit(driver)
            except BaseException:
                if not driver.closed:
                    with contextlib.suppress(psycopg.Error):
                        run(driver, "ROLLBACK")
                raise
            finally:
                self._thread_local.connection = self._thread_local.driver = None

    def _commit(self, driver: Driver) -> None:
        """Ends a transaction; raises `CommitUnknown` if the connection is lost before the answer."""
        try:
            run(driver, "COMMIT")
        except psycopg.Error as error:
            if not driver.closed:
                raise
            raise CommitUnknown(f"{self.label} has not confirmed a transaction: {message_of(error)}") from error

    @contextlib.contextmanager
    def _connect(self) -> Generator[Connection]:
        """A connection for this thread; one that was lost while it was idle is replaced."""
        max_wait: float | None = getattr(self._thread_local, "reserved_wait", None)  # of a reserved connection
        self._availability.check()
        if max_wait is None and not self._places.acquire(timeout=MAX_WAIT):
            raise StorageUnavailable(f"{self.label} cannot be used: all connections are in use")
        try:
            self._availability.check()  # again, after the wait for a place
            with self._engine.connect() as connection:
                driver = _driver_of(connection)
                if driver.closed or driver.opened_at <= self._lost_at or not _is_alive(driver):
                    connection.invalidate()
                    driver = _driver_of(connection)
                if self._availability.is_watched:
                    driver.max_wait = MAX_STATEMENT_TIME if max_wait is None else max_wait
                try:
                    yield connection
                finally:
                    if driver.closed:
                        self._lost_at = time.monotonic()
                    if driver.closed or driver.info.transaction_status != IDLE:
                        connection.invalidate()
        finally:
            if max_wait is None:
                self._places.release()

    def _open_connection(self, dialect: Any, record: Any, arguments: Any, parameters: Any) -> BoundedConnection:
        """Opens a connection for the pool."""
        if self._availability.is_watched:
            parameters = parameters | {"connect_timeout": MAX_CONNECT_TIME}
        try:
            connection = BoundedConnection.connect(*arguments, **parameters)
        except psycopg.OperationalError as error:
            self._availability.note_failure(error)
            raise
        connection.availability, connection.opened_at = self._availability, time.monotonic()
        return connection

    def _prepare_session(self, driver: Any, _: Any) -> None:
        """Sets what every connection needs."""
        if self._availability.is_watched:
            driver.max_wait = MAX_PROBE_TIME
        with driver.cursor() as cursor:
            cursor.execute(SESSION)

    def _probe(self) -> None:
        """Sends a statement through a connection that no request can occupy."""
        with self.reserved_connection(), self._connect() as connection:
            run(_driver_of(connection), "SELECT 1")

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        """Converts the errors of PostgreSQL that are no mistakes in a statement to `StorageUnavailable`."""
        try:
            yield
        except (psycopg.Error, exc.DBAPIError) as error:
            cause = error.orig if isinstance(error, exc.DBAPIError) else error
            if not isinstance(cause, psycopg.Error) or not is_of_storage(cause):
                raise
            raise StorageUnavailable(f"{self.label} cannot be used: {message_of(cause)}") from error
        except exc.PendingRollbackError as error:
            raise StorageUnavailable(f"{self.label} cannot be used: the connection was lost") from error
        except exc.TimeoutError as error:
            raise StorageUnavailable(f"{self.label} cannot be used: all connections are in use") from error


def _wait_for_leases(connection: Connection) -> bool:
    """Waits until no process has a lease; returns False if one renews it.

    A process whose connections were lost, as when the database restarts, has a lease but no lock any more.
    """
    if connection.exec_driver_sql("SELECT to_regclass('processes')").scalar() is None:  # tables of format 1, or none
        return True
    query, deadline = "SELECT 1 FROM processes WHERE expires_at > clock_timestamp()", time.monotonic() + LEASE_WAIT
    while connection.exec_driver_sql(query).first() is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _digest(scope: str) -> int:
    """A number of 64 bits for a scope."""
    return int.from_bytes(hashlib.sha256(scope.encode("utf-8", "surrogatepass")).digest()[:8], signed=True)


def _begin(scope: str | None) -> list[Statement]:
    """The statements that open a transaction and take its locks."""
    if scope is None:
        return [Statement("BEGIN"), Statement(f"SELECT pg_advisory_xact_lock({WRITER}, hashtext(current_schema()))")]
    locks = (
        f"SELECT pg_advisory_xact_lock_shared({WRITER}, hashtext(current_schema())), "
        "pg_advisory_xact_lock(hashtextextended(current_schema(), ?))"
    )
    return [Statement("BEGIN"), Statement(locks, (_digest(scope),))]


def _driver_of(connection: Connection) -> BoundedConnection:
    """The connection of psycopg."""
    driver: Any = connection.connection.driver_connection
    return driver


def _is_alive(driver: Any) -> bool:
    """Whether the other side has not closed an idle connection; nothing is sent."""
    with POLL_SELECTOR() as selector:
        selector.register(driver.fileno(), selectors.EVENT_READ)
        return not selector.select(0)
