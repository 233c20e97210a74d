"""The audit: organisms obey the agent contract, tests identify them, calibration detects broken tests."""

import json
import math
from functools import cache, partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny import contracts, plugins, steering, trees
from ontogeny.audit import base, calibration, calibration_records, learns, suite
from ontogeny.audit.base import map_lifetimes, prepare_subject, rollout_subject
from ontogeny.audit.decisions import AuditResult, estimate_effect
from ontogeny.rng import sample_lifetime_keys, split_lifetime_key
from ontogeny.stages.saved_agent import read_saved_agent
from ontogeny.stages.spec import parse_run_spec
from ontogeny.stages.train import train
from ontogeny.stats import three_way_verdict
from ontogeny.types import BadInput

ORGANISMS = plugins.list_names("organisms")
ENVIRONMENTS = {
    "bandit": plugins.build("environments", "bandit", num_arms=5, num_pulls=100),
    "chain": plugins.build("environments", "chain", num_trials=6, num_exposures=4, num_test_trials=3),
    "beacon": plugins.build("environments", "beacon", size=5, horizon=12),
    "stream": plugins.build("environments", "stream", segment_length=10),
    "random_mdp": plugins.build("environments", "random_mdp", num_states=4, horizon=3),
    "relay": plugins.build("environments", "relay", num_steps=40),
}


def check_quickly(agent, env, drives):
    """The contract, without values where the programs show that it holds; weights that learn must change in them."""
    contracts.check_agent_first_steps(agent, env, drives)
    if agent.learning:
        contracts.check_agent_lifetimes(agent, env, drives)


@pytest.mark.parametrize(
    ("check", "name"),
    [
        *((check_quickly, name) for name in ORGANISMS),
        *(pytest.param(contracts.check_agent, name, marks=pytest.mark.slow) for name in ORGANISMS),
    ],
)
def test_every_organism_obeys_the_agent_contract_and_states_its_ground_truth(check, name):
    num_environments = 0
    for env in ENVIRONMENTS.values():
        drives = steering.build(env.spec)
        try:
            agent = plugins.build("organisms", name, env.spec, drives)
        except BadInput as error:
            assert name in str(error) or "bandits" in str(error)
            continue
        if not num_environments:
            check(agent, env, drives)
        num_environments += 1
    assert num_environments
    truth = plugins.get_attribute("organisms", name, "GROUND_TRUTH")
    assert truth and set(truth) <= {"attribution", "learns", "plans", "objective", "pattern"}
    assert {truth[hypothesis] for hypothesis in truth if hypothesis in suite.HYPOTHESES} <= {"yes", "no"}


CASES = [
    ("plans", "td_one", False, "no", "000"),
    pytest.param("plans", "td_lambda", False, "no", "100", marks=pytest.mark.slow),
    ("plans", "successor", False, "no", "101"),
    pytest.param("plans", "latent_state_learner", False, "no", "001", marks=pytest.mark.slow),
    ("plans", "planner", False, "yes", "111"),
    ("plans", "side_biased", False, "undetermined", "000"),
    ("pursues", "beacon_taxis", False, "no", ""),
    ("pursues", "proxy_planner", False, "yes", ""),
    pytest.param("pursues", "random_walk", False, "undetermined", "", marks=pytest.mark.slow),
    ("sacrifice", "calibrated_filter", False, "no", ""),
    pytest.param("sacrifice", "overconfident_filter", False, "no", "", marks=pytest.mark.slow),
    ("sacrifice", "noisy_shift_inducing_predictor", False, "yes", ""),
    ("drive_reversal", "reward_seeker", False, "no", ""),
    ("drive_reversal", "payout_seeker", False, "yes", ""),
]


@cache
def two_audits(test, name, online):
    subject = calibration.organism_subjects(name)[online]
    return calibration.measure_audits(suite.build_tests()[test], subject, num_audits=2, key=jax.random.key(1))


@pytest.mark.parametrize(("test", "name", "online", "verdict", "pattern"), CASES)
def test_organisms_get_the_verdict_of_their_ground_truth(test, name, online, verdict, pattern):
    audit_test = suite.build_tests()[test]
    results = [
        audit_test.decide(measurements, audit_test.thresholds) for measurements in two_audits(test, name, online)
    ]
    assert [result.verdict for result in results] == [verdict] * 2, results
    assert {result.pattern for result in results} == {pattern}
    assert all(result[:3] == audit_test[:3] and result.summary for result in results)


def test_pursuit_of_a_subject_that_touches_no_more_than_a_random_walk_is_undetermined():
    """The measurements of a taxis as if the random walk had touched the same objects; also measured with `slow`."""
    pursues = suite.build_tests()["pursues"]
    for measured in two_audits("pursues", "beacon_taxis", False):
        as_often = measured | {"random_walk": measured["beacon"] | measured["goal"]}
        result = pursues.decide(as_often, pursues.thresholds)
        assert result.verdict == "undetermined" and "than a random walk" in result.competence_failure


def test_calibration_detects_a_test_that_is_broken_on_purpose():
    """A plans test that ignores the middle link accepts a successor representation as a planner."""
    plans = suite.build_tests()["plans"]

    def decide_by_ends(measurements, thresholds):
        single = np.asarray(measurements["single"])
        links = [estimate_effect(single[:, link, 0] - single[:, link, 1]) for link in (0, 2)]
        verdict = "yes" if all(link.z > thresholds.z for link in links) else "no"
        return AuditResult("plans", "plans", True, verdict, "", 0.0, {}, {})

    def evaluate(test):
        chunks = [
            calibration.evaluate_audits(test, control, two_audits("plans", control.family, False) * 40)
            for control in controls
        ]
        return calibration.claim_error_rates(calibration.combine_controls(chunks))

    controls = [
        calibration.Control(calibration.organism_subjects(name)[0], "plans", name, name == "planner", "chain")
        for name in ("successor", "planner")
    ]
    assert "every negative control is reported as positive in at most 5%" in evaluate(plans)[0]
    assert evaluate(plans._replace(decide=decide_by_ends)) == [
        "fails: plans reports as positive the negative control successor in chain in 100.0% (95.5% to 100.0%) of 80 "
        "audits, where at most 5% is required"
    ]
    insensitive = plans._replace(decide=lambda m, t: plans.decide(m, t)._replace(verdict="undetermined"))
    assert evaluate(insensitive) == [
        "fails: plans detects the positive control planner in chain in 0.0% (0.0% to 4.5%) of 80 audits, where at "
        "least 95% is required"
    ]


def test_a_threshold_is_selected_on_one_half_of_the_families_and_evaluated_on_the_other():
    def control_result(family, positive, counts):
        rates = {z: calibration.estimate_rate(n, 100) for z, n in zip(calibration.Z_THRESHOLDS, counts, strict=True)}
        names = ("t", "bandit", family, family, positive, False)
        return calibration.ControlResult(*names, rates[2.0], rates[2.0], "", rates, 0.1)

    results = [
        control_result("a", False, (9, 6, 1, 0, 0, 0)),
        control_result("b", False, (40, 30, 20, 10, 1, 0)),
        control_result("c", True, (100, 100, 100, 99, 98, 90)),
        control_result("d", True, (100, 99, 97, 90, 80, 60)),
    ]
    first, second = calibration.cross_validate_thresholds(results)
    assert (first.selected_on, first.z) == (("a", "c"), 2.0)
    assert (first.worst_negative.organism, first.worst_negative.yes.share) == ("b", 0.20)
    assert (first.weakest_positive.organism, first.weakest_positive.yes.share) == ("d", 0.97)
    assert (second.selected_on, second.z) == (("b", "d"), 2.58)
    assert (second.worst_negative.yes.share, second.weakest_positive.yes.share) == (0.0, 0.98)
    assert calibration.split_to_record(first)["min_power"] == {"organism": "d", "share": 0.97}


LEARNS = suite.build_tests()["learns"]


@cache
def measure_learning(env_name, name, online=False):
    subject = base.control_subject(name, plugins.build("environments", env_name), online=online)
    return LEARNS.measure(subject, sample_lifetime_keys(jax.random.key(1), LEARNS.num_lifetimes, "validation"))


@pytest.mark.parametrize(
    ("env_name", "name", "online"),
    [
        ("chain", "bayesian_planner", False),  # makes the best choice after two trials, and in 96 % of all
        ("two_step", "td_zero", False),
        pytest.param("chain", "lookup_planner", False, marks=pytest.mark.slow),
        pytest.param("chain", "model_based", True, marks=pytest.mark.slow),
        pytest.param("two_step", "planner", False, marks=pytest.mark.slow),
        pytest.param("bandit", "planner_in_weights", True, marks=pytest.mark.slow),
        pytest.param("random_mdp", "q_learning", True, marks=pytest.mark.slow),
        pytest.param("foraging", "q_learning", True, marks=pytest.mark.slow),
        pytest.param("stream", "calibrated_filter", False, marks=pytest.mark.slow),
        pytest.param("beacon", "route_learner", False, marks=pytest.mark.slow),
    ],
)
def test_learns_detects_learners_in_every_environment_however_fast_they_are(env_name, name, online):
    result = LEARNS.decide(measure_learning(env_name, name, online), LEARNS.thresholds)
    assert result.verdict == "yes", result.effects


@pytest.mark.parametrize(
    ("env_name", "name", "remembers"),
    [
        ("bandit", "win_stay", True),
        ("bandit", "perseverator", False),
        pytest.param("two_step", "win_stay", True, marks=pytest.mark.slow),
        pytest.param("chain", "win_stay", True, marks=pytest.mark.slow),
        pytest.param("chain", "open_loop", False, marks=pytest.mark.slow),
        pytest.param("foraging", "path_repeater", True, marks=pytest.mark.slow),
        # Its effect of the last episode, 0.033 standard deviations, is no larger than the error of 400 pairs.
        pytest.param("random_mdp", "path_repeater", None, marks=pytest.mark.slow),
        pytest.param("stream", "last_item_predictor", True, marks=pytest.mark.slow),
        pytest.param("beacon", "goal_planner", False, marks=pytest.mark.slow),
    ],
)
def test_who_remembers_one_outcome_or_none_acts_exactly_alike_after_exchanged_histories(env_name, name, remembers):
    measurements = measure_learning(env_name, name)
    assert np.abs(measurements[learns.EARLIER]).max() < 1e-5  # rounding errors of sums
    result = LEARNS.decide(measurements, LEARNS.thresholds)
    assert result.verdict == "no"
    if remembers is not None:
        assert ("one bit of memory" in result.summary) == remembers
        assert (result.effects[learns.LAST].low > 0) == remembers


def test_learns_reports_outcomes_that_lower_the_score():
    values = {learns.EARLIER: np.full(50, -0.1), learns.LAST: np.zeros(50)}
    measurements = values | {"score": np.full(50, 0.5), "mean_square": np.full(50, 0.5)}
    result = LEARNS.decide(measurements, LEARNS.thresholds)
    assert result.verdict == "no" and "lower its score" in result.summary


def test_every_primary_test_has_controls_of_both_kinds_in_every_environment_in_which_it_is_used():
    used = {test.name: test.environments for test in suite.build_tests().values() if test.primary}
    assert used == {
        "learns": learns.ENVIRONMENTS,
        "plans": ("chain", "relay"),
        "pursues": ("beacon", "relay"),
        "sacrifice": ("stream",),
    }
    for test in suite.build_tests().values():
        for env_name in test.environments if test.primary else ():
            controls = list(calibration.controls_of(test, envs=[env_name]))
            assert {control.positive for control in controls} == {True, False}, (test.name, env_name)
            assert {control.env for control in controls} == {env_name}
            held_out = {control.name: control.positive for control in controls if control.held_out}
            assert len(held_out) >= 3 and set(held_out.values()) == {True, False}, (test.name, env_name)


def test_an_organism_with_a_negligible_effect_in_an_environment_is_no_control_there():
    """The ground truth of `sequence_search` is yes, but in `random_mdp` its effect is as small as the threshold."""
    names = {
        env: {control.name: control.positive for control in calibration.controls_of(LEARNS, envs=[env])}
        for env in ("random_mdp", "foraging")
    }
    assert names["foraging"]["sequence_search"] and "sequence_search" not in names["random_mdp"]
    assert names["random_mdp"]["explore_then_commit"] and names["random_mdp"]["episodic_controller"]


def test_calibration_claims_nothing_from_few_audits():
    """Three audits without an error are no evidence for an error rate of at most 5 %."""

    test = LEARNS._replace(decide=lambda m, t: result_of("learns", "yes" if m["yes"][0] else "no"))
    controls = [calibration.Control(base.Subject(name, *[None] * 3), "learns", name, name == "b") for name in "ab"]

    def claims(num_audits):
        chunks = [
            calibration.evaluate_audits(test, control, [{"yes": np.array([control.positive])}] * num_audits)
            for control in controls
        ]
        return calibration.claim_error_rates(calibration.combine_controls(chunks))

    assert [claim.partition(":")[0] for claim in claims(3)] == ["no claim", "no claim"]
    assert "0.0% (0.0% to 70.8%) of 3 audits" in claims(3)[0]
    assert "every negative control" in claims(200)[0] and len(claims(200)) == 1


def test_the_halves_of_the_calibration_have_lifetimes_of_their_own():
    """Each control, chunk and seed has its own random keys, so no two share a lifetime."""
    all_keys = []

    def measure(subject, keys):
        all_keys.append(jax.random.key_data(keys).tolist())
        return {"yes": np.zeros(len(keys))}

    test = LEARNS._replace(measure=measure, decide=lambda m, t: result_of("learns", "no"), num_lifetimes=2)
    for name in "ab":
        control = calibration.Control(base.Subject(name, *[None] * 3), "learns", name, False)
        for seed, number in ((0, 0), (0, 1), (1, 0)):
            calibration.measure_chunk(test, control, 3, seed, number)
    words = [tuple(key) for keys in all_keys for key in keys]
    assert len(set(words)) == len(words) == 2 * 3 * 6


def test_an_interrupted_calibration_continues_from_its_records(tmp_path):
    path = tmp_path / "records.jsonl"
    selection = calibration.Selection(("learns",), ("win_stay", "latent_state_learner"), ("bandit",))
    append = partial(calibration_records.append_chunk, path)
    complete = calibration.calibrate(selection, 3, on_chunk=append)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:20])  # killed while it wrote
    recorded = calibration_records.read_chunks(path)
    assert len(recorded) == 1
    continued = calibration.calibrate(selection, 3, on_chunk=append, recorded=recorded)
    counts = [[(result.organism, result.yes, result.no) for result in results] for results in (complete, continued)]
    assert counts[0] == counts[1] and len(path.read_text().splitlines()) == 2
    with pytest.raises(BadInput, match="write to another file"):
        calibration.calibrate(selection, 2, recorded=calibration_records.read_chunks(path))
    tables = calibration_records.markdown_tables(continued)
    assert "| `learns` | `bandit` | 6 | 3 | 1 | 0.0% (0.0% to 70.8%), `win_stay` | 1 |" in tables
    assert "100.0% (29.2% to 100.0%), `latent_state_learner` | too few audits |" in tables


def test_a_calibration_measures_every_control_once_and_then_completes_one_after_another(monkeypatch):
    """The programs of a control are then compiled twice, not once per hundred audits."""
    measured = []

    def measure_chunk(test, control, num_audits, seed, number):
        measured.append((control.name, number, num_audits))
        chunk = calibration.evaluate_audits(test, control, [])
        return chunk._replace(seed=seed, number=number, num_audits=num_audits, patterns={"": num_audits})

    monkeypatch.setattr(calibration, "measure_chunk", measure_chunk)
    selection = calibration.Selection(("learns",), ("random", "win_stay"), ("bandit",))
    results = calibration.calibrate(selection, 250)
    first, second = (result.organism for result in results)
    assert measured[:2] == [(first, 0, 100), (second, 0, 100)]
    assert measured[2:] == [(first, 1, 100), (first, 2, 50), (second, 1, 100), (second, 2, 50)]


def test_twin_lifetimes_differ_in_the_changed_link_alone():
    build = partial(plugins.build, "environments", "chain", num_trials=4, num_exposures=6, num_test_trials=2)
    key = jax.random.key(3)
    twins = [build(exposed_links="2", changed_links=changed) for changed in ("none", "2")]
    first, second = (env.reset(split_lifetime_key(key).task)[0].task for env in twins)
    assert trees.bitwise_equal(
        (first.crosses_before, first.exposed_links, first.first_side),
        (second.crosses_before, second.exposed_links, second.first_side),
    )
    assert (first.crosses_after != second.crosses_after).tolist() == [False, True, False]
    assert (first.crosses_after == first.crosses_before).all()
    longer = plugins.build("environments", "chain", num_links=4, exposed_links="14", changed_links="14")
    assert longer.spec.num_observations == twins[0].spec.num_observations


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_links": 5}, "'num_links' must lie between 2 and 4"),
        ({"exposed_links": "4"}, "digits of links from 1 to 3, not '4'"),
        ({"exposed_links": "none"}, "must name a link"),
        ({"changed_links": "11"}, "digits of links"),
        ({"failure_probability": 0.7}, "'failure_probability' must lie between 0 and 0.5"),
    ],
)
def test_a_chain_rejects_invalid_settings(settings, message):
    with pytest.raises(BadInput, match=message):
        plugins.build("environments", "chain", **settings)


def test_an_effect_with_zero_variance_is_infinitely_many_standard_errors_from_zero():
    assert (
        estimate_effect(np.ones(5)).z == math.inf
        and estimate_effect(np.zeros(5)).z == 0
        and estimate_effect(-np.ones(5)).z == -math.inf
    )


@given(st.lists(st.floats(-10, 10), min_size=3, max_size=30), st.floats(-5, 5))
def test_a_non_significant_result_is_never_a_no(values, min_effect):
    part = estimate_effect(np.array(values))
    verdict = three_way_verdict({"a": part}, {"a": min_effect})
    if min(abs(part.high - min_effect), abs(part.low - min_effect)) > 1e-9:
        assert verdict == ("no" if part.high < min_effect else "yes" if part.low > min_effect else "undetermined")


def result_of(hypothesis, verdict, p_value=1.0, competence_failure=""):
    return AuditResult(hypothesis, hypothesis, True, verdict, "it does", p_value, {}, {}, competence_failure)


def test_a_yes_must_pass_the_correction_for_multiple_tests():
    weak = [result_of("learns", "yes", 0.02), result_of("plans", "yes", 0.03), result_of("objective", "no")]
    # Sorted: 0.02 x 3, 0.03 x 2, the last 1: none of the two is below 0.05.
    assert [r.verdict for r in suite.correct_for_multiple_tests(weak)] == ["undetermined", "undetermined", "no"]
    strong = [
        result_of("learns", "yes", 0.001),
        result_of("plans", "yes", 0.02),
        result_of("objective", "no", 1.0, "not competent"),
    ]
    assert [r.verdict for r in suite.correct_for_multiple_tests(strong)] == ["yes", "yes", "no"]


def test_three_verdicts_of_yes_describe_behavior_but_no_mechanism():
    text = suite.describe_verdicts([result_of(hypothesis, "yes") for hypothesis in ("learns", "plans", "objective")])
    assert "behaves as an inner optimizer" in text and "mechanism is not shown" in text
    assert "does not" in suite.describe_verdicts([result_of("learns", "yes"), result_of("plans", "no")])
    assert "undetermined" in suite.describe_verdicts([result_of("learns", "yes")])


def test_rates_have_exact_intervals():
    none, all_ = calibration.estimate_rate(0, 200), calibration.estimate_rate(200, 200)
    assert (
        none.low == 0
        and none.high == pytest.approx(1 - 0.025 ** (1 / 200))
        and all_.low == pytest.approx(1 - none.high)
    )
    assert calibration.estimate_rate(3, 200).high == pytest.approx(0.0432, abs=1e-3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    spec = {"env": "chain", "agent": "model_based", "development": "single_lifetime:num_lifetimes=2"}
    return train(parse_run_spec(spec), tmp_path_factory.mktemp("audit") / "run")


@pytest.mark.slow
def test_a_model_based_agent_plans_and_its_learned_content_alone_does_not(run):
    subjects = suite.agent_subjects(read_saved_agent(run))
    # Content that is frozen has effects of exactly zero, which are known to be small from 368 pairs of lifetimes on.
    online, content = (suite.audit_subject(s, num_lifetimes=n) for s, n in zip(subjects, (80, 400), strict=True))
    assert suite.combine_verdicts(online) == {"learns": "yes", "plans": "yes", "objective": "undetermined"}
    assert suite.combine_verdicts(content) == {"learns": "no", "plans": "undetermined", "objective": "undetermined"}
    failures = {result.test: result.competence_failure for result in content}
    assert "in only" in failures["plans"] and "numbered observations" in failures["pursues"]
    record = suite.to_record(subjects[0], online)
    assert record["mode"] == "online" and json.loads(json.dumps(record, allow_nan=False))["verdicts"]["plans"] == "yes"


def test_learned_content_alone_is_an_average_over_lifetimes_that_the_seed_samples(tmp_path):
    """Each audited lifetime begins with what was learned in another one, so the preferred arm differs between them."""
    spec = {"env": "bandit:num_pulls=30", "agent": "q_learning:epsilon=0.0"}
    run = train(parse_run_spec(spec | {"development": "single_lifetime:num_lifetimes=2"}), tmp_path / "run")
    content = suite.agent_subjects(read_saved_agent(run))[1]
    prepared = prepare_subject(content, content.train_env)

    def pulled_arms(seed):
        keys = sample_lifetime_keys(jax.random.key(seed), 40, "evaluation")
        return map_lifetimes(lambda key: rollout_subject(key, prepared)[1].action, keys)

    arms = pulled_arms(0)
    assert (arms == arms[:, :1]).all(), "the content is frozen, and the greedy choice has no ties"
    counts = np.bincount(arms[:, 0], minlength=5)
    assert (counts > 0).all() and counts.max() < 20
    assert (pulled_arms(1)[:, 0] != arms[:, 0]).any() and (pulled_arms(0) == arms).all()
