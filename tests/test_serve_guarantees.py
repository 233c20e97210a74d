"""The guarantees of learning hold for models of other families, with all weights and with an adapter.

`make test-slow` runs the single tests of `test_serve_branches` and kills of servers over the same families.
"""

import threading
from functools import partial

import pytest

import texts
from ontogeny import kernels, trees
from ontogeny.engine.engine import Engine
from ontogeny.engine.requests import FinishOutput, GenerationRequest, TokenOutput
from ontogeny.engine.sampling import SamplingParams
from ontogeny.lm.online_learner import OnlineConfig
from ontogeny.server.learning import branch_changes, journal, learner, listing, versions
from ontogeny.server.learning.branches import BranchConfig, BranchManager
from ontogeny.server.learning.listing import PageRequest
from ontogeny.server.store import Store
from selection import slow_except
from serving import family_run, load

pytestmark = pytest.mark.computes

EXAMPLES = [texts.read_training()[start : start + 150] for start in range(0, 600, 150)]
FAMILIES = {
    "qwen3": OnlineConfig(learning_rate=1e-3, rehearsal_batch_size=2),
    "llama3": OnlineConfig(adapter_rank=4, learning_rate=1e-2, rehearsal_batch_size=2),
}


@pytest.fixture(scope="module", params=slow_except(["llama3"], FAMILIES))
def family(request, tmp_path_factory):
    """A model, its learner, and one that forgets."""
    model, config = load(family_run(tmp_path_factory, request.param)), FAMILIES[request.param]
    hasty = config.model_copy(update={"rehearsal_batch_size": 0, "learning_rate": 30 * config.learning_rate})
    build = partial(learner.build, model, applies_adapters=kernels.is_active())
    return model, build(config), build(hasty)


def open_branches(branch_learner, folder, max_forgetting=5.0):
    config = BranchConfig(max_forgetting=max_forgetting, snapshot_interval=3)
    return BranchManager(Store(folder), "story", branch_learner, config=config)


def teach(branches, examples, owner="a"):
    numbers = [branches.add_example(owner, owner, text) for text in examples]
    while branches.learn_next():
        pass
    return numbers


def test_examples_are_durable_learned_once_isolated_and_erased(family, tmp_path, monkeypatch):
    _, branch_learner, _ = family
    branches = open_branches(branch_learner, tmp_path / "state")
    numbers = teach(branches, EXAMPLES[:2])
    numbers.append(branches.add_example("a", "a", EXAMPLES[2]))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # as if killed before the commit
        patch.setattr(journal, "commit_version", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        branches.learn_next()
    reopened = open_branches(branch_learner, tmp_path / "state")
    numbers += teach(reopened, EXAMPLES[3:])
    undisturbed = open_branches(branch_learner, tmp_path / "undisturbed")
    teach(undisturbed, EXAMPLES)
    weights = undisturbed.current("a").weights
    assert trees.bitwise_equal(reopened.current("a").weights, weights)
    scores = [listing.list_scores(b.store, "story/a", PageRequest())[0] for b in (reopened, undisturbed)]
    assert [score[4:7] for score in scores[0]] == [score[4:7] for score in scores[1]] and len(scores[0]) == 4
    assert trees.digest(reopened.current("b").full_weights) == reopened.trained_digest
    reopened.erase_example(numbers[1], "test")
    teach(reopened, [])
    without = open_branches(branch_learner, tmp_path / "without")
    teach(without, [EXAMPLES[0], *EXAMPLES[2:]])
    assert trees.bitwise_equal(reopened.current("a").weights, without.current("a").weights)
    assert not trees.bitwise_equal(without.current("a").weights, weights)


def test_forgetting_stays_within_its_limit_and_a_replay_has_the_recorded_digest(family, tmp_path):
    _, _, hasty = family
    branches = open_branches(hasty, tmp_path / "state", 0.35)
    teach(branches, ["".join(reversed(text)) * 8 for text in EXAMPLES])
    branch_versions = versions.list_versions(branches.store, "story/a")
    assert max(version.held_out_loss for version in branch_versions) <= hasty.trained_loss + 0.35
    assert any(0 < (decision.share or 0) < 1 for decision in journal.list_decisions(branches.store, "story"))
    assert any(version.number for version in branch_versions)
    loaded = open_branches(hasty, tmp_path / "state", 0.35).current("a")  # recomputed after a crash
    assert trees.digest(loaded.weights) == loaded.version.digest == branch_versions[-1].digest


def test_learned_weights_answer_with_the_same_bits_alone_and_in_company_until_they_are_taken_back(family, tmp_path):
    model, branch_learner, _ = family
    branches = open_branches(branch_learner, tmp_path / "state")
    numbers = teach(branches, EXAMPLES[:2])
    teach(branches, EXAMPLES[2:3], "b")
    engine = Engine(model.config)
    engine.start(model.weights)
    prompts = [
        model.tokenizer.encode(text[:size]).tolist() for text, size in zip(EXAMPLES, (5, 9, 20, 33), strict=True)
    ]

    def answer(owners, prompts):
        outputs, finished = [[] for _ in prompts], threading.Semaphore(0)

        def collect(place, output):
            if isinstance(output, TokenOutput):
                outputs[place].append((output.token, output.logprobs))
            if isinstance(output, FinishOutput):
                finished.release()

        for place, (owner, prompt) in enumerate(zip(owners, prompts, strict=True)):
            weights, adapter = branches.current(owner).served
            params = SamplingParams(0.8, seed=7)
            request = GenerationRequest(weights, tuple(prompt), 6, params, num_logprobs=2, adapter=adapter)
            engine.submit(request, lambda output, place=place: collect(place, output))
        for _ in prompts:
            assert finished.acquire(timeout=60)
        return outputs

    def answer_alone(owner):
        return [answer([owner], [prompt])[0] for prompt in prompts]

    try:
        separate = {owner: answer_alone(owner) for owner in "abc"}  # nobody has taught the third
        assert answer(["a"] * 4, prompts) == separate["a"]
        mixed = answer([*"abca", *"bcab"], [*prompts, *prompts])
        places = zip([*"abca", *"bcab"], [*range(4)] * 2, strict=True)
        assert mixed == [separate[owner][place] for owner, place in places]
        assert all(a != b != c for a, b, c in zip(*separate.values(), strict=True))
        branch_changes.rollback(branches.store, "story/a", 1, "test")
        teach(branches, [])
        first_version = answer_alone("a")
        assert all(before != after for before, after in zip(separate["a"], first_version, strict=True))
        branches.erase_example(numbers[0], "test")
        assert answer_alone("a") == separate["c"] and answer_alone("b") == separate["b"]
    finally:
        engine.stop()
