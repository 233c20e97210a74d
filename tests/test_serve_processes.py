"""Server processes that share a PostgreSQL database: owners of branches, hand-over, and requests passed on."""

import json
import os
import signal
import time

import pytest

from ontogeny.server import keys
from ontogeny.server.learning import journal, versions
from ontogeny.server.processes import membership
from ontogeny.server.processes.membership import list_processes
from ontogeny.server.processes.transfers import NUM_FORWARDED
from ontogeny.server.store import Store
from serving import ServerProcess, share_snapshots, shared_run, wait_until

NOTES = [
    "The lighthouse keeper wrote a letter to the sea. " * 6,
    "Bread needs flour, water, salt and a warm place for an hour. " * 5,
]
COMPLETION = {"model": "run", "prompt": "the little", "max_tokens": 4, "temperature": 0, "learn": False}


@pytest.fixture
def database(postgres, tmp_path):
    return postgres.address_for(tmp_path)


@pytest.fixture
def servers(tmp_path_factory, tmp_path, database):
    """Two processes that share a database, a key, and the store."""
    run = shared_run(tmp_path_factory)
    share_snapshots(tmp_path / "state" / "snapshots", tmp_path / "first", tmp_path / "second")
    with Store(tmp_path / "state", database_url=database) as store:
        _, key = keys.create_key(store, "anna", admin=True)
        with start(tmp_path / "first", run, database) as first, start(tmp_path / "second", run, database) as second:
            yield first, second, key, store


def start(folder, run, database, *options):
    """Starts a process that is named like its folder."""
    arguments = (str(run), "--online", "--log-level", "info", "--process-name", folder.name, *options)
    return ServerProcess(folder, *arguments, environment={"ONTOGENY_DATABASE_URL": database})


def own_branch(store):
    return next(branch for branch in journal.list_branches(store, "run") if branch.owner_key != journal.SHARED)


def test_any_process_answers_for_the_owner_of_a_branch(servers):
    first, second, key, store = servers
    assert [process.name for process in list_processes(store)] == ["first", "second"]
    status, answer = first.post("/v1/models/run/examples", {"text": NOTES[0]}, key)
    assert status == 200, answer
    numbers = {process.name: process.number for process in list_processes(store)}
    assert own_branch(store).owner == numbers["first"]
    wait_until(lambda: second.get("/v1/models/run/branch", key)[1]["current_version"] == 1)
    answers = [server.post("/v1/completions", COMPLETION, key) for server in (first, second)]
    assert [status for status, _ in answers] == [200, 200]
    assert answers[0][1]["choices"] == answers[1][1]["choices"]
    assert answers[0][1]["system_fingerprint"] == answers[1][1]["system_fingerprint"]
    assert second.post("/v1/models/run/examples", {"text": NOTES[1]}, key)[0] == 200
    assert own_branch(store).owner == numbers["first"]  # the second process has passed the text on
    status, state = second.get("/v1/models/run/branch/state", key)
    assert status == 200 and second.put("/v1/models/run/branch/state", state, key)[0] == 200
    assert own_branch(store).owner == numbers["first"]
    prompt = {"model": "run", "prompt": "A prompt of which the next owner knows.", "max_tokens": 1}
    assert second.post("/v1/completions", prompt, key)[1]["ontogeny"]["example"] is not None
    for number in range(NUM_FORWARDED - 3):
        text = {"text": f"Text {number}. {NOTES[0][:49]}"}
        assert second.post("/v1/models/run/examples", text, key)[0] == 200
    wait_until(lambda: second.get("/v1/models/run/branch", key)[1]["num_pending"] == 0)
    answers = [second.post("/v1/completions", COMPLETION, key)[1] for _ in range(3)]
    wait_until(lambda: own_branch(store).owner == numbers["second"])  # where all requests arrive
    answers += [server.post("/v1/completions", COMPLETION, key)[1] for server in (first, second)]
    assert len({json.dumps([answer["system_fingerprint"], answer["choices"]]) for answer in answers}) == 1
    assert second.post("/v1/completions", prompt, key)[1]["ontogeny"]["example"] is None


@pytest.mark.parametrize("stop", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGTERM])
def test_another_process_takes_a_branch_over(servers, stop):
    first, second, key, store = servers
    for text in NOTES[:2]:
        assert first.post("/v1/models/run/examples", {"text": text}, key)[0] == 200
    before = own_branch(store)
    first.process.send_signal(stop)
    first.process.wait(30)
    started_at = time.monotonic()
    status, answer = second.post("/v1/completions", COMPLETION, key)
    assert status == 200, answer
    print("seconds until the answer of the new owner:", time.monotonic() - started_at)
    after = own_branch(store)
    assert after.owner != before.owner and after.fence > before.fence
    wait_until(lambda: second.get("/v1/models/run/branch", key)[1]["num_pending"] == 0)
    assert [example.text for example in journal.list_examples(store, after.branch)] == NOTES[:2]
    assert second.get("/v1/models/run/branch", key)[1]["current_version"] == 2
    assert "Traceback" not in second.log.read_text()


@pytest.mark.slow
def test_a_suspended_owner_neither_writes_nor_answers_from_old_weights(servers):
    first, second, key, store = servers
    assert first.post("/v1/models/run/examples", {"text": NOTES[0]}, key)[0] == 200
    before = own_branch(store)
    os.kill(first.process.pid, signal.SIGSTOP)
    try:
        time.sleep(membership.LEASE)
        assert second.post("/v1/models/run/examples", {"text": NOTES[1]}, key)[0] == 200
        wait_until(lambda: second.get("/v1/models/run/branch", key)[1]["num_pending"] == 0)
    finally:
        os.kill(first.process.pid, signal.SIGCONT)
    status, answer = first.post("/v1/completions", COMPLETION, key)
    assert status == 200 and answer["system_fingerprint"].endswith("-2")
    after = own_branch(store)
    assert after.owner != before.owner
    branch_versions = versions.list_versions(store, after.branch)
    assert [version.number for version in branch_versions] == [0, 1, 2]
    assert "Traceback" not in first.log.read_text()


def test_the_status_lists_processes_and_all_processes_forget_erased_texts(servers, call_cli, tmp_path, database):
    first, second, key, store = servers
    assert first.post("/v1/models/run/examples", {"text": NOTES[0]}, key)[0] == 200
    wait_until(lambda: first.get("/v1/models/run/branch", key)[1]["current_version"] == 1)
    options = ("--state-dir", str(tmp_path / "state"), "--database-url", database)
    code, output, _ = call_cli("deployments", "status", *options, "--json")
    processes = json.loads(output)["processes"]
    assert code == 0 and [process.get("name") for process in processes] == ["first", "second", None]
    assert [process["num_branches"] for process in processes] == [1, 0, 1]  # nobody has used the shared branch
    code, output, _ = call_cli("deployments", "status", *options)
    assert code == 0 and "first" in output and "second" in output
    number = journal.list_examples(store, own_branch(store).branch)[0].number
    assert second.delete(f"/v1/models/run/examples/{number}", key)[0] == 200
    wait_until(lambda: first.get("/v1/models/run/branch", key)[1]["current_version"] == 0)
    answers = [server.post("/v1/completions", COMPLETION, key)[1] for server in (first, second)]
    assert {answer["system_fingerprint"].rpartition("-")[2] for answer in answers} == {"0"}
    assert [decision.process for decision in journal.list_decisions(store, "run")][-1] is not None


def test_a_prompt_that_another_process_has_erased_counts_as_new(servers):
    first, second, key, _ = servers
    prompt = {"model": "run", "prompt": NOTES[1], "max_tokens": 1}

    def teach():
        status, answer = first.post("/v1/completions", prompt, key)
        assert status == 200
        return answer["ontogeny"]["example"]

    number = teach()
    assert number is not None and teach() is None
    assert second.delete(f"/v1/models/run/examples/{number}", key)[0] == 200
    assert wait_until(teach) > number


@pytest.mark.slow
def test_a_request_for_a_branch_of_another_kind_of_processor_reaches_a_process_that_may_own_it(
    servers, database, tmp_path_factory
):
    first, second, key, store = servers
    assert second.post("/v1/models/run/examples", {"text": NOTES[0]}, key)[0] == 200
    wait_until(lambda: second.get("/v1/models/run/branch", key)[1]["current_version"] == 1)
    assert second.stop() == 0
    with store.transaction():
        store.execute("UPDATE versions SET computed_by = 'another kind of processor' WHERE number = 1")
        store.execute("UPDATE branches SET owner = NULL, fence = fence + 1")
    wait_until(lambda: first.post("/v1/completions", COMPLETION, key)[0] == 503)
    mixed = second.state_dir.with_name("mixed")
    mixed.symlink_to(second.state_dir)
    with start(mixed, shared_run(tmp_path_factory), database, "--allow-mixed"):
        status, answer = first.post("/v1/completions", COMPLETION, key)
        assert status == 200 and answer["system_fingerprint"].endswith("-1")
        numbers = {process.name: process.number for process in list_processes(store)}
        assert own_branch(store).owner == numbers["mixed"]
