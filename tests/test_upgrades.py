"""Online branches after an upgrade of ontogeny or of the packages that compute their weights."""

import logging
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from ontogeny import trees
from ontogeny.content.transformer import TransformerConfig
from ontogeny.errors import BadInput
from ontogeny.lm.online_learner import OnlineConfig, PretrainedWeights
from ontogeny.lm.tokenizer import ByteTokenizer
from ontogeny.server import keys
from ontogeny.server.learning import journal, learner, versions
from ontogeny.server.learning.branches import BranchManager
from ontogeny.server.learning.config import BranchConfig
from ontogeny.server.learning.loading import BranchUnavailable
from ontogeny.server.processes import identity
from ontogeny.server.processes.membership import Load, Membership, list_processes
from ontogeny.server.processes.ownership import SoleOwnership
from ontogeny.server.store import Store
from serving import ClientThreads, ServerProcess, share_snapshots, shared_run, wait_until
from stepping import fake_learner

OLD, NEW = ("x86_64 avx2; ontogeny 0.1.0; jax 0.9.0; xla 0.9.0", "x86_64 avx2; ontogeny 0.1.0; jax 0.10.0; xla 0.10.0")
# As the first format of descriptions had it, with the packages that an earlier digest guarantees.
EARLIER = f"x86_64 avx2 fma 32K/1M; jaxlib {version('jaxlib')}; numba 0.68.1"
ANNA = "story/anna"
TEXTS = ["A lamp in the window.", "A bell below the water.", "Three ships."]
OTHER_SETTINGS = {
    "chunk_size": 16, "optimizer": "sgd", "learning_rate": 1e-3, "decay_rate": 0.1, "fisher_decay": True,
    "rehearsal_batch_size": 2, "rehearsal_weight": 1.0, "adapter_rank": 4, "max_gradient_norm": 2.0,
}  # fmt: skip


def open_branches(store: Store, computed_by: str | None, branch_learner=None, **limits: int) -> BranchManager:
    """The branches of the only server of a database."""
    ownership, config = SoleOwnership(store, computed_by), BranchConfig(max_forgetting=5.0, **limits)
    return BranchManager(store, "story", branch_learner or fake_learner(), config=config, ownership=ownership)


def learn(branches: BranchManager, *examples: str) -> versions.BranchVersion:
    for text in examples:
        branches.add_example("anna", "anna", text)
    while branches.learn_next():
        pass
    return branches.current("anna").version


def list_marks(store: Store) -> list[str]:
    return [decision.reason for decision in journal.list_decisions(store, "story") if decision.kind == "mixed"]


def strange_learner():
    """A learner with the same settings, whose weights have other bits."""
    usual = fake_learner()

    def compute(weights, *arguments):
        weights = usual.learn(weights, *arguments)
        return weights._replace(content=weights.content._replace(embedding=weights.content.embedding + 1))

    return usual._replace(learn=compute)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "state") as store:
        yield store


def test_a_server_continues_the_branches_that_other_versions_have_computed(store, caplog):
    before = open_branches(store, OLD)
    assert learn(before, *TEXTS[:2]).computed_by == OLD
    before.stop()
    after = before
    for i in range(2):
        after = open_branches(store, NEW, strange_learner())
        with caplog.at_level(logging.WARNING):
            after.ownership.report_computations("story")
        assert [record.getMessage().count(f"1 by '{OLD}'") for record in caplog.records] == [1], i
        caplog.clear()
        assert trees.bitwise_equal(after.current("anna").weights, before.current("anna").weights)
        after.current("anna")
        assert list_marks(store) == [f"computed by '{OLD}' so far, and by '{NEW}' from now on"]
    learned = learn(after, TEXTS[2])
    assert (learned.number, learned.computed_by) == (3, NEW)
    after.stop()
    later = open_branches(store, NEW, strange_learner())
    later.ownership.report_computations("story")
    assert trees.digest(later.current("anna").weights) == learned.digest
    later.rollback("anna", 2, "test")  # to a version that was computed otherwise
    assert later.current("anna").version.computed_by == OLD and len(list_marks(store)) == 1
    for _ in range(2):
        later.rollback("anna", 1, "test")
        later.claim("anna")
    assert len(list_marks(store)) == 2
    assert not caplog.records


def test_a_version_without_a_snapshot_is_used_only_if_its_computation_reaches_its_digest(store, call_cli, tmp_path):
    before = open_branches(store, OLD)
    learned = learn(before, *TEXTS)
    assert trees.digest(open_branches(store, NEW).current("anna").weights) == learned.digest
    after = open_branches(store, NEW, strange_learner())
    with pytest.raises(BranchUnavailable) as raised:
        after.current("anna")
    assert all(part in str(raised.value) for part in ("other bits", f"'{OLD}'", f"'{NEW}'", "SIGTERM"))
    command = "ontogeny deployments rollback story --to 0 --key anna --learn-again"
    assert command in str(raised.value)
    with pytest.raises(BranchUnavailable) as raised:  # planted: nothing explains the other bits
        open_branches(store, OLD, strange_learner()).current("anna")
    assert str(raised.value).endswith(f"version 3 was computed to other bits than {learned.digest[:16]}")
    code, output, error = call_cli(*command.split()[1:], "--state-dir", str(tmp_path / "state"))
    assert code == 0 and "current version 0" in output and "examples to learn: 3" in output, error
    assert after.current("anna").version.number == 0
    learn(after)
    assert after.current("anna").version.computed_by == NEW
    before.rollback("anna", 3, "test")
    before.current("anna")
    before.stop()  # the earlier version writes the snapshot
    after = open_branches(store, NEW, strange_learner())
    assert trees.digest(after.current("anna").weights) == learned.digest


@pytest.fixture
def earlier(store):
    """A database of an earlier version of the program, with a version of weights before it named what computes."""
    branches = open_branches(store, EARLIER, fake_learner()._replace(digest="earlier"))
    learn(branches, *TEXTS[:2])
    store.execute("UPDATE versions SET computed_by = NULL WHERE number = 1")
    BranchManager(store, "other", fake_learner()._replace(digest="earlier"))
    branches.stop()
    return branches


def test_branches_of_an_earlier_version_are_converted_if_the_packages_are_the_same(store, earlier):
    with pytest.raises(BadInput, match="earlier version of ontogeny with other versions of packages"):
        open_branches(store, NEW, fake_learner()._replace(digest="new", earlier_digest="another"))
    assert {branch.learner_digest for branch in journal.list_branches(store, "story")} == {"earlier"}
    branch_learner = fake_learner()._replace(digest="new", earlier_digest="earlier")
    installed = identity.package_versions()
    packages = "; ".join(f"{name} {installed[name]}" for name in ("ontogeny", "jax", "jaxlib", "numpy", "optax"))
    present, branches = f"x86_64 avx2 fma 32K/1M; {packages}; numba 0.68.1", earlier
    for _ in range(2):  # the second time, nothing is left to do
        branches = open_branches(store, present, branch_learner)
        assert {branch.learner_digest for branch in journal.list_branches(store, "story")} == {"new"}
        recorded = [record.computed_by for record in versions.list_versions(store, ANNA)]
        assert recorded == [None, f"unknown processor; {packages}", present]
    assert {branch.learner_digest for branch in journal.list_branches(store, "other")} == {"earlier"}
    learn(branches, TEXTS[2])
    branches.rollback("anna", 1, "test")
    branches.current("anna")
    assert not list_marks(store)


def test_a_state_that_an_earlier_version_has_exported_is_accepted_if_the_packages_are_the_same(store, earlier):
    state = earlier.export("anna")
    branches = open_branches(store, NEW, fake_learner()._replace(digest="new", earlier_digest="earlier"))
    restored = branches.restore("anna", state, "test")
    assert restored.number == 3 and restored.digest == versions.get_version(store, ANNA, 2).digest
    for accepted in ("another", None):
        branches.learner = branches.learner._replace(earlier_digest=accepted)
        with pytest.raises(BadInput, match="other settings"):
            branches.restore("anna", state, "test")


def test_the_digest_of_a_learner_depends_on_each_setting_text_and_tokenizer_but_on_no_version(monkeypatch):
    config, online_config = TransformerConfig(vocab_size=256, context_length=64), OnlineConfig()
    pretrained = PretrainedWeights(fake_learner().trained_weights, None)
    tokenizer, texts = ByteTokenizer().as_json(), (np.arange(9), np.arange(5))
    describe, settings = learner._digest, learner._settings
    changed = [online_config.model_copy(update={name: value}) for name, value in OTHER_SETTINGS.items()]
    assert set(OTHER_SETTINGS) == set(OnlineConfig.model_fields)
    digests = [describe(tokenizer, texts, settings(config, choice)) for choice in (online_config, *changed)]
    for name, setting in config._asdict().items():
        value = not setting if isinstance(setting, bool) else 2 if setting is None or setting == () else setting * 2
        digests.append(describe(tokenizer, texts, settings(config._replace(**{name: value}), online_config)))
    digests += [
        describe(tokenizer, changed_texts, settings(config, online_config))
        for changed_texts in ((texts[0], texts[0]), texts[::-1])
    ]
    digests.append(describe("another", texts, settings(config, online_config)))
    assert len(set(digests)) == len(digests)

    def describe_both() -> list[str]:
        earlier = learner._earlier_settings(config, online_config, pretrained)
        return [describe(tokenizer, texts, chosen) for chosen in (settings(config, online_config), earlier)]

    before, installed = describe_both(), learner.library_versions()
    for name, is_equal in (("jax", False), ("python", False), ("ontogeny", True), ("devices", True)):
        monkeypatch.setattr(learner, "library_versions", lambda name=name: installed | {name: "9.9"})
        after = describe_both()
        assert after[0] == before[0] and (after[1] == before[1]) == is_equal, name


def test_a_setting_that_is_off_by_default_can_be_added_without_a_change_of_the_digest():
    assert learner._omit_unused({"rank": 0, "norm": 1.0}, {"rank": 0, "norm": 1.0}) == {"norm": 1.0}
    for setting in (0.0, False, None, ""):  # none of which is the default
        assert learner._omit_unused({"rank": setting}, {"rank": 0}) == {"rank": setting}


@pytest.mark.sqlite  # it uses PostgreSQL in any case
def test_branches_are_not_converted_while_a_process_of_an_earlier_version_runs(earlier, postgres, tmp_path):
    with Store(tmp_path / "shared", database_url=postgres.address_for(tmp_path)) as shared:
        BranchManager(shared, "story", fake_learner()._replace(digest="earlier"))
        members = [Membership(shared, name, allow_mixed=True, find_load=lambda: Load(0, 0)) for name in (EARLIER, NEW)]
        members[0].start("first", "http://127.0.0.1:1")
        branch_learner = fake_learner()._replace(digest="new", earlier_digest="earlier")
        with pytest.raises(BadInput, match=r"must be stopped: process \d+ \('first'\) runs"):
            BranchManager(shared, "story", branch_learner, ownership=members[1])
        members[0].leave()
        BranchManager(shared, "story", branch_learner, ownership=members[1])
        assert {branch.learner_digest for branch in journal.list_branches(shared, "story")} == {"new"}


NOTES = ["The lighthouse keeper wrote a letter to the sea. " * 6, "Bread needs flour, water and salt. " * 5]
COMPLETION = {"model": "run", "prompt": "the little", "max_tokens": 4, "temperature": 0, "learn": False}
PROGRAM = str(Path(__file__).with_name("upgraded.py"))


def start(folder: Path, run: Path, *options: str, optax: str, **settings) -> ServerProcess:
    """Starts a server as if a version of optax were installed."""
    arguments = (str(run), "--online", "--log-level", "info", *options)
    return ServerProcess(folder, *arguments, program=(PROGRAM, optax), **settings)


def teach(server: ServerProcess, key: str, number: int) -> None:
    """Teaches a text and waits until it is learned."""
    assert server.post("/v1/models/run/examples", {"text": NOTES[number - 1]}, key)[0] == 200
    wait_until(lambda: server.get("/v1/models/run/branch", key)[1]["current_version"] == number)


@pytest.mark.slow
def test_a_server_is_upgraded(tmp_path_factory, tmp_path):
    run, folder = shared_run(tmp_path_factory), tmp_path / "state"
    with Store(folder) as store:
        _, key = keys.create_key(store, "anna", admin=True)
    with start(folder, run, optax="0.0.1") as server:
        teach(server, key, 1)
        answer = server.post("/v1/completions", COMPLETION, key)[1]
        state = server.get("/v1/models/run/branch/state", key)[1]
        assert server.stop() == 0
    with start(folder, run, optax="0.0.2") as server:
        upgraded = server.post("/v1/completions", COMPLETION, key)[1]
        assert [upgraded[name] for name in ("system_fingerprint", "choices")] == [
            answer[name] for name in ("system_fingerprint", "choices")
        ]
        teach(server, key, 2)
        assert server.put("/v1/models/run/branch/state", state, key)[0] == 200
        assert server.stop() == 0
        log = server.log.read_text()
    assert log.count("were computed by another kind of machine or by other versions") == 1 and "Traceback" not in log
    with Store(folder) as store:
        (name,) = (branch.branch for branch in journal.list_branches(store, "run") if branch.owner_key != "shared")
        decisions = [(entry.kind, entry.version) for entry in journal.list_decisions(store, "run") if entry.version]
        recorded = [str(learned.computed_by).count("optax 0.0.") for learned in versions.list_versions(store, name)]
    assert decisions == [("learned", 1), ("mixed", 1), ("learned", 2), ("restored", 3)]
    assert recorded == [0, 1, 1, 0]


@pytest.mark.slow
@pytest.mark.sqlite  # it uses PostgreSQL in any case
def test_processes_are_upgraded_one_by_one(tmp_path_factory, tmp_path, postgres):
    run, names = shared_run(tmp_path_factory), ("first", "second", "third", "fourth", "refused")
    environment = {"ONTOGENY_DATABASE_URL": postgres.address_for(tmp_path)}
    share_snapshots(tmp_path / "state" / "snapshots", *(tmp_path / name for name in names))

    def start_process(name: str, optax: str, *options: str) -> ServerProcess:
        return start(tmp_path / name, run, "--process-name", name, *options, optax=optax, environment=environment)

    with Store(tmp_path / "state", database_url=environment["ONTOGENY_DATABASE_URL"]) as store:
        secrets = [keys.create_key(store, name)[1] for name in ("anna", "berta")]
        processes = [start_process(name, "0.0.1") for name in names[:2]]
        for number, key in enumerate(secrets):
            teach(processes[number], key, 1)
        servers, answers, errors = processes[:], [], []

        def send(key: str) -> None:
            while not clients._stopping.is_set():
                try:
                    answers.append(servers[-1].post("/v1/completions", COMPLETION, key))
                except OSError as error:
                    errors.append(error)

        clients = ClientThreads(*(lambda key=key: send(key) for key in secrets))
        with clients:
            for name in names[2:4]:
                new = start_process(name, "0.0.2", "--allow-mixed")
                processes.append(new)
                servers.append(new)  # as a load balancer sends requests to the process that is ready
                num_answers = len(answers)
                wait_until(lambda count=num_answers: len(answers) > count + 4)
                assert processes.pop(0).stop() == 0
            num_answers = len(answers)
            wait_until(lambda: len(answers) > num_answers + 4)
        assert not errors and {status for status, _ in answers} == {200}
        assert {answer["system_fingerprint"].rpartition("-")[2] for _, answer in answers} == {"1"}
        assert {process.name for process in list_processes(store)} == set(names[2:4])
        for number, key in enumerate(secrets):
            teach(processes[number], key, 2)
        decisions = [entry.kind for entry in journal.list_decisions(store, "run")]
        assert decisions.count("mixed") == 2 and decisions.count("learned") == 4
        assert [process.stop() for process in processes] == [0, 0]
        with start_process("refused", "0.0.3") as server:
            status, answer = server.post("/v1/completions", COMPLETION, secrets[0])
            assert status == 503 and answer["error"]["code"] == "branch_unavailable"
            assert all(f"optax 0.0.{i}" in answer["error"]["message"] for i in (2, 3))
