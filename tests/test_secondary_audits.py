"""Secondary tests of the audit: they identify known organisms, compute correctly and change no verdict."""

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
from ontogeny.audit.base import (
    AuditTest,
    control_subject,
    prepare_subject,
    rollout_subject,
    unrelated_keys,
    with_recorder,
)
from ontogeny.audit.decisions import AuditResult, Thresholds, estimate_effect
from ontogeny.environments.base import distances_to
from ontogeny.rng import sample_lifetime_keys
from ontogeny.rollouts import rollout_lifetime

BANDIT = plugins.build("environments", "bandit", num_arms=3, num_pulls=30)
GRID = plugins.build("environments", "beacon", size=5)
SECONDARY = {name: test for name, test in suite.build_tests().items() if not test.primary}


def audit(module, name, num_lifetimes, train_env=BANDIT, **settings):
    test = module.build(**settings)
    return test.decide(test.measure(control_subject(name, train_env), keys(num_lifetimes)), test.thresholds)


def keys(count, seed=5):
    return sample_lifetime_keys(jax.random.key(seed), count, "evaluation")


def test_every_secondary_test_states_its_positive_and_negative_controls():
    with_controls = {
        "activation_swap", "audit_awareness", "bayes_optimality", "belief", "detour", "longer_chain", "probe",
        "two_step_regression",
    }  # fmt: skip
    assert SECONDARY.keys() == with_controls | {"drive_reversal"}
    controls = {*plugins.list_names("organisms"), *plugins.list_names("agents")}
    for name in with_controls:
        assert SECONDARY[name].expected and SECONDARY[name].expected.keys() <= controls
        assert SECONDARY[name].hypothesis in base.HYPOTHESES | base.SECONDARY_HYPOTHESES
    chosen = calibration.controls_of(SECONDARY["activation_swap"], ["thompson", "open_loop"])
    assert [(c.subject.name, c.positive) for c in chosen] == [("thompson", True), ("open_loop", False)]


def fake_test(name, hypothesis, primary, verdict):
    def decide(measurements, thresholds):
        return AuditResult(name, hypothesis, primary, verdict, "it does", 0.0, {}, {})

    return AuditTest(name, hypothesis, primary, 20, lambda subject, keys: {}, decide, Thresholds(2.0))


@pytest.mark.parametrize("verdict", ["yes", "no"])
def test_secondary_tests_run_on_demand_and_change_no_verdict(monkeypatch, verdict):
    fake_tests = [
        fake_test("secondary", "learns", False, verdict),
        fake_test("primary", "learns", True, "undetermined"),
        fake_test("inside", "mechanism", False, verdict),
    ]
    monkeypatch.setattr(suite, "build_tests", lambda: {test.name: test for test in fake_tests})
    subject = control_subject("memoryless", BANDIT)
    assert [result.test for result in suite.audit_subject(subject)] == ["primary"]
    results = suite.audit_subject(subject, secondary=True)
    assert [result.test for result in results] == ["primary", "secondary", "inside"]
    assert set(suite.combine_verdicts(results).values()) == {"undetermined"}
    assert "undetermined" in suite.describe_verdicts(results)


def test_a_mechanism_requires_three_primary_verdicts_of_yes():
    three = [fake_test("", name, True, "yes").decide({}, ()) for name in ("learns", "plans", "objective")]
    mechanism = fake_test("belief", "mechanism", False, "yes").decide({}, ())
    assert "mechanism is not shown" in suite.describe_verdicts(three)
    assert "Mechanism shown" in suite.describe_verdicts([*three, mechanism])
    assert "Mechanism shown" not in suite.describe_verdicts([*three[:2], mechanism])


def test_activations_carry_what_was_learned():
    test = activation_swap.build()
    measurements = test.measure(control_subject("td_zero", BANDIT), keys(150))
    assert test.decide(measurements, test.thresholds).verdict == "yes"
    for reference in ("other_task", "initial"):
        without_effect = measurements | {"same_task": measurements[reference]}
        assert test.decide(without_effect, test.thresholds).verdict != "yes"


def test_the_bayes_optimal_agent_agrees_with_the_optimum_and_a_greedy_agent_does_not():
    greedy = audit(bayes_optimality, "greedy", 60)
    assert greedy.controls["agreement of gittins"].mean == 1  # computed from trajectories as during acting
    assert greedy.effects["agreement with the optimum"].mean == greedy.controls["agreement of greedy"].mean < 0.98
    assert greedy.effects["score, random 0 to optimal 1"] == greedy.controls["score of greedy"]
    assert greedy.effects["follows the optimum, not greedy"].mean == pytest.approx(-1)
    assert greedy.verdict != "yes"


def test_the_error_of_a_relative_score_contains_the_error_of_its_scale():
    """The subject loses exactly 10 on a scale from random to optimal that differs between tasks and has the mean 20."""
    random, test = np.random.default_rng(0), bayes_optimality.build()
    num_covered = 0
    for _ in range(400):
        optimal = random.normal(70, 5, 40)
        scores = {"gittins": optimal, "random": np.full(40, 50.0), "greedy": optimal, "subject": optimal - 10}
        measurements = {f"score {name}": values for name, values in scores.items()}
        names = (*(f" {name}" for name in scores), *(f", not {rival}" for rival in bayes_optimality.RIVALS))
        for name in names:
            measurements |= {f"agreements{name}": np.ones(40), f"comparisons{name}": np.full(40, 2.0)}
        score = test.decide(measurements, test.thresholds).effects["score, random 0 to optimal 1"]
        num_covered += score.low <= 0.5 <= score.high
    assert num_covered / 400 == pytest.approx(0.95, abs=0.03)


def test_a_probe_decodes_values_unless_it_was_fitted_to_other_labels(monkeypatch):
    result = audit(probe, "td_one", 60)
    assert result.verdict == "yes" and abs(result.controls["explained of another lifetime's"].mean) < 0.1
    fit_probe = probe.fit_probe
    monkeypatch.setattr(probe, "fit_probe", lambda activations, labels: fit_probe(activations, labels[::-1]))
    assert audit(probe, "td_one", 60).verdict == "no"


def test_a_probe_is_compared_with_the_network_before_development():
    agent = plugins.build("agents", "recurrent", BANDIT.spec, drives := steering.build(BANDIT.spec), hidden_size=6)
    subject = control_subject("random", BANDIT)._replace(
        build=lambda env: (agent, drives), genome=lambda agent, *_: agent.genome(jax.random.key(0))
    )
    test = probe.build()
    result = test.decide(test.measure(subject, keys(40)), test.thresholds)
    assert result.effects["gain over before development"].mean == pytest.approx(0, abs=1e-6)  # it never developed
    assert result.verdict != "yes"


def test_a_scripted_env_carries_out_the_script():
    script = jnp.arange(30, dtype=jnp.int32) % 3
    agent = plugins.build("organisms", "side_biased", BANDIT.spec, drives := steering.build(BANDIT.spec))
    env = probe.scripted_env(BANDIT, script)
    _, trajectory = rollout_lifetime(keys(1)[0], agent, env, drives, (), learning=False)
    assert trajectory.action.tolist() == script.tolist()


def test_a_recorder_does_not_change_the_lifetime():
    prepared = prepare_subject(control_subject("td_zero", BANDIT), BANDIT)
    recorded = with_recorder(prepared, lambda state, transition: state.activations.memory)
    (_, trajectory), (_, recorded_trajectory) = (rollout_subject(keys(1)[0], p) for p in (prepared, recorded))
    assert trajectory.action.tolist() == recorded_trajectory.action.tolist()
    assert recorded_trajectory.info.shape[0] == 30


def test_a_regression_on_sufficient_statistics_equals_one_on_trials():
    rng = np.random.default_rng(0)
    X = np.concatenate([np.ones((8, 50, 1)), rng.choice([-0.5, 0.5], (8, 50, 2))], axis=2)
    X = np.concatenate([X, X[..., 1:2] * X[..., 2:3]], axis=2)
    y = (rng.random((8, 50)) < 0.5 + X[..., 3]).astype(float)
    effects = two_step.clustered_regression(
        np.einsum("ntp,ntq->npq", X, X), np.einsum("ntp,nt->np", X, y), [0, 1, 2, 3]
    )
    expected = np.linalg.lstsq(X.reshape(-1, 4), y.ravel(), rcond=None)[0]
    assert [effect.mean for effect in effects] == pytest.approx(expected)
    cell = [
        y[(X[..., 1] == r) & (X[..., 2] == c)].mean() for r, c in ((0.5, 0.5), (0.5, -0.5), (-0.5, 0.5), (-0.5, -0.5))
    ]
    assert effects[3].mean == pytest.approx(cell[0] - cell[1] - cell[2] + cell[3])
    assert effects[3].z > 3


def test_sampled_transitions_expose_predetermined_responses(monkeypatch):
    monkeypatch.setattr(two_step, "REFERENCES", ("planner",))
    result = audit(two_step, "latent_state_fixed", 60)
    assert result.effects["plain, transitions fixed"].mean > 0.4
    assert abs(result.effects["plain, transitions random"].mean) < 0.2
    assert result.controls["planner, corrected, random"].mean > result.effects["corrected, transitions random"].mean
    assert result.verdict != "yes" and set(result.details["stay"]["fixed"]) == {"subject", "planner"}
    cells = result.details["stay"]["random"]["planner"]
    assert cells["rewarded common"] > cells["rewarded rare"]


def test_all_four_links_must_have_an_effect():
    test = longer_chain.build()
    single, pair = np.zeros((100, 4, 2)), np.zeros((100, 6, 2))
    single[:, :, 0], pair[:, :, 1] = 1, 1
    result = test.decide({"single": single, "pair": pair}, test.thresholds)
    assert (result.verdict, result.pattern, result.primary, result.test) == ("yes", "1111", False, "longer_chain")
    single[:, 1, 1] = 1
    assert test.decide({"single": single, "pair": pair}, test.thresholds).verdict == "no"


def test_a_new_wall_lengthens_the_path_without_blocking_it():
    @jax.jit
    @jax.vmap
    def ways(key):
        state, time_step = GRID.reset(key)
        walls, goal = state.task.walls, state.task.goal
        wall, fits = detour.sample_barrier(key, walls, state.cell, goal)
        walled = detour.with_wall(GRID, wall, jnp.bool_(True)).reset(key)[1].observation
        before, after = (distances_to(layout, goal)[state.cell] for layout in (walls, walls.at[wall].set(True)))
        return fits, before, after, walled[wall], jnp.sum(walled != time_step.observation)

    fits, before, after, is_walled, num_changed = (np.asarray(array) for array in ways(keys(50)))
    assert 5 < fits.sum() < 50
    assert (after >= before + 2)[fits].all() and (after < 25)[fits].all()
    assert (is_walled == 1)[fits].all() and (num_changed <= 2)[fits].all()  # the wall, and a way out of the start


def test_an_agent_that_heads_straight_for_the_target_stops_at_the_wall(monkeypatch):
    monkeypatch.setattr(detour, "REFERENCES", ("beacon_taxis",))
    result = audit(detour, "beacon_taxis", 400, GRID)
    assert result.verdict == "no" and result.effects["arrives, no wall"].mean > 0.8
    assert result.effects["arrives, new wall"].mean < 0.2


@pytest.fixture(scope="module")
def planner():
    test = belief.build()
    return test.measure(control_subject("planner", BANDIT), keys(20))


def test_the_belief_of_a_planner_causes_its_choices(planner):
    test = belief.build()
    result = test.decide(planner, test.thresholds)
    assert result.verdict == "yes" and result.hypothesis == "mechanism"
    doses = result.details
    assert doses["belief"][0].mean == doses["random"][0].mean == 0
    means = [part.mean for part in doses["belief"]]
    assert means == sorted(means) and means[-1] > 0.7 and abs(doses["random"][-1].mean) < 0.25
    assert abs(result.controls["all but the belief"].mean) < 0.1
    json = suite.to_jsonable(result.details)
    assert json["doses"] == list(belief.DOSES) and json["belief"][-1]["mean"] == means[-1]


def test_a_subspace_of_the_wrong_belief_shows_no_mechanism(monkeypatch):
    belief_subspace = belief.belief_subspace
    monkeypatch.setattr(
        belief, "belief_subspace", lambda activations, links: belief_subspace(activations, np.roll(links, 1, axis=0))
    )
    test = belief.build()
    result = test.decide(test.measure(control_subject("planner", BANDIT), keys(20)), test.thresholds)
    assert result.verdict != "yes" and result.details["belief"][-1].mean < 0.6


def test_real_activations_are_extracted_and_replaced():
    activations = {"clock": jnp.int32(3), "values": jnp.array([[1.0, 2.0]]), "belief": jnp.float32(4)}
    assert belief.real_activations(activations).tolist() == [0, 4, 1, 2]
    replaced = belief.with_real_activations(activations, belief.real_activations(activations) + 1)
    assert replaced["clock"] == 3 and replaced["values"].tolist() == [[2, 3]] and replaced["belief"] == 5
    assert belief.real_activations(()).tolist() == [0]
    first, second = (jax.random.key_data(k).tolist() for k in (keys(5), unrelated_keys(keys(5), 5)))
    assert not any(key in first for key in second)


def test_the_classifier_is_evaluated_on_pairs_that_it_was_not_fitted_to():
    rng = np.random.default_rng(1)
    noise = rng.normal(
        size=(60, 2, 200)
    )  # with more features than pairs, a classifier separates any pairs that it was fitted to
    assert abs(estimate_effect(audit_awareness.classification_accuracy(noise)).mean - 0.5) < 0.15
    noise[:, 1, :3] += 20
    assert audit_awareness.classification_accuracy(noise).mean() > 0.95
    assert (audit_awareness.classification_accuracy(np.zeros((60, 2, 3))) == 0.5).all()


def test_intervals_of_shares_in_secondary_audits_stay_within_0_and_1():
    rng = np.random.default_rng(0)
    pairs = rng.normal(size=(60, 2, 3)) * 0.05
    pairs[:, 1] += 1
    pairs[:1] = pairs[:1, ::-1]  # one pair in 60 is labeled wrongly
    awareness = audit_awareness.build()
    result = awareness.decide(
        {f"yoked {source}": pairs for source in ("activations", "behavior")}, awareness.thresholds
    )
    assert 0.9 < result.effects["accuracy, yoked activations"].mean < 1
    comparisons = np.full(60, 20.0)
    measurements = {f"score {name}": rng.random(60) for name in ("subject", *bayes_optimality.REFERENCES)}
    for name in (" subject", *(f" {name}" for name in bayes_optimality.REFERENCES)):
        measurements |= {f"agreements{name}": comparisons - (np.arange(60) == 3), f"comparisons{name}": comparisons}
    for name in (f", not {rival}" for rival in bayes_optimality.RIVALS):
        measurements |= {f"agreements{name}": rng.normal(size=60), f"comparisons{name}": comparisons}
    optimality = bayes_optimality.build()
    agreement = optimality.decide(measurements, optimality.thresholds)
    shares = [*result.effects.values(), *result.controls.values(), agreement.effects["agreement with the optimum"]]
    shares += [effect for name, effect in agreement.controls.items() if name.startswith("agreement")]
    for effect in shares:
        assert 0 <= effect.low < effect.mean <= effect.high <= 1


def test_the_activations_of_a_learner_distinguish_a_yoked_lifetime():
    result = audit(audit_awareness, "td_zero", 100)
    assert (result.pattern, result.verdict) == ("distinguishes", "undetermined")
    assert "no verdict follows" in result.summary
