"""Options of processes that share a database: which must agree, which may differ, and who ends if they do not."""

import contextlib
import json
import logging
from pathlib import Path

import pytest

import texts
from ontogeny.errors import BadInput
from ontogeny.server.config import ServerConfig
from ontogeny.server.deployments import opened_deployments
from ontogeny.server.processes import options
from ontogeny.server.processes.membership import Load, Membership, ServerProcess
from ontogeny.server.store import Store
from serving import ServerProcess as RealProcess
from serving import shared_run, wait_until

pytestmark = pytest.mark.sqlite  # they use PostgreSQL in any case
LLAMA = Path(__file__).parent / "golden" / "llama3"
LEARNING = {"mode": "online", "shared_branch": False, "max_forgetting": 0.05}


def process(number: int, settings: dict[str, object]) -> ServerProcess:
    """A process that has recorded these options."""
    return ServerProcess(number, f"p{number}", "", "", "", 0.0, 0, 0, False, False, json.dumps(settings))


@pytest.mark.parametrize(
    ("name", "choice", "message"),
    [
        ("mode", "frozen", "--online of 'run' is online here and frozen at process 1"),
        ("shared_branch", True, "--shared-branch of 'run' is off here and on at process 1"),
        ("max_forgetting", 0.2, "--max-forgetting of 'run' is 0.05 here and 0.2 at process 1"),
        ("digest", "abc", None),
        ("checkpoint", "best", None),
    ],
)
def test_processes_must_agree_in_what_a_promise_depends_on(name, choice, message):
    recorded = options.describe_options(ServerConfig(), {"run": LEARNING | {"digest": "def", "checkpoint": "final"}})
    present = options.describe_options(ServerConfig(), {"run": {**recorded["deployments"]["run"], name: choice}})
    conflict = options.find_conflict(recorded, [process(1, recorded), process(1, present)])
    assert (conflict is None) == (message is None)
    assert message is None or str(conflict).startswith(message)
    assert len(options.list_differences(recorded, [process(1, recorded), process(1, present)])) == 1


def test_other_options_only_differ_and_those_of_one_machine_are_not_compared():
    recorded = options.describe_options(ServerConfig(max_queue=100, port=1, max_num_seqs=2), {"run": LEARNING})
    present = options.describe_options(ServerConfig(port=2, max_num_seqs=3), {"run": LEARNING, "story": LEARNING})
    processes = [process(1, recorded), process(2, present), process(3, {})]  # the last one has an earlier version
    assert options.find_conflict(recorded, processes) is None
    warning = options.describe_differences(recorded, processes)
    assert warning is not None
    assert warning.endswith("--max-queue is 100 here and 256 at process 2 ('p2'); RUN is run here and run, story at "
                            "process 2 ('p2')")  # fmt: skip
    assert options.group_options(processes) == {
        "--max-queue": {"100": [1], "256": [2]}, "RUN": {"run": [1], "run, story": [2]},
    }  # fmt: skip
    assert options.describe_differences(recorded, processes[::2]) is None


def test_a_process_with_options_that_break_a_promise_does_not_start(postgres, tmp_path, call_cli, caplog):
    for name in ("texts", "others"):
        (tmp_path / name).write_text(name * 10 + "".join(path.read_text() for path in texts.TRAINING)[:4000])
    base = {"online": True, "reference_text": (str(tmp_path / "texts"),)}
    address = postgres.address_for(tmp_path)

    @contextlib.contextmanager
    def opened(**settings):
        with (
            Store(tmp_path / "state", database_url=address, snapshot_url="") as store,
            opened_deployments([("run", LLAMA)], store, ServerConfig(**(base | settings))) as deployments,
        ):
            yield deployments

    with opened() as first:
        assert first.membership is not None
        first.membership.start("first", "http://127.0.0.1:1")
        for settings, message in (
            ({"frozen": ("run",)}, "--online of 'run' is frozen here and online at process 1 \\('first'\\)"),
            ({"shared_branch": True}, "--shared-branch of 'run' is on here and off"),
            ({"max_forgetting": 0.1}, "--max-forgetting of 'run' is 0.1 here and 0.05"),
            ({"max_context": 8}, "--max-context of 'run' is 8 here"),
            ({"learning": "learning_rate=0.1"}, "was learned with other settings \\(--learning\\) or texts"),
            ({"reference_text": (str(tmp_path / "others"),)}, "was learned with other settings"),
        ):
            with pytest.raises(BadInput, match=message), opened(**settings, max_sessions=7):
                pass
        query = "SELECT max_sessions FROM default_limits"
        assert first.store.select_value(query) == ServerConfig().max_sessions  # nothing was changed
        caplog.set_level(logging.WARNING)
        with opened(max_queue=100) as second:
            assert caplog.text.count("--max-queue is 100 here and 256 at process 1 ('first')") == 1
            assert second.membership is not None
            second.membership.start("second", "http://127.0.0.1:2")
            arguments = ("--state-dir", str(tmp_path / "state"), "--database-url", address)
            line = "processes have different options: --max-queue is 256 at 1; 100 at 2\n"
            assert line in call_cli("deployments", "status", *arguments)[1]
            processes = json.loads(call_cli("deployments", "status", *arguments, "--json")[1])["processes"]
            assert [present["options"]["max_queue"] for present in processes[:2]] == [256, 100]
            second.membership.leave()
        first.membership.leave()


def test_a_process_that_registers_again_is_compared_with_one_that_was_started_meanwhile(postgres, tmp_path):
    with Store(tmp_path, database_url=postgres.address_for(tmp_path)) as store:
        first, second = (Membership(store, "test", allow_mixed=False, find_load=lambda: Load(0, 0)) for _ in "ab")
        first.options, second.options = {"max_queue": 1}, {"max_queue": 2}
        first.start("first", "")
        store.execute("DELETE FROM processes")  # as if its lease had expired
        second.start("second", "")
        wait_until(lambda: first.newest_differing is not None and second.newest_differing == first.newest_differing)
        assert first.number is not None and second.number is not None and first.number > second.number
        assert first.list_earlier() == []
        assert [present.name for present in second.list_earlier()] == ["first"]  # so that it is the one that ends
        first.leave()
        wait_until(lambda: second.newest_differing is None)
        second.leave()


@pytest.mark.slow
def test_the_process_that_was_started_later_ends_if_the_options_of_both_break_a_promise(
    postgres, tmp_path, tmp_path_factory
):
    run, address = shared_run(tmp_path_factory), postgres.address_for(tmp_path)
    environment = {"ONTOGENY_DATABASE_URL": address}
    (tmp_path / "state").mkdir()
    for name in ("first", "second", "third"):
        (tmp_path / name).symlink_to(tmp_path / "state")
    arguments = (str(run), "--online", "--max-forgetting")
    with RealProcess(tmp_path / "first", *arguments, "0.1", environment=environment) as first:
        refused = RealProcess(tmp_path / "second", *arguments, "0.2", environment=environment, ready=False)
        assert refused.process.wait(60) == 2
        log = refused.log.read_text()
        assert "--max-forgetting of 'run' is 0.2 here and 0.1 at process" in log and "Traceback" not in log
        with Store(tmp_path / "state", database_url=address) as store:
            with store.transaction():  # as if the first one had been suspended while the other one started
                changed = store.select_value("SELECT options FROM processes").replace(
                    '_forgetting": 0.1', '_forgetting": 0.2'
                )
                assert store.execute("UPDATE processes SET options = ?", changed).rowcount == 1
            later = RealProcess(tmp_path / "third", *arguments, "0.2", environment=environment)
            store.execute("DELETE FROM processes WHERE name LIKE '%:' || ?", first.url.rpartition(":")[2])
        assert later.process.wait(30) == 2
        assert "--max-forgetting of 'run' is 0.2 here and 0.1 at process" in later.log.read_text()
        assert first.get("/ready")[0] == 200
