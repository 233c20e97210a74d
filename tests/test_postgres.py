"""PostgreSQL as the database of a server: what differs from SQLite, and copies between both.

`make test-postgres` runs all embedded tests of the server with PostgreSQL too.
"""

import contextlib
import json
import os
import resource
import threading
from pathlib import Path

import psycopg
import pytest

from local_postgres import find_program
from ontogeny.errors import BadInput, StorageDamaged, StorageUnavailable
from ontogeny.server import deployments, keys, migrations, quotas, relations, schema
from ontogeny.server.databases import postgres
from ontogeny.server.databases.base import Statement
from ontogeny.server.databases.postgres import GROWN_TABLES
from ontogeny.server.learning import branch_changes, journal, learning_loop, versions
from ontogeny.server.learning.branches import BranchManager
from ontogeny.server.learning.config import BranchConfig
from ontogeny.server.learning.intake import ExampleIntake
from ontogeny.server.learning.loading import BranchUnavailable
from ontogeny.server.moving import copy_state
from ontogeny.server.processes import membership
from ontogeny.server.processes.membership import RENEWAL_INTERVAL, Load, Membership
from ontogeny.server.processes.ownership import OwnedElsewhere
from ontogeny.server.request_identity import RequestIdentity
from ontogeny.server.store import Store
from stepping import fake_learner

IS_REQUIRED = bool(os.environ.get("ONTOGENY_REQUIRE_POSTGRES"))  # set by `.ci/run`: absent programs are a failure
IS_ABSENT = find_program("initdb") is None and not IS_REQUIRED
pytestmark = [pytest.mark.sqlite, pytest.mark.skipif(IS_ABSENT, reason="PostgreSQL is not installed")]
DIVISION = Statement("SELECT 1 / ?", (0,))
TEXTS = ["A lamp.", "A bell \0 under water.", "Ein Schiff aus Glas, 𝄞.", "A letter to the sea."]


@pytest.fixture
def store(postgres, tmp_path):
    with Store(tmp_path / "state", database_url=postgres.address_for(tmp_path)) as store:
        yield store


def fill(store: Store) -> None:
    """Adds keys, learned, rejected, erased and waiting examples, a fork, a session and usage."""
    key, _ = keys.create_key(store, "anna", max_sessions=3)
    branches = BranchManager(store, "story", fake_learner(), config=BranchConfig(snapshot_interval=2))
    numbers = [branches.add_example(key.id, key.id, text) for text in [*TEXTS, "strange"]]
    while branches.learn_next():
        pass
    branches.fork(key.id, "carl", "test")
    branches.erase_example(int(numbers[0] or 0), "test")
    while branches.learn_next():
        pass
    branches.add_example(key.id, key.id, "waits")
    keys.add_usage(store, [keys.UsageRecord(key.id, "story", "2026-11-27", 1, 2, 3)] * 2)
    with store.transaction():
        store.insert("sessions", ("id", "story", key.id, 3, b"\0state", 1.5, None, None, "{}", 0))


def read_tables(store: Store) -> dict[str, list[str]]:
    """The records of all tables in the types of SQLite."""

    def convert(field: object, column: str) -> object:
        if isinstance(field, bytes) and column == "text":
            return field.decode()
        return int(field) if isinstance(field, bool) else field

    contents = {}
    for table in set(schema.TABLES) - {"snapshot_store"}:
        answer = store.execute(f"SELECT * FROM {table}")
        columns = [column for column in answer.columns if column != "rowid"]
        records = (dict(zip(answer.columns, record, strict=True)) for record in answer)
        contents[table] = sorted(repr([convert(record[column], column) for column in columns]) for record in records)
    return contents


def test_a_state_is_copied_to_postgres_and_back(store, tmp_path):
    with Store(tmp_path / "source", database_url="") as source, Store(tmp_path / "back", database_url="") as back:
        fill(source)
        copied = copy_state(source, store)
        num_snapshots = len(list(versions.list_snapshots(source)))
        assert copied.num_records["examples"] == 6 and copied.num_snapshots == num_snapshots > 0
        assert read_tables(store) == read_tables(source) and relations.find_broken(store) == []
        with pytest.raises(BadInput, match="already holds the state of a server"):
            copy_state(source, store)
        copy_state(store, back)
        assert read_tables(back) == read_tables(source)
        numbers = []
        for present in (source, store, back):  # a number of a lost record is not used again
            with present.transaction():
                present.execute("DELETE FROM examples WHERE text IS NOT NULL AND number = 6")
            numbers.append(journal.add_example(present, "story/carl", "carl", "next"))
            branches = BranchManager(present, "story", fake_learner())
            for name in ("carl", journal.list_branches(present, "story")[0].owner_key):
                assert branches.current(name).version.digest == versions.get_version(
                    present, f"story/{name}", journal.get_branch(present, f"story/{name}").current_version
                ).digest  # fmt: skip
        assert numbers == [7, 7, 7]


def test_the_same_calls_leave_the_same_records(store, tmp_path):
    with Store(tmp_path / "embedded", database_url="") as embedded:
        for present in (store, embedded):
            fill(present)
        for query in (
            "SELECT number, example, kind, version, share FROM decisions ORDER BY number",
            "SELECT number, parent, example, digest, deleted, snapshot IS NULL FROM versions "
            "ORDER BY branch = 'story/carl', number",
            "SELECT num_sessions, session_bytes, example_bytes FROM storage ORDER BY key",
        ):
            assert list(store.execute(query)) == list(embedded.execute(query))
        assert [example.text for example in journal.list_examples(store, "story/carl")] == []
        owner = keys.list_keys(store)[0].id
        listed = [example.text for example in journal.list_examples(store, f"story/{owner}")]
        assert listed == [None, *TEXTS[1:], "strange", "waits"]
        assert quotas.get_storage(store, owner).num_pending_examples == 1


def test_servers_share_a_database_and_a_copy_uses_it_alone(store, postgres, tmp_path):
    with Store(tmp_path / "second", database_url=postgres.address_for(tmp_path)) as second, store.lock():
        with second.lock():
            keys.create_key(store, "anna")
            keys.create_key(second, "bob")
        assert [key.name for key in keys.list_keys(second)] == ["anna", "bob"]
        with pytest.raises(BadInput, match="a server uses"), second.database.lock_server(exclusive=True):
            pass
    with (
        second.database.lock_server(exclusive=True),
        pytest.raises(BadInput, match="a copy or repair uses"),
        store.lock(),
    ):
        pass


def test_a_copy_waits_for_a_server_whose_lock_was_lost(store, postgres, tmp_path, monkeypatch):
    monkeypatch.setattr(membership, "LEASE", 30.0)
    member = Membership(store, "test", allow_mixed=False, find_load=lambda: Load(0, 0))
    member.start("anna", "http://127.0.0.1:1")  # without a lock, as after a restart of the database
    with Store(tmp_path / "second", database_url=postgres.address_for(tmp_path)) as second:
        with pytest.raises(BadInput, match="a server uses"), second.database.lock_server(exclusive=True):
            pass
        with store.lock():  # the failed attempt has left no lock
            pass
        member.leave()
        with second.database.lock_server(exclusive=True):
            pass


def test_the_isolation_of_transactions_does_not_depend_on_the_settings_of_the_database(postgres, tmp_path):
    address = f"{postgres.address_for(tmp_path)}%20-cdefault_transaction_isolation%3Dserializable"
    with Store(tmp_path / "state", database_url=address) as store, store.transaction():
        assert store.select_value("SHOW transaction_isolation") == "read committed"


def test_a_database_that_only_replicates_another_one_is_unavailable(store):
    with pytest.raises(StorageUnavailable, match="read-only"), store.transaction():
        store.execute("SET TRANSACTION READ ONLY")
        store.execute("DELETE FROM usage")


def test_a_process_that_leaves_names_another_one_for_its_branches(store, postgres, tmp_path):
    with Store(tmp_path / "another", database_url=postgres.address_for(tmp_path)) as another:
        members = [Membership(s, "test", allow_mixed=False, find_load=lambda: Load(0, 0)) for s in (store, another)]
        for number, member in enumerate(members):
            member.start(f"process {number}", f"http://127.0.0.1:{number}")
        leaving, successor = members
        branches = BranchManager(store, "story", fake_learner(), ownership=leaving)
        branch = branches.claim("anna")
        assert branch.owner == leaving.number is not None
        leaving.is_leaving = True
        leaving.leave()
        with pytest.raises(OwnedElsewhere) as raised:
            leaving.claim(journal.get_branch(store, branch.branch))
        assert raised.value.number == successor.number
        successor.leave()


def test_the_status_shows_what_processes_compute_with_and_branches_that_none_can_take_over(
    store, postgres, call_cli, tmp_path
):
    address = postgres.address_for(tmp_path)
    first = Membership(store, "one kind", allow_mixed=False, find_load=lambda: Load(0, 0))
    first.start("first", "http://127.0.0.1:1")
    branches = BranchManager(store, "story", fake_learner(), ownership=first)
    branches.add_example("anna", "anna", TEXTS[0])
    assert branches.learn_next()
    first.leave()
    members = [Membership(store, "another kind", allow_mixed=False, find_load=lambda: Load(0, 0)) for _ in range(2)]
    for member in members:
        member.start("another", "http://127.0.0.1:2")
    with pytest.raises(BranchUnavailable, match="'one kind'"):
        members[0].claim(journal.get_branch(store, "story/anna"))
    options = ("--state-dir", str(tmp_path / "state"), "--database-url", address)
    code, output, error = call_cli("deployments", "status", *options)
    assert code == 0, error
    numbers = [member.number for member in members]
    assert f"processes {numbers[0]}, {numbers[1]} compute with another kind\n" in output
    assert "need another kind of process: 1; none runs that computes with one kind (see" in output
    computations = json.loads(call_cli("deployments", "status", *options, "--json")[1])["computations"]
    assert computations == [
        {"computed_by": "another kind", "processes": numbers, "num_branches": 0},
        {"computed_by": "one kind", "processes": [], "num_branches": 1},
    ]
    for member in members:
        member.leave()


def test_a_process_that_may_own_any_branch_gets_those_that_others_may_not(store):
    def start(computed_by: str, allow_mixed: bool = False) -> Membership:
        member = Membership(store, computed_by, allow_mixed=allow_mixed, find_load=lambda: Load(0, 0))
        member.start(computed_by, "http://127.0.0.1:1")
        return member

    first = start("one kind")
    branches = BranchManager(store, "story", fake_learner(), ownership=first)
    branches.add_example("anna", "anna", TEXTS[0])
    assert branches.learn_next()
    first.leave()
    second, mixed = start("another kind"), start("a third kind", allow_mixed=True)

    def find_receiver() -> int:
        with pytest.raises(OwnedElsewhere) as raised:
            second.claim(journal.get_branch(store, "story/anna"))
        return raised.value.number

    assert find_receiver() == mixed.number
    equal = start("one kind")
    assert find_receiver() == equal.number  # computes equal weights
    equal.leave()
    mixed.announce_end()
    with pytest.raises(BranchUnavailable, match="nor one with --allow-mixed"):
        second.claim(journal.get_branch(store, "story/anna"))
    store.execute("UPDATE processes SET is_leaving = FALSE")
    assert mixed.claim(journal.get_branch(store, "story/anna")).owner == mixed.number
    assert [decision.kind for decision in journal.list_decisions(store, "story")][-1] == "mixed"
    for member in (second, mixed):
        member.leave()


@pytest.mark.parametrize("is_before", [True, False])
def test_a_transaction_whose_connection_ends_is_a_failure_of_the_storage(store, postgres, is_before):
    with pytest.raises(StorageUnavailable), store.transaction():
        if is_before:
            store.execute("DELETE FROM usage")
        postgres.stop("immediate")
        postgres.start()
        if not is_before:
            with pytest.raises(StorageUnavailable):
                store.execute("DELETE FROM usage")
            store.execute("DELETE FROM usage")
    with store.transaction():
        store.execute("DELETE FROM usage")


def test_a_database_that_restarts_is_unavailable_and_then_usable(store, postgres):
    key, text = keys.create_key(store, "anna")
    postgres.stop("immediate")
    try:
        with pytest.raises(StorageUnavailable):
            keys.authenticate(store, text)
        with pytest.raises(StorageUnavailable), store.transaction():
            pass
    finally:
        postgres.start()
    assert keys.authenticate(store, text) == key
    keys.revoke_key(store, key.id)
    assert keys.authenticate(store, text) is None


def test_a_process_with_many_open_files_uses_the_database(postgres, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        for _ in range(1100):
            stack.enter_context(open(os.devnull))
        store = stack.enter_context(Store(tmp_path / "state", database_url=postgres.address_for(tmp_path)))
        assert [store.select_value("SELECT 1") for _ in range(3)] == [1, 1, 1]


def test_a_failed_transaction_changes_nothing(store):
    with pytest.raises(ZeroDivisionError), store.transaction():
        store.execute("INSERT INTO unfinished_erasures VALUES (1)")
        raise ZeroDivisionError
    assert store.select_value("SELECT count(*) FROM unfinished_erasures") == 0
    with store.transaction():
        store.execute("INSERT INTO unfinished_erasures VALUES (1)")
    assert store.select_value("SELECT count(*) FROM unfinished_erasures") == 1


def test_erased_text_leaves_the_files_of_the_table_after_vacuum_full(store, postgres, tmp_path):
    text = "No other test of this database server stores this sentence."
    journal.open_branch(store, "story", "anna", "a", "b", 1.0)
    number = journal.add_example(store, "story/anna", "anna", text)
    file_of_offers = "SELECT pg_relation_filenode('offered_branches')"  # which has digests of prompts
    file = store.select_value(file_of_offers)

    def read_files() -> bytes:
        with psycopg.connect(postgres.address_for(tmp_path), autocommit=True) as connection:
            connection.execute("CHECKPOINT")
        return b"".join(path.read_bytes() for path in (postgres.data / "base").rglob("*") if path.is_file())

    assert text.encode() in read_files()
    branch_changes.erase_example(store, int(number or 0), "test")
    assert journal.list_examples(store, "story/anna")[0].text is None
    store.database.vacuum()
    assert text.encode() not in read_files() and store.select_value(file_of_offers) != file


def test_the_statistics_of_the_database_contain_no_texts(store):
    journal.open_branch(store, "story", "anna", "a", "b", 1.0)
    for number in range(20):
        journal.add_example(store, "story/anna", "anna", f"A sentence of number {number}.")
    query = "SELECT count(*) FROM pg_stats WHERE tablename = 'examples' AND attname = ?"
    for table in schema.TABLES:
        store.execute(f"ANALYZE {table}")
    assert [store.select_value(query, column) for column in ("number", "text")] == [1, 0]


def list_messages(monkeypatch):
    """A list to which every message to PostgreSQL is added; the answer to each is waited for."""
    messages = []

    def record(name):
        send = getattr(postgres, name)
        monkeypatch.setattr(postgres, name, lambda *arguments: (messages.append(arguments[1]), send(*arguments))[1])

    for name in ("run", "run_together", "run_as_text"):
        record(name)
    return messages


def test_teaching_a_text_takes_three_messages_and_learning_it_three_or_four(store, monkeypatch):
    """Each wait for an answer costs the thread its turn. The list of branches is read again after one is done."""
    member = Membership(store, "test", allow_mixed=False, find_load=lambda: Load(0, 0))
    branches, intake = BranchManager(store, "story", fake_learner(), ownership=member), ExampleIntake(store)
    member._keep_lease()
    branches.add_example("anna", "anna", "a first text")
    assert branches.learn_next() and not branches.learn_next()
    messages = list_messages(monkeypatch)
    for digest in ("a", "b"):
        messages.clear()
        intake.add_text(branches, "anna", f"a text of digest {digest}", RequestIdentity(digest, None, 0, 0.0))
        assert len(messages) == 3 and messages[-1] == "COMMIT"
    for num_messages in (4, 3):
        messages.clear()
        assert branches.learn_next()
        assert len(messages) == num_messages and messages[-1] == "COMMIT"
    (sums,) = store.execute("SELECT num_texts, total_bytes FROM text_scores ORDER BY number DESC LIMIT 1")
    assert branches.current("anna").version.number == sums[0] == 3
    member.leave()


def test_no_statement_of_a_message_takes_effect_if_one_fails(store):
    addition = Statement("INSERT INTO usage VALUES (?, 'story', '2026-01-01', 1, 1, 1)", ("anna",))
    for _ in range(8):  # psycopg prepares a statement at its sixth use
        with pytest.raises(psycopg.errors.DivisionByZero), store.transaction("anna", [addition, DIVISION, addition]):
            pass
        assert store.select_values("SELECT key FROM usage") == []
    with store.transaction("anna", [addition, Statement("SELECT key FROM usage")]) as (added, keys_of_usage):
        assert added.rowcount == 1 and keys_of_usage == [("anna",)]


def test_a_long_message_of_which_the_first_statement_fails_is_one_error(store, caplog):
    """The error arrives while the rest is sent, so that psycopg meets a second one when it ends the message."""
    sizes = [Statement("SELECT octet_length(?)", (b"x" * 2**24,))] * 3
    with pytest.raises(psycopg.errors.DivisionByZero), store.transaction("anna", [DIVISION, *sizes]):
        pass
    assert caplog.messages == [] and store.select_value("SELECT 1") == 1
    with store.transaction("anna", sizes) as results:
        assert results == [[(2**24,)]] * 3


def test_an_idle_process_sends_less_than_five_statements_per_second(store, monkeypatch):
    """Each statement outside of a transaction is a transaction of its own."""
    messages = list_messages(monkeypatch)
    member = Membership(store, "test", allow_mixed=False, find_load=lambda: Load(0, 0))
    branches = BranchManager(store, "story", fake_learner(), ownership=member)
    member._keep_lease()  # which registers the process
    repeated = {
        member._keep_lease: RENEWAL_INTERVAL,
        branches.learn_next: learning_loop.SHARED_POLL_INTERVAL,
        store.check_tables: deployments.SHARED_CHECK_INTERVAL,
        lambda: branches.forget_erased(journal.find_last_erasure(store)): deployments.FORGETTING_INTERVAL,
        branches.finish_erasures: deployments.ERASURE_INTERVAL,
    }
    rate = 0.0
    for work, interval in repeated.items():
        messages.clear()
        work()
        assert len(messages) == 1
        rate += len(messages) / interval
    assert rate <= 5
    member.leave()


def test_a_heartbeat_ends_processes_whose_lease_has_expired(store):
    members = [Membership(store, "test", allow_mixed=False, find_load=lambda: Load(0, 0)) for _ in range(2)]
    for member in members:
        member._keep_lease()
    with store.transaction():
        query = "UPDATE processes SET expires_at = clock_timestamp() WHERE number = ?"
        store.execute(query, members[0].number)
    members[1]._keep_lease()
    assert store.select_values("SELECT number FROM processes") == [members[1].number]
    members[0]._keep_lease()  # it registers again
    assert store.select_values("SELECT number FROM processes ORDER BY number") == [
        members[1].number,
        members[0].number,
    ]


def test_tables_that_are_gone_are_noticed(store, postgres, tmp_path):
    with psycopg.connect(postgres.address_for(tmp_path), autocommit=True) as connection:
        connection.execute("DROP TABLE inherited_examples")
    with pytest.raises(StorageDamaged, match='relation "inherited_examples" does not exist'):
        store.check_tables()


def test_tables_of_a_newer_version_are_refused(store, postgres, tmp_path):
    with psycopg.connect(postgres.address_for(tmp_path), autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '99'")
    with pytest.raises(BadInput, match="format 99; this version of ontogeny reads up to format 7: use a newer version"):
        Store(tmp_path / "state", database_url=postgres.address_for(tmp_path))
    with pytest.raises(StorageDamaged, match="the format of its tables has changed to 99"):
        store.check_tables()


def test_columns_are_those_of_sqlite(store, tmp_path):
    with Store(tmp_path / "embedded", database_url="") as embedded:
        for table in schema.TABLES:
            query = f"SELECT * FROM {table} LIMIT 0"
            assert [name for name in store.execute(query).columns if name != "rowid"] == embedded.execute(query).columns
    assert migrations.current_format() == "7"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("mysql://localhost/x", "must begin with postgresql://"),
        ("no address", "must have the form"),
        ("postgresql://nobody@127.0.0.1:port/x", "must have the form"),
        ("postgresql://nobody@127.0.0.1:1/x", "cannot be used"),
    ],
)
def test_unusable_addresses_are_one_sentence(tmp_path, address, message):
    with pytest.raises(BadInput, match=message) as error:
        Store(tmp_path / "state", database_url=address)
    assert "\n" not in str(error.value)


def test_commands_use_the_database(postgres, call_cli, tmp_path, monkeypatch):
    address = postgres.address_for(tmp_path)
    folder = ("--state-dir", str(tmp_path / "state"))
    assert call_cli("keys", "create", "--name", "anna", *folder)[0] == 0
    code, output, _ = call_cli("deployments", "move", str(tmp_path / "state"), address, *folder)
    assert code == 0 and output.startswith("1 record and 0 snapshots copied to ")
    code, output, _ = call_cli("keys", "list", *folder, "--database-url", address)
    assert code == 0 and "anna" in output
    assert "SQLite" in call_cli("deployments", "status", *folder)[1]
    assert "SQLite" not in call_cli("deployments", "status", "--database-url", address)[1]
    monkeypatch.setenv("ONTOGENY_DATABASE_URL", address)
    assert call_cli("deployments", "check", *folder)[0] == 0
    assert call_cli("deployments", "vacuum", *folder)[0] == 0
    assert call_cli("keys", "create", "--name", "bob", *folder)[0] == 0
    assert "bob" in call_cli("keys", "list", *folder)[1]
    monkeypatch.delenv("ONTOGENY_DATABASE_URL")
    assert "bob" not in call_cli("keys", "list", *folder)[1]
    for secret in ("postgresql://anna:secret@localhost/x", "postgresql://anna@localhost/x?password=secret"):
        code, _, error = call_cli("keys", "list", *folder, "--database-url", secret)
        assert code == 2 and "command lines are visible to others" in error and "secret" not in error
    monkeypatch.setenv("ONTOGENY_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/x?password=secret")
    code, _, error = call_cli("keys", "list", *folder)
    assert code == 2 and "cannot be used" in error and "secret" not in error
    monkeypatch.delenv("ONTOGENY_DATABASE_URL")
    empty = postgres.address_for(tmp_path / "empty")
    code, _, error = call_cli(
        "deployments", "move", empty, str(tmp_path / "copy"), "--state-dir", str(tmp_path / "other")
    )
    assert code == 2 and not (tmp_path / "copy").exists() and not (tmp_path / "other").exists(), error
    code, _, error = call_cli("deployments", "move", str(Path("a")), "b")
    assert code == 2 and "name one state folder, and one database" in error


def test_a_start_lets_postgres_choose_plans_by_what_the_tables_hold(store):
    # After a copy or a restored back-up, the quota of a key was counted by reading the versions of all keys.
    branches = BranchManager(store, "story", fake_learner())
    branches.open("anna")
    with store.transaction():
        for table, copied in (("branches", ("branch", "owner_key")), ("versions", ("branch",))):
            columns = store.execute(f"SELECT * FROM {table} LIMIT 1").columns
            copies = ", ".join(f"original.{name}" + " || position" * (name in copied) for name in columns)
            series = "generate_series(1, 20000) AS position"
            store.execute(f"INSERT INTO {table} SELECT {copies} FROM {table} AS original, {series} WHERE branch = ?",
                          "story/anna")  # fmt: skip
    store.update_statistics()
    query = quotas.UPLOADED_STATES.format(join="JOIN", hint="").replace("?", "'anna7'")
    plan = "\n".join(store.select_values(f"EXPLAIN {query}"))
    assert "Seq Scan on versions" not in plan, plan
    assert not store.execute(GROWN_TABLES)


def test_writes_to_one_branch_exclude_each_other_and_a_write_without_a_scope_excludes_all(store):
    def start(scope: str | None) -> tuple[threading.Thread, threading.Event]:
        entered = threading.Event()

        def write() -> None:
            with store.transaction(scope):
                entered.set()

        thread = threading.Thread(target=write)
        thread.start()
        return thread, entered

    threads = []
    with store.transaction("story/anna"):
        for scope, waits in (("story/bob", False), ("story/anna", True), (None, True)):
            thread, entered = start(scope)
            threads.append(thread)
            assert entered.wait(0.3 if waits else 10) != waits, scope
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
