"""The proxy between a server and its database, through which benchmarks inject faults."""

import os
import threading
import time

import psycopg
import pytest

from database_proxy import DatabaseProxy
from local_postgres import find_program

IS_REQUIRED = bool(os.environ.get("ONTOGENY_REQUIRE_POSTGRES"))
IS_ABSENT = find_program("initdb") is None and not IS_REQUIRED
pytestmark = pytest.mark.skipif(IS_ABSENT, reason="PostgreSQL is not installed")


@pytest.fixture
def proxy(postgres):
    with DatabaseProxy(postgres.port) as proxy:
        with psycopg.connect(address(proxy), autocommit=True) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS proxied (number integer)")
            connection.execute("TRUNCATE proxied")
        yield proxy


def address(proxy: DatabaseProxy) -> str:
    return f"postgresql://tests@127.0.0.1:{proxy.port}/postgres"


def insert(connection: psycopg.Connection, number: int) -> None:
    """Adds a number in a transaction of its own, with a prepared statement from the sixth call on."""
    connection.execute("BEGIN")
    connection.execute("INSERT INTO proxied VALUES (%s)", (number,))
    connection.execute("COMMIT")


def count(postgres) -> int:
    with psycopg.connect(f"postgresql://tests@127.0.0.1:{postgres.port}/postgres") as connection:
        return connection.execute("SELECT count(*) FROM proxied").fetchall()[0][0]


@pytest.mark.parametrize("after", [False, True])
def test_a_commit_is_stopped_before_or_after_it_takes_effect(proxy, postgres, after):
    with psycopg.connect(address(proxy), autocommit=True) as connection:
        for number in range(10):
            insert(connection, number)
        connection.execute("BEGIN")
        connection.execute("SELECT 1")
        connection.execute("COMMIT")  # a transaction that only reads passes
        commit = proxy.stop_next_commit(after=after)
        connection.execute("BEGIN")
        connection.execute("SELECT 1")
        connection.execute("COMMIT")
        assert not commit.is_stopped.is_set()
        thread = threading.Thread(target=insert, args=(connection, 10))
        thread.start()
        assert commit.is_stopped.wait(10)
        assert count(postgres) == 10 + after
        commit.released.set()
        thread.join(10)
        assert not thread.is_alive()
    assert count(postgres) == 11


@pytest.mark.parametrize("after", [False, True])
def test_a_connection_that_is_cut_ends_an_open_transaction(proxy, postgres, after):
    with psycopg.connect(address(proxy), autocommit=True) as connection:
        commit = proxy.stop_next_commit(after=after)

        def cut() -> None:
            commit.is_stopped.wait(10)
            assert proxy.cut() == 1

        thread = threading.Thread(target=cut)
        thread.start()
        with pytest.raises(psycopg.OperationalError):
            insert(connection, 1)
        thread.join(10)
    assert count(postgres) == after


def test_a_silent_proxy_delivers_later_and_a_refusing_one_never(proxy, postgres):
    with psycopg.connect(address(proxy), autocommit=True) as connection:
        proxy.is_silent, started_at = True, time.monotonic()
        threading.Timer(0.3, proxy.restore).start()
        insert(connection, 1)
        assert time.monotonic() - started_at > 0.25
        proxy.delay, started_at = 0.05, time.monotonic()
        connection.execute("SELECT 1")
        assert time.monotonic() - started_at > 0.09
        proxy.restore()
    proxy.is_refusing = True
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(address(proxy))
    assert count(postgres) == 1
