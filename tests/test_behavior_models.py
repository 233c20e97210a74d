"""Logged choices: forgetting, recovery with fitted parameters, verdicts on learning and planning, better choices."""

import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape

from ontogeny.audit.behavior import analysis, bandit, page, reading, two_step
from ontogeny.audit.behavior.base import ChoiceData
from ontogeny.audit.behavior.better_choices import analyze_better_choices
from ontogeny.audit.behavior.comparison import ModelComparison, compare_models, simulate_model
from ontogeny.audit.behavior.fitting import fit_model
from ontogeny.audit.behavior.likelihood import estimate_transitions
from ontogeny.audit.behavior.resampled_rewards import resample_rewards
from ontogeny.audit.behavior.stay_analysis import analyze_stays, replace_trials
from ontogeny.audit.behavior.verdicts import judge_learning, judge_planning

pytestmark = pytest.mark.computes

TRANSITIONS = np.array([[0.7, 0.3], [0.3, 0.7]])


def simulate_two_step(choose, num_participants=8, num_trials=300, seed=0, levels=(0, 1)) -> ChoiceData:
    """Choices in a two-step task with reversals; `choose(random, history)` returns the first choice.

    Args:
        choose: Takes the source of randomness, and choices, states and rewards so far.
        num_participants: Participants.
        num_trials: Trials of each participant.
        seed: Determines all randomness.
        levels: The lower half of these rewards comes from the worse state, the upper half from the better one.
    """
    random, lines = np.random.default_rng(seed), ["subject,trial,choice,state,reward"]
    low, high = np.array_split(np.array(levels), 2)
    for participant in range(num_participants):
        history, better = [], random.integers(2)
        for trial in range(num_trials):
            better = 1 - better if random.random() < 0.04 else better
            choice = choose(random, history)
            state = int(random.random() < TRANSITIONS[choice, 1])
            is_good = random.random() < (0.8 if state == better else 0.2)
            reward = random.choice(high if is_good else low)
            history.append((choice, state, (reward - low[0]) / (high[-1] - low[0])))
            lines.append(f"s{participant},{trial},{choice},{state},{reward}")
    return reading.read_choices(Path("choices.csv"), text="\n".join(lines) + "\n")


def plan_and_forget(learning_rate=0.7, forgetting_rate=0.5, inverse_temperature=8.0, rest=0.5):
    """A planner of its own, written without the package: the state that is not reached returns to the value `rest`."""
    values: dict[int, np.ndarray] = {}

    def choose(random, history):
        if not history:
            values[0] = np.full(2, 0.5)
        else:
            _, state, reward = history[-1]
            values[0][state] += learning_rate * (reward - values[0][state])
            values[0][1 - state] += forgetting_rate * (rest - values[0][1 - state])
        planned = inverse_temperature * TRANSITIONS @ values[0]
        return int(random.random() < 1 / (1 + np.exp(planned[0] - planned[1])))

    return choose


def models_named(*names, models=None):
    return [model for model in models or two_step.build_models(False) if model.name in names]


@pytest.mark.parametrize("rest", [0.5, 0.0])
def test_simulated_planners_that_forget_are_recovered_as_planners(rest):
    choices = simulate_two_step(plan_and_forget(rest=rest))
    mimic, planner = (
        fit_model(model, choices.trials, estimate_transitions(choices), num_starts=6)
        for model in models_named("latent_state", "model_based")
    )
    difference = mimic.bic - planner.bic
    assert difference.sum() > 10 and (difference > 0).sum() >= 6
    if rest == 0.5:
        assert np.median(planner.parameters["forgetting_rate"]) == pytest.approx(0.5, abs=0.15)


def test_every_model_with_values_forgets():
    choices = simulate_two_step(lambda random, history: int(random.integers(2)), 1, 40)
    rows = np.arange(3)
    for model in (*two_step.build_models(False), *two_step.build_models(True), *bandit.build_models(3)):
        names = [p.name for p in model.parameters]
        assert ("forgetting_rate" in names) == ("learning_rate" in names)
        if model.task == "bandit" and "learning_rate" in names:
            parameters = {"learning_rate": 0.5, "forgetting_rate": 0.25, "kernel_learning_rate": 0.5}
            memory = model.init(parameters, TRANSITIONS)
            for choice in (0, 1):
                trial = choices.trials._replace(choice=np.int32(choice), reward=np.float32(1.0))
                memory = model.update(parameters, memory, trial)
            values = np.asarray(memory.values if hasattr(memory, "values") else memory)
            np.testing.assert_allclose(values[rows], [0.5 + 0.25 * 0.75, 0.75, 0.5])


@pytest.fixture(scope="module")
def random_choices():
    return simulate_two_step(lambda random, history: int(random.random() < 0.6), 6, 80)


@pytest.mark.slow
def test_recovery_uses_the_fitted_parameters_of_the_subjects(random_choices):
    """Planners who choose at random cannot be recognized, whatever planners of other parameters would do."""
    models = models_named("repetition", "model_based")
    result = compare_models(models, random_choices, num_groups=4, num_starts=4)
    assert result.recovery.by_participant[1, 1] < 0.25 and result.recovery.by_participant[0, 0] > 0.8
    fitted = result.fits[1].unbounded_parameters
    simulations = result.simulations["model_based"]
    np.testing.assert_array_equal(simulations.unbounded_parameters, fitted[simulations.participant])
    assert (np.bincount(simulations.participant) == 4).all()


def test_parameters_are_recovered_by_the_model_that_simulated_them():
    choices = simulate_two_step(plan_and_forget(0.5, 0.1), 6, 120)
    model = models_named("model_based")[0]
    truth = np.zeros((6, 5), np.float32)
    truth[:, 3] = np.linspace(-0.5, 0.5, 6)  # perseveration, from -2.3 to 2.3
    simulated = simulate_model(model, choices, truth, 1, seed=0)
    result = compare_models(
        [model], replace_trials(choices, simulated.trials, simulated.participant), num_groups=4, num_starts=4
    )
    perseveration = result.recovery.parameters["model_based"]["perseveration"]
    assert perseveration.rank_correlation > 0.9 and perseveration.median_absolute_error < 0.5


def test_graded_rewards_stay_graded_in_simulations():
    choices = simulate_two_step(plan_and_forget(), 4, 200, levels=(0, 1, 2, 4, 7, 9))
    levels = np.unique(choices.trials.reward)
    assert len(levels) == 6
    model = models_named("model_based")[0]
    simulated = simulate_model(model, choices, np.zeros((4, 5), np.float32), 10, seed=0)
    assert np.array_equal(np.unique(simulated.trials.reward), levels)
    replaced = replace_trials(choices, simulated.trials, simulated.participant)
    assert replaced.is_rewarded.mean() == pytest.approx(choices.is_rewarded.mean(), abs=0.08)
    # What an option could have paid agrees, around each trial, with what it paid.
    rewards = resample_rewards(choices, np.zeros(400, int), seed=1)
    state, reward = choices.trials.state[0], choices.trials.reward[0]
    weights = np.exp(-np.abs(np.arange(200)[:, None] - np.arange(200)) / 8.0)
    for option in (0, 1):
        chosen = state == option
        expected = (weights[:, chosen] @ reward[chosen] + reward.mean()) / (weights[:, chosen].sum(axis=1) + 1)
        np.testing.assert_allclose(rewards[:, :, option].mean(axis=0), expected, atol=0.08)


def test_memory_of_simulated_rewards_is_linear_in_the_trials():
    choices = simulate_two_step(lambda random, history: int(random.integers(2)), 1, 6000)
    tracemalloc.start()
    estimate_transitions(choices)
    rewards = resample_rewards(choices, np.zeros(2, int), seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rewards.shape == (2, 6000, 2) and peak < 20e6  # a matrix of trials by trials has 288 MB


def make_bandit(choose, num_participants=8, num_trials=150, seed=0, num_arms=2, hazard=0.03) -> ChoiceData:
    """A bandit in which one arm, at first the last one, pays more often; `choose(random, history)` returns the arm."""
    random, lines = np.random.default_rng(seed), ["subject,trial,choice,reward,correct"]
    for participant in range(num_participants):
        history, better = [], num_arms - 1
        for trial in range(num_trials):
            better = (better + 1) % num_arms if random.random() < hazard else better
            arm = choose(random, history)
            is_correct = arm == better
            history.append((arm, int(random.random() < (0.75 if is_correct else 0.25))))
            lines.append(f"s{participant},{trial},{arm},{history[-1][1]},{int(is_correct)}")
    return reading.read_choices(Path("choices.csv"), text="\n".join(lines) + "\n")


def learn_values(random, history, learning_rate=0.3):
    """Learns values slowly, so that the last outcome alone does not explain the choices."""
    values = np.full(2, 0.5)
    for arm, reward in history[-60:]:
        values[arm] += learning_rate * (reward - values[arm])
    return int(random.random() < 1 / (1 + np.exp(6.0 * (values[0] - values[1]))))


@pytest.fixture(scope="module")
def learners():
    return make_bandit(learn_values)


BANDIT_MODELS = models_named("random_responding", "win_stay_lose_shift", "q_learning", models=bandit.build_models(2))


def test_the_verdict_on_learning_separates_learners_from_random_choosers(learners):
    result = compare_models(BANDIT_MODELS, learners, num_groups=3, num_starts=4)
    verdict = judge_learning(BANDIT_MODELS, result, learners)
    assert verdict.verdict == "yes" and "explained" in verdict.reason
    assert verdict.by_participant.count("yes") > 4
    planning = judge_planning(BANDIT_MODELS, result, learners, analyze_stays(learners))
    assert planning.verdict == "undetermined" and "single step" in planning.reason
    responders = make_bandit(lambda random, history: int(random.random() < 0.6), 8, 300)
    result = compare_models(BANDIT_MODELS, responders, num_groups=3, num_starts=4)
    verdict = judge_learning(BANDIT_MODELS, result, responders, analyze_better_choices(responders))
    assert verdict.verdict == "no" and verdict.gain is not None and verdict.gain.high < 0.01


def test_learning_of_an_arm_that_stays_the_best_is_not_taken_for_a_preference():
    """Models cannot tell this, as a preference explains all later choices; the learning curve can."""
    choices = make_bandit(partial(learn_values, learning_rate=0.03), 16, 60, hazard=0.0)
    result = compare_models(BANDIT_MODELS, choices, num_groups=1, num_starts=4)
    better = analyze_better_choices(choices)
    assert better.gain.low > 0.02
    assert judge_learning(BANDIT_MODELS, result, choices, better).verdict == "yes"
    without = better._replace(gain=better.gain._replace(low=-0.1, high=0.1))
    assert judge_learning(BANDIT_MODELS, result, choices, without).verdict == "undetermined"


def test_better_choices_that_grow_by_win_stay_lose_shift_are_no_learning():
    """In short sessions the first choice, by chance, makes the first half worse than the second one."""
    random, lines = np.random.default_rng(0), ["subject,session,trial,choice,reward,correct"]
    for participant, session in np.ndindex(16, 6):
        better, arm = random.integers(2, size=2)
        for trial in range(10):
            reward = int(random.random() < (0.95 if arm == better else 0.05))
            lines.append(f"s{participant},{session},{trial},{arm},{reward},{int(arm == better)}")
            arm = random.integers(2) if random.random() < 0.05 else arm if reward else 1 - arm
    choices = reading.read_choices(Path("choices.csv"), text="\n".join(lines) + "\n")
    result = compare_models(BANDIT_MODELS, choices, num_groups=1, num_starts=4)
    better_choices = analyze_better_choices(choices)
    assert better_choices.gain.low > 0.02
    assert judge_learning(BANDIT_MODELS, result, choices, better_choices).verdict != "yes"


def test_a_mimic_is_not_called_a_planner():
    models = models_named("repetition", "latent_state", "model_based")
    start = simulate_two_step(plan_and_forget(), 8, 200)
    parameters = np.tile(np.float32([-1.5, 1.0, 1.0, 0.0, 0.0]), (8, 1))  # hazard 0.09, reliability 0.73
    mimics = simulate_model(models[1], start, parameters, 1, seed=0)
    choices = replace_trials(start, mimics.trials, mimics.participant)
    stays = analyze_stays(choices)
    assert stays.contrasts["interaction"].low > 0  # it looks like planning
    result = compare_models(models, choices, num_groups=2, num_starts=4)
    assert judge_planning(models, result, choices, stays).verdict != "yes"
    assert judge_learning(models, result, choices).verdict == "yes"


def test_a_verdict_of_planning_needs_impostors_that_are_recognized():
    """Evidence for planning is no "yes" where simulated mimics would give the same evidence."""
    choices = simulate_two_step(plan_and_forget(0.4, 0.05), 8, 200)
    models, stays = models_named("repetition", "latent_state", "model_based"), analyze_stays(choices)
    result = compare_models(models, choices, num_groups=2, num_starts=4)
    bic = np.array(result.simulation_bic)
    bic[:, 2] = bic[:, :2].min(axis=1) + 50  # planning never explains a simulated participant best
    clear = result._replace(simulation_bic=bic)
    participants = [fit._replace(bic=fit.bic - 30 * (fit.model == "model_based")) for fit in result.fits]
    assert judge_planning(models, clear._replace(fits=participants), choices, stays).verdict == "yes"
    bic = np.array(bic)
    bic[1, 2] = bic[1, :2].min(axis=0) - 1  # now every simulated mimic is taken for a planner
    verdict = judge_planning(models, clear._replace(fits=participants, simulation_bic=bic), choices, stays)
    assert verdict.verdict == "undetermined" and "latent-state" in verdict.reason


@pytest.mark.slow
def test_planning_of_one_participant_needs_an_interaction_over_its_trials():
    """A single participant has no interval over participants."""
    models, bic = models_named("repetition", "latent_state", "model_based"), np.zeros((3, 3, 40))
    bic[:, 2] = 50.0  # no simulated participant is taken for a planner, and this one is
    for choose, expected in ((plan_and_forget(0.4, 0.05), "yes"), (lambda r, h: int(r.integers(2)), "undetermined")):
        choices = simulate_two_step(choose, 1, 200)
        fits = [fit_model(model, choices.trials, estimate_transitions(choices), num_starts=6) for model in models]
        fits = [fit._replace(bic=fit.bic - 500 * (fit.model == "model_based")) for fit in fits]
        comparison = ModelComparison(fits, None, {}, bic)  # without recovery and simulations
        assert judge_planning(models, comparison, choices, analyze_stays(choices)).verdict == expected


def test_the_share_of_better_choices_and_its_curve_agree_with_a_count(learners):
    better = analyze_better_choices(learners)
    is_better = learners.is_correct
    assert is_better is not None and better.source == "stated in the file" and better.chance == 0.5
    assert better.share.mean == pytest.approx(is_better.mean())
    assert better.gain.mean == pytest.approx(is_better[:, 75:].mean() - is_better[:, :75].mean())
    assert len(better.curve) == 8 and better.curve[0].first_trial == 1 and better.curve[-1].last_trial == 150
    first = better.curve[0]
    assert first.share.mean == pytest.approx(is_better[:, : first.last_trial].mean())
    hindsight = analyze_better_choices(learners._replace(is_correct=None))
    assert hindsight.source == "estimated in hindsight"
    assert hindsight.share.mean == pytest.approx(better.share.mean, abs=0.05)
    chance = make_bandit(lambda random, history: int(random.integers(3)), 20, 150, num_arms=3)
    assert analyze_better_choices(chance._replace(is_correct=None)).share.mean == pytest.approx(1 / 3, abs=0.05)


def test_a_summed_bic_is_no_verdict_where_another_model_is_best_for_more_participants():
    models = [
        {"name": "model_based", "num_best": 2, "share_best": 0.2, "protected_exceedance_prob": 0.02},
        {"name": "latent_state", "num_best": 8, "share_best": 0.8, "protected_exceedance_prob": 0.98},
    ]
    record = {
        "participants": list(range(10)),
        "models": [model | {"frequency": {"mean": 0.5, "low": 0.2, "high": 0.8}} for model in models],
        "best_model": "model_based",
        "most_frequent_model": "latent_state",
    }
    text = " ".join(analysis.write_frequencies(record))
    assert "latent-state 8 (80%), model-based 2 (20%)" in text and "protected exceedance probability 0.980" in text
    assert "model-based, which is best for 2 of 10 participants only" in text


@pytest.mark.slow
def test_the_page_answers_whether_participants_learn_and_plan(learners):
    record = analysis.analyze_choices(learners, num_groups=1, num_starts=4)
    html = page.render(record, "Choices")
    assert [verdict["hypothesis"] for verdict in record["verdicts"]] == ["learns", "plans"]
    assert "Do the participants learn?" in html and "Do they plan?" in html and "Learning curve" in html
    for verdict in record["verdicts"]:
        assert f"<strong>{verdict['verdict']}</strong>" in html and str(escape(verdict["reason"])) in html
        assert any(text.startswith(f"{verdict['hypothesis'].capitalize()}:") for text in record["verdict_text"])
    for explanation in record["not_fitted"]:
        assert explanation in html and any(explanation in text for text in record["verdict_text"])
    assert record["better_choices"]["share"]["mean"] > 0.6
