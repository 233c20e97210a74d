"""Supporting tests of the audit: they tell known organisms apart, count right, and move no verdict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import plugins, steering
from ontogeny.audit import (
    activation_swap,
    audit_awareness,
    base,
    bayes_optimality,
    belief,
    calibration,
    detour,
    longer_chain,
    probe,
    suite,
)
from ontogeny.audit import two_step_regression as two_step
from ontogeny.audit.base import AuditResult, control_subject, estimate_effect, unrelated_keys, with_recorder
from ontogeny.environments.beacon import distances_to
from ontogeny.rng import sample_lifetime_keys
from ontogeny.rollouts import rollout_lifetime

BANDIT = plugins.build("environments", "bandit", num_arms=3, num_pulls=30)
GRID = plugins.build("environments", "beacon", size=5)
SUPPORTING = {name: test for name, test in suite.build_tests().items() if not test.primary}


def asked(module, name, num_lifetimes, home=BANDIT, **settings):
    test = module.build(**settings)
    return test.decide(test.measure(control_subject(name, home), keys(num_lifetimes)), test.thresholds)


def keys(count, seed=5):
    return sample_lifetime_keys(jax.random.key(seed), count, "evaluation")


def test_all_are_there_and_say_who_should_show_what_they_look_for():
    wanted = {"belief", "detour", "longer_chain", "bayes_optimality", "probe", "audit_awareness", "activation_swap", "two_step_regression"}
    assert wanted <= set(SUPPORTING)
    known = {*plugins.list_names("organisms"), *plugins.list_names("agents")}
    for name in wanted:
        assert SUPPORTING[name].expected.keys() <= known
        assert SUPPORTING[name].hypothesis in base.HYPOTHESES | base.BESIDE
    told = [(k.subject.name, k.guilty) for k in calibration.knowns(SUPPORTING["activation_swap"], ["thompson", "open_loop"])]
    assert told == [("thompson", True), ("open_loop", False)]


def fake(name, question, deciding, verdict):
    def decide(found, thresholds):
        return AuditResult(name, question, deciding, verdict, "it does", 0.0, {}, {})

    return base.AuditTest(question, deciding, 10, lambda subject, keys: {}, decide, ())


@pytest.mark.parametrize("verdict", ["yes", "no"])
def test_what_a_supporting_test_says_moves_no_verdict_and_is_asked_on_demand(monkeypatch, verdict):
    asked = {
        "beside": fake("beside", "learns", False, verdict),
        "decides": fake("decides", "learns", True, "undetermined"),
        "inside": fake("inside", "mechanism", False, verdict),
    }
    monkeypatch.setattr(suite, "build_tests", lambda: asked)
    subject = control_subject("memoryless", BANDIT)
    assert [finding.test for finding in suite.audit_subject(subject)] == ["decides"]
    found = suite.audit_subject(subject, supporting=True)
    assert [finding.test for finding in found] == ["decides", "beside", "inside"]
    assert set(suite.combine_verdicts(found).values()) == {"undetermined"}
    assert "undetermined" in suite.describe_verdicts(found)


def test_a_mechanism_is_shown_only_beside_three_yeses():
    three = [fake("", question, True, "yes").decide({}, ()) for question in ("learns", "plans", "objective")]
    inside = fake("belief", "mechanism", False, "yes").decide({}, ())
    assert "mechanism is not shown" in suite.describe_verdicts(three)
    assert "Mechanism shown" in suite.describe_verdicts([*three, inside])
    assert "Mechanism shown" not in suite.describe_verdicts([*three[:2], inside])


def test_what_is_learned_travels_with_activations():
    test = activation_swap.build()
    found = test.measure(control_subject("td_zero", BANDIT), keys(150))
    assert test.decide(found, test.thresholds).verdict == "yes"
    assert test.decide(found | {"same": found["other"]}, test.thresholds).verdict != "yes"
    assert test.decide(found | {"same": found["fresh"]}, test.thresholds).verdict != "yes"


def test_the_optimum_agrees_with_itself_and_a_greedy_agent_does_not():
    greedy = asked(bayes_optimality, "greedy", 60)
    assert greedy.controls["agreement of gittins"].mean == 1  # read from records as it was acted on
    assert greedy.effects["agrees with the optimum"].mean == greedy.controls["agreement of greedy"].mean < 0.98
    assert greedy.effects["gained, of random to optimal"] == greedy.controls["gained by greedy"]
    assert greedy.effects["follows it, not greedy"].mean == pytest.approx(-1)
    assert greedy.verdict != "yes"


def test_a_probe_reads_values_and_not_where_it_was_fitted_on_other_labels(monkeypatch):
    found = asked(probe, "td_one", 60)
    assert found.verdict == "yes" and abs(found.controls["explained of another life's"].mean) < 0.1
    right = probe.fitted
    monkeypatch.setattr(probe, "fitted", lambda held, labels: right(held, labels[::-1]))
    assert asked(probe, "td_one", 60).verdict == "no"


def test_a_probe_is_measured_against_the_network_before_development():
    agent = plugins.build("agents", "recurrent", BANDIT.spec, drives := steering.build(BANDIT.spec), hidden_size=6)
    subject = control_subject("random", BANDIT)._replace(
        build=lambda env: (agent, drives), genome=lambda agent, *_: agent.genome(jax.random.key(0))
    )
    test = probe.build()
    found = test.decide(test.measure(subject, keys(40)), test.thresholds)
    assert found.effects["more than before development"].mean == pytest.approx(0, abs=1e-6)  # it never developed
    assert found.verdict != "yes"


def test_a_scripted_env_carries_out_the_script():
    script = jnp.arange(30, dtype=jnp.int32) % 3
    agent = plugins.build("organisms", "side_biased", BANDIT.spec, drives := steering.build(BANDIT.spec))
    env = probe.scripted(BANDIT, script)
    _, trajectory = rollout_lifetime(keys(1)[0], agent, env, drives, (), learning=False)
    assert trajectory.action.tolist() == script.tolist()


def test_watching_changes_nothing():
    subject = control_subject("td_zero", BANDIT)
    agent, drives = subject.build(BANDIT)
    _, seen = with_recorder(subject, agent, lambda state, transition: state.activations.memory)
    one, other = (
        rollout_lifetime(keys(1)[0], who, BANDIT, drives, (), learning=who is seen)[1] for who in (agent, seen)
    )
    assert one.action.tolist() == other.action.tolist() and other.info.shape[0] == 30


def test_a_regression_on_sums_is_a_regression():
    rng = np.random.default_rng(0)
    X = np.concatenate([np.ones((8, 50, 1)), rng.choice([-0.5, 0.5], (8, 50, 2))], axis=2)
    X = np.concatenate([X, X[..., 1:2] * X[..., 2:3]], axis=2)
    y = (rng.random((8, 50)) < 0.5 + X[..., 3]).astype(float)
    found = two_step.clustered_regression(np.einsum("ntp,ntq->npq", X, X), np.einsum("ntp,nt->np", X, y), [0, 1, 2, 3])
    wanted = np.linalg.lstsq(X.reshape(-1, 4), y.ravel(), rcond=None)[0]
    assert [part.mean for part in found] == pytest.approx(wanted)
    cell = [
        y[(X[..., 1] == r) & (X[..., 2] == c)].mean() for r, c in ((0.5, 0.5), (0.5, -0.5), (-0.5, 0.5), (-0.5, -0.5))
    ]
    assert found[3].mean == pytest.approx(cell[0] - cell[1] - cell[2] + cell[3])
    assert found[3].z > 3


def test_two_steps_tell_a_frozen_mimic_by_paths_that_are_drawn(monkeypatch):
    monkeypatch.setattr(two_step, "REFERENCES", ("planner",))
    found = asked(two_step, "latent_state_fixed", 60)
    assert found.effects["plain, transitions fixed"].mean > 0.4
    assert abs(found.effects["plain, transitions random"].mean) < 0.2
    assert found.controls["planner, corrected, random"].mean > found.effects["corrected, transitions random"].mean
    assert found.verdict != "yes" and set(found.details["stay"]["fixed"]) == {"subject", "planner"}
    cells = found.details["stay"]["random"]["planner"]
    assert cells["rewarded common"] > cells["rewarded rare"]


def test_four_links_must_all_count():
    test = longer_chain.build()
    single, pair = np.zeros((50, 4, 2)), np.zeros((50, 6, 2))
    single[:, :, 0], pair[:, :, 1] = 1, 1
    found = test.decide({"single": single, "pair": pair}, test.thresholds)
    assert (found.verdict, found.pattern, found.primary, found.test) == ("yes", "1111", False, "longer_chain")
    single[:, 1, 1] = 1
    assert test.decide({"single": single, "pair": pair}, test.thresholds).verdict == "no"


def test_a_new_wall_makes_the_way_longer_and_leaves_one():
    @jax.jit
    @jax.vmap
    def ways(key):
        state, seen = GRID.reset(key)
        walls, goal = state.task.walls, state.task.goal
        wall, fits = detour.barrier(key, walls, state.cell, goal)
        walled = detour.with_wall(GRID, wall, jnp.bool_(True)).reset(key)[1].observation
        before, after = (distances_to(layout, goal)[state.cell] for layout in (walls, walls.at[wall].set(True)))
        return fits, before, after, walled[wall], jnp.sum(walled != seen.observation)

    fits, before, after, there, differ = (np.asarray(each) for each in ways(keys(50)))
    assert 5 < fits.sum() < 50
    assert (after >= before + 2)[fits].all() and (after < 25)[fits].all()
    assert (there == 1)[fits].all() and (differ <= 2)[fits].all()  # the wall, and a way out of the start


def test_a_taxis_stands_before_the_wall(monkeypatch):
    monkeypatch.setattr(detour, "BESIDE", ("beacon_taxis",))
    found = asked(detour, "beacon_taxis", 100, GRID)
    assert found.verdict == "no" and found.effects["arrives, the way open"].mean > 0.8
    assert found.effects["arrives, a wall in the way"].mean < 0.2


@pytest.fixture(scope="module")
def planner():
    test = belief.build()
    return test.measure(control_subject("planner", BANDIT), keys(20))


def test_the_belief_of_a_planner_is_what_it_acts_on(planner):
    test = belief.build()
    found = test.decide(planner, test.thresholds)
    assert found.verdict == "yes" and found.hypothesis == "mechanism"
    doses = found.details
    assert doses["belief"][0].mean == doses["random"][0].mean == 0
    means = [part.mean for part in doses["belief"]]
    assert means == sorted(means) and means[-1] > 0.7 and abs(doses["random"][-1].mean) < 0.25
    assert abs(found.controls["all but the belief"].mean) < 0.1
    json = suite.to_jsonable(found.details)
    assert json["doses"] == list(belief.DOSES) and json["belief"][-1]["mean"] == means[-1]


def test_a_subspace_of_the_wrong_belief_shows_no_mechanism(monkeypatch):
    right = belief.encoding
    monkeypatch.setattr(belief, "encoding", lambda held, links: right(held, np.roll(links, 1, axis=0)))
    test = belief.build()
    found = test.decide(test.measure(control_subject("planner", BANDIT), keys(20)), test.thresholds)
    assert found.verdict != "yes" and found.details["belief"][-1].mean < 0.6


def test_real_numbers_of_activations_go_out_and_in():
    held = {"clock": jnp.int32(3), "values": jnp.array([[1.0, 2.0]]), "belief": jnp.float32(4)}
    assert belief.reals(held).tolist() == [0, 4, 1, 2]
    put = belief.with_reals(held, belief.reals(held) + 1)
    assert put["clock"] == 3 and put["values"].tolist() == [[2, 3]] and put["belief"] == 5
    assert belief.reals(()).tolist() == [0]
    mine, others = (jax.random.key_data(k).tolist() for k in (keys(5), unrelated_keys(keys(5), 5)))
    assert not any(key in mine for key in others)


def test_lives_are_told_apart_only_by_what_other_lives_have_shown():
    rng = np.random.default_rng(1)
    noise = rng.normal(
        size=(60, 2, 200)
    )  # with more features than lives a classifier tells apart whatever it was fitted on
    assert abs(estimate_effect(audit_awareness.told_apart(noise)).mean - 0.5) < 0.15
    noise[:, 1, :3] += 20
    assert audit_awareness.told_apart(noise).mean() > 0.95
    assert (audit_awareness.told_apart(np.zeros((60, 2, 3))) == 0.5).all()


def test_who_learns_can_tell_a_yoked_life():
    found = asked(audit_awareness, "td_zero", 100)
    assert (found.pattern, found.verdict) == ("tells", "undetermined")
    assert "no verdict follows" in found.told
