"""Which weights of a model are served, and which of them learn."""

import jax
import pytest

import texts
from ontogeny import trees
from ontogeny.cli.serve import print_details
from ontogeny.errors import BadInput
from ontogeny.kernels.packing import weight_type_of
from ontogeny.lm import model as models
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.online_learner import OnlineConfig
from ontogeny.lm.training import train
from ontogeny.server import deployment_kinds
from ontogeny.server.config import ServerConfig
from ontogeny.server.deployments import Deployments
from ontogeny.server.learning import default_config, journal, learner
from ontogeny.server.learning.branches import BranchManager
from ontogeny.server.learning.default_config import MAX_COPIED_PARAMETERS, choose_config
from ontogeny.server.served_models import load_served_model
from ontogeny.server.store import Store
from serving import CONFIG, ROOT, load, shared_run

GPT2 = ROOT / "tests" / "golden" / "gpt2"


class TrainingStopped(Exception):
    """Ends a training as a signal would."""


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    """A run that was stopped after a part of its steps and has scored its held-out text."""
    folder = tmp_path_factory.mktemp("stopped") / "run"

    def stop(state):
        if state.step >= 20:
            raise TrainingStopped

    with pytest.raises(TrainingStopped):
        train(
            CONFIG.model_copy(update={"num_steps": 40}), texts.TRAINING, folder, on_progress=stop, checkpoint_interval=0
        )
    return folder


@pytest.mark.computes
def test_a_stopped_run_is_served_and_the_server_says_which_weights_it_has(stopped_run, tmp_path, capsys):
    last, best = (load_served_model(stopped_run, is_best, learns=True) for is_best in (False, True))
    assert isinstance(last.model, LanguageModel) and isinstance(best.model, LanguageModel)
    assert trees.bitwise_equal(last.model.weights, models.load(stopped_run, allow_unfinished=True).weights)
    assert trees.bitwise_equal(best.model.weights, models.load(stopped_run, best=True, allow_unfinished=True).weights)
    step, _ = models.read_checkpoint_step(stopped_run) or (0, 0)
    assert last.checkpoint_name == f"after step {step} of 40 of a run that is not finished"
    assert best.checkpoint_name == "with the lowest held-out loss"
    runs = [("last", stopped_run), ("best", stopped_run)]
    served = Deployments(runs, Store(tmp_path), ServerConfig(best=("best",))).by_name
    assert [deployment.checkpoint_name for deployment in served.values()] == [
        last.checkpoint_name,
        best.checkpoint_name,
    ]
    print_details(list(served.values()))
    assert (
        capsys.readouterr().out
        == f"last: the weights {last.checkpoint_name}\nbest: the weights {best.checkpoint_name}\n"
    )
    for deployment in served.values():
        deployment.sessions.stop()


def test_weights_of_the_lowest_loss_exist_only_in_runs(tmp_path, call_cli):
    with pytest.raises(BadInput, match="has no weights of the lowest loss"):
        load_served_model(GPT2, True, learns=False)
    assert load_served_model(GPT2, False, learns=False).checkpoint_name == "final"
    code, _, error = call_cli("serve", str(GPT2), "--best", "gpt3", "--state-dir", str(tmp_path / "state"))
    assert code == 2 and "gpt3" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "num_parameters", "rank", "learning_rate", "by_size"),
    [
        ("", MAX_COPIED_PARAMETERS, 0, 1e-4, False),
        ("", MAX_COPIED_PARAMETERS + 1, 8, 3e-3, True),
        ("chunk_size=16", MAX_COPIED_PARAMETERS + 1, 8, 3e-3, True),
        ("learning_rate=1e-3", MAX_COPIED_PARAMETERS + 1, 8, 1e-3, True),
        ("adapter_rank=0", MAX_COPIED_PARAMETERS + 1, 0, 1e-4, False),
        ("adapter_rank=4", 1000, 4, 1e-4, False),
        ("fisher_decay=true", MAX_COPIED_PARAMETERS + 1, 0, 1e-4, False),
    ],
)
def test_the_size_of_a_model_decides_what_learns_unless_a_setting_does(
    settings, num_parameters, rank, learning_rate, by_size
):
    config, is_by_size = choose_config(settings, num_parameters)
    assert (config.adapter_rank, config.learning_rate, is_by_size) == (rank, learning_rate, by_size)
    words = f"an adapter of rank {rank} learns" if rank else f"all of its {num_parameters:,} weights learn"
    assert default_config.describe_choice(config, num_parameters).startswith(words)


@pytest.mark.computes
def test_branches_of_an_earlier_version_go_on_as_they_began(tmp_path_factory, tmp_path, monkeypatch):
    model = load(shared_run(tmp_path_factory))
    with Store(tmp_path / "state") as store:
        earlier = BranchManager(store, "story", learner.build(model, OnlineConfig()))
        earlier.add_example("a", "a", "A lamp.")
    monkeypatch.setattr(default_config, "MAX_COPIED_PARAMETERS", 1000)
    for name, words in (("story", "all of its"), ("new", "an adapter of rank 8")):
        with Store(tmp_path / "state") as store:
            deployment = deployment_kinds.LanguageDeployment(name, model, store, ServerConfig(online=True))
            assert deployment.learning is not None and deployment.learning.startswith(words)
            assert deployment.branches is not None and (name == "new" or deployment.branches.learn_next())
            deployment.sessions.stop()
    with Store(tmp_path / "state") as store:
        assert journal.get_branch(store, "story/a").current_version == 1


def test_weights_of_another_type_are_served_unless_they_learn(tmp_path):
    pytest.importorskip("numba")
    model = load_served_model(GPT2, False, "int8", learns=False).model
    assert isinstance(model, LanguageModel) and weight_type_of(model.weights) == "int8"
    learning = load_served_model(GPT2, False, "int8", learns=True).model
    assert isinstance(learning, LanguageModel) and isinstance(learning.weights.embedding, jax.Array)
    with Store(tmp_path / "state") as store, pytest.raises(BadInput, match="no others are served, so --weights int8"):
        Deployments([("a", GPT2), ("b", GPT2)], store, ServerConfig(online=True, frozen=("b",), weights="int8"))
