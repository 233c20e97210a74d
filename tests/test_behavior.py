"""Analysis of logged choices: ambiguities of real files, stay probabilities by hand, model recovery, the page."""

import json
import re
import sys

import jax
import numpy as np
import pytest
from markupsafe import escape

from ontogeny import cli
from ontogeny.audit.behavior import analysis, comparison, fitting, likelihood, page, reading, two_step
from ontogeny.audit.behavior.base import ChoiceData, ParticipantTrials
from ontogeny.audit.behavior.resampled_rewards import resample_rewards
from ontogeny.audit.behavior.simulated_choices import simulate_choices
from ontogeny.audit.behavior.stay_analysis import analyze_stays, replace_trials
from ontogeny.audit.history import read_history
from ontogeny.errors import BadInput
from ontogeny.stages.spec import parse_run_spec
from ontogeny.stages.train import train

pytestmark = pytest.mark.computes


HEADER = "subject,trial,choice,state,reward"


def make_rows(num_trials=40, num_subjects=2, seed=0, common=0.8):
    """Subject, trial, choice 1 or 2, state 1 or 2, reward."""
    random = np.random.default_rng(seed)
    for subject in range(1, num_subjects + 1):
        for trial in range(1, num_trials + 1):
            choice = random.integers(1, 3)
            state = choice if random.random() < common else 3 - choice
            yield [f"s{subject}", trial, int(choice), int(state), int(random.random() < 0.5)]


def to_csv(rows, header=HEADER, separator=","):
    return "\n".join([header.replace(",", separator), *(separator.join(map(str, row)) for row in rows)]) + "\n"


@pytest.fixture
def read(tmp_path):
    def read_choices(text, encoding="utf-8", **options):
        path = tmp_path / "choices.csv"
        path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
        return reading.read_choices(path, **options)

    return read_choices


def are_equal(first: ChoiceData, second: ChoiceData) -> bool:
    arrays = [*zip(first.trials, second.trials, strict=True), (first.is_common, second.is_common)]
    arrays.append((first.is_rewarded, second.is_rewarded))
    return all(np.array_equal(a, b) for a, b in arrays)


def has_note(choices: ChoiceData, *words: str) -> bool:
    return any(all(word in note for word in words) for note in choices.notes)


def test_delimiters_encodings_and_column_names_make_no_difference(read):
    plain = read(to_csv(make_rows()))
    assert plain.participants == ("s1", "s2")
    assert plain.trials.is_complete.sum() == 80 and plain.trials.is_consecutive.sum() == 78
    for separator, encoding in (("\t", "utf-8"), (";", "utf-8-sig"), (",", "utf-16")):
        choices = read(to_csv(make_rows(), separator=separator), encoding)
        assert are_equal(plain, choices)
        assert has_note(choices, "byte-order mark") == (encoding != "utf-8")
    assert are_equal(plain, read(to_csv(make_rows(), "subjID,trial_num,level1_choice,Second State,outcome")))
    columns = {"subject": "a", "trial": "b", "choice": "c", "state": "d", "reward": "e"}
    assert are_equal(plain, read(to_csv(make_rows(), "a,b,c,d,e"), columns=columns))


@pytest.mark.parametrize("mark", ["0", "-1", "NA", "", "nan"])
def test_a_missed_trial_removes_both_of_its_pairs(read, mark):
    rows = list(make_rows())
    rows[9][2:] = [mark, mark, mark if mark != "0" else "0"]
    choices = read(to_csv(rows))
    assert choices.trials.is_complete.sum() == 79 and not choices.trials.is_complete[0, 9]
    assert choices.trials.is_consecutive.sum() == 76 and not choices.trials.is_consecutive[0, 9:11].any()
    assert has_note(choices, "missed", "choice")


def test_zero_and_minus_one_are_choices_where_there_are_two_labels(read):
    zero = [[s, t, c - 1, p - 1, r] for s, t, c, p, r in make_rows()]
    signed = [[s, t, 2 * c - 3, p, r] for s, t, c, p, r in make_rows()]
    words = [[s, t, "left" if c == 1 else "right", p, r] for s, t, c, p, r in make_rows()]
    for rows in (zero, signed, words):
        assert are_equal(read(to_csv(rows)), read(to_csv(make_rows())))


def test_only_consecutive_trial_numbers_form_pairs(read):
    rows = list(make_rows())
    del rows[20], rows[10]
    choices = read(to_csv(rows))
    assert choices.trials.is_consecutive.sum() == 74 and has_note(choices, "2 gaps")
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    of_shuffled = read(to_csv(sorted(shuffled, key=lambda row: row[0])))
    assert are_equal(choices, of_shuffled) and has_note(of_shuffled, "sorted by trial")
    two_sessions = list(make_rows(20, 1)) + list(make_rows(20, 1, seed=1))
    choices = read(to_csv(two_sessions))
    assert choices.trials.starts_session.sum() == 2 and choices.trials.is_consecutive.sum() == 38
    assert has_note(choices, "restart")


@pytest.mark.parametrize("code", [("common", "rare"), ("Common", "RARE"), (1, -1), (1, 0), (0, 1), ("frequent", "r")])
@pytest.mark.parametrize("has_state", [True, False])
def test_transitions_are_read_in_every_code(read, code, has_state):
    header = "subject,trial,choice,state,transition,reward" if has_state else "subject,trial,choice,transition,reward"
    rows = [[s, t, c, p, code[c != p], r] if has_state else [s, t, c, code[c != p], r] for s, t, c, p, r in make_rows()]
    assert are_equal(read(to_csv(rows, header)), read(to_csv(make_rows())))


def test_the_common_transition_is_inferred_for_each_participant(read):
    rows = list(make_rows(num_subjects=1)) + [["s2", t, c, 3 - p, r] for _, t, c, p, r in make_rows(num_subjects=1)]
    choices = read(to_csv(rows))
    assert choices.common_state.tolist() == [[0, 1], [1, 0]]
    assert np.array_equal(choices.is_common[0], choices.is_common[1])
    assert has_note(choices, "inferred", "1 of 2 participants")
    assert has_note(read(to_csv(make_rows(common=0.5))), "WARNING", "not clear")


def test_second_choices_determine_the_state(read):
    rows = [[s, t, c, 2 * p - t % 2, r] for s, t, c, p, r in make_rows()]
    choices = read(to_csv(rows, "subject,trial,choice,choice2,reward"))
    plain = read(to_csv(make_rows()))
    assert choices.has_second_choice and np.array_equal(choices.trials.state, plain.trials.state)
    with_state = [[s, t, c, p, 2 * p - t % 2, r] for s, t, c, p, r in make_rows()]
    assert are_equal(choices, read(to_csv(with_state, "subject,trial,choice,state,choice2,reward")))
    with_state[5][4] = 5 - with_state[5][4]
    with pytest.raises(BadInput, match=r"line 7: choice2 .* belongs to the other state"):
        read(to_csv(with_state, "subject,trial,choice,state,choice2,reward"))
    without_states = [[*row[:3], "NA" if row[4] == 4 else row[3], *row[4:]] for row in with_state]
    with pytest.raises(BadInput, match="two of the four second choices"):
        read(to_csv(without_states, "subject,trial,choice,state,choice2,reward"))


def test_infinity_is_a_label_and_no_number(read):
    words = [[s, t, c, "inf" if p == 1 else "other", r] for s, t, c, p, r in make_rows()]
    assert are_equal(read(to_csv(words)), read(to_csv(make_rows())))


def test_rewards_with_more_than_two_levels_are_split_at_the_mean(read):
    rows = [[s, t, c, p, (t * 7) % 10 - 3] for s, t, c, p, _ in make_rows()]
    choices = read(to_csv(rows))
    rewards = np.array([row[4] for row in rows[:40]])
    assert np.array_equal(choices.is_rewarded[0], rewards > rewards.mean())
    assert choices.trials.reward.min() == 0 and choices.trials.reward.max() == 1
    assert has_note(choices, "10 levels")
    losses = [[s, t, c, p, 2 * r - 1] for s, t, c, p, r in make_rows()]
    assert are_equal(read(to_csv(losses)), read(to_csv(make_rows())))  # -1 is a loss here, not a missed trial
    decimal_commas = to_csv([[s, t, c, p, f"{r},0"] for s, t, c, p, r in make_rows()], separator=";")
    assert are_equal(read(decimal_commas), read(to_csv(make_rows())))


def test_bad_rows_are_named_by_their_line(read):
    rows = [list(row) for row in make_rows()]
    rows[3][4], rows[8][2], rows[20][1] = "x", 7, "first"
    rows[30] = rows[30][:4]
    text = to_csv(rows)
    with pytest.raises(BadInput, match="4 bad rows") as error:
        read(text)
    for reason in (
        "line 5: reward 'x' is not a number",
        "line 10: choice '7'",
        "line 22: trial 'first'",
        "line 32: 4 fields",
    ):
        assert reason in str(error.value)
    choices = read(text, skip_bad_rows=True)
    assert choices.trials.is_complete.sum() == 76 and has_note(choices, "skipped 4 bad rows: line 5")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("choice\n1\n", {}, "one column only"),
        (to_csv(make_rows(), "who,trial,what,state,reward"), {}, "no column 'choice'"),
        (to_csv(make_rows()), {"columns": {"choise": "choice"}}, "did you mean choice"),
        (to_csv(make_rows()), {"columns": {"choice": "choise"}}, "did you mean choice"),
        (to_csv(make_rows()), {"task": "three_step"}, "did you mean two_step"),
        (to_csv([[*row[:4], 1] for row in make_rows()]), {}, "nothing to learn from"),
        (to_csv(make_rows(5)), {}, "no participant has 10 complete trials"),
        (HEADER + "\n", {}, "no rows"),
        (b"\xff\x00,\n\xfe", {}, "not text"),
    ],
)
def test_a_file_without_choices_is_refused_with_the_reason(read, text, options, message):
    with pytest.raises(BadInput, match=message):
        read(text, **options)


def test_stay_probabilities_agree_with_a_count_by_hand(read):
    trials = [  # choice, state, reward
        (1, 1, 1),
        (1, 2, 1),
        (1, 1, 0),
        (2, 1, 0),
        (2, 2, 1),
        (2, 2, 1),
        (1, 1, 1),
        (1, 1, 0),
        (1, 1, 1),
        (1, 1, 1),
    ]
    rows = [["a", t + 1, *trial] for t, trial in enumerate(trials)]
    stays = analyze_stays(read(to_csv(rows + [["b", t, *trial] for _, t, *trial in rows])))
    counts = {cell: (part[0].num_stays, part[0].num_pairs) for cell, part in stays.by_participant.items()}
    # After 1: common rewarded, stay; 2: rare rewarded, stay; 3: common unrewarded, switch; 4: rare unrewarded, stay;
    # 5: common rewarded, stay; 6: the same, switch; 7: the same, stay; 8: common unrewarded, stay; 9: common rewarded,
    # stay.
    assert counts == {
        "common, rewarded": (4, 5),
        "rare, rewarded": (1, 1),
        "common, unrewarded": (1, 2),
        "rare, unrewarded": (1, 1),
    }
    assert stays.contrasts["interaction"].mean == pytest.approx(0.8 - 1 - 0.5 + 1)
    mean = stays.cell_means["common, rewarded"]
    assert mean.mean == pytest.approx(0.8) and mean.low < 0.8 < mean.high, "two participants who agree are no certainty"


def make_choices(num_trials=120, num_participants=8, seed=0) -> ChoiceData:
    """Random choices in two steps without second choices; the rewarded state changes every 20 trials."""
    shape = (num_participants, num_trials)
    is_first_rewarded = (np.arange(num_trials) // 20 % 2 == 0)[None, :]
    random = np.random.default_rng(seed)
    choice = random.integers(0, 2, shape).astype(np.int32)
    state = np.where(random.random(shape) < 0.7, choice, 1 - choice).astype(np.int32)
    probability = np.where((state == 0) == is_first_rewarded, 0.8, 0.2)
    reward = (random.random(shape) < probability).astype(np.float32)
    is_complete, starts_session = np.ones(shape, bool), np.zeros(shape, bool)
    starts_session[:, 0] = True
    second_choice = np.zeros(shape, np.int32)
    trials = ParticipantTrials(choice, state, second_choice, reward, is_complete, ~starts_session, starts_session)
    common_state = np.tile([0, 1], (num_participants, 1))
    names = tuple(map(str, range(num_participants)))
    data = trials.is_complete, trials.is_consecutive, state == choice
    return ChoiceData("two_step", names, trials, *data, common_state, reward > 0.5, None, 2, False, ())


def model_named(name):
    return next(model for model in two_step.build_models(False) if model.name == name)


def test_a_successor_representation_with_fixed_transitions_is_model_based():
    choices = make_choices(num_participants=2)
    transition_probs = likelihood.estimate_transitions(choices)[0]
    trials = jax.tree.map(lambda part: part[0], choices.trials)

    def log_likelihoods(name, **parameters):
        model = model_named(name)
        fixed = model._replace(
            parameters=(),
            first_logits=lambda p, transitions, memory, previous: model.first_logits(
                parameters, transitions, memory, previous
            ),
            update=lambda p, memory, trial: model.update(parameters, memory, trial),
        )
        return np.asarray(likelihood.log_likelihoods(fixed, np.zeros(0), transition_probs, trials))

    shared = {
        "learning_rate": 0.4,
        "forgetting_rate": 0.2,
        "inverse_temperature": 5.0,
        "perseveration": 0.3,
        "side_bias": 0.1,
    }
    model_based = log_likelihoods("model_based", **shared)
    fixed = log_likelihoods("successor", transition_learning_rate=0.0, **shared)
    np.testing.assert_allclose(fixed, model_based, atol=1e-5)
    learning = log_likelihoods("successor", transition_learning_rate=0.3, **shared)
    assert np.abs(learning - model_based).max() > 0.1
    weights = {"model_free_weight": 0.0, "model_based_weight": 5.0, "eligibility_trace": 0.5}
    np.testing.assert_allclose(log_likelihoods("hybrid", **weights, **shared), model_based, atol=1e-5)


def simulate_organisms(model, choices, num_groups=2):
    """Model organisms with parameters drawn from their usual ranges, in the tasks of the participants."""
    sampled = likelihood.sample_parameters(3, model, len(choices.participants))
    return comparison.simulate_model(model, choices, sampled, num_groups, seed=4)


def take_organisms(model, choices, num_groups=1):
    """The choices of model organisms as if they were participants."""
    organisms = simulate_organisms(model, choices, num_groups)
    return replace_trials(choices, organisms.trials, organisms.participant)


def shorten_fits(patch):
    """Fits with fewer steps, for tests of everything but the fits."""
    patch.setattr(fitting, "NUM_STARTS", 4)
    patch.setattr(fitting, "MAX_STEPS", 10)
    patch.setattr(fitting, "RESTART_ROUND", fitting.Round(max_trials=2000, num_steps=1, num_selected=1))


@pytest.fixture(scope="module")
def planners():
    return take_organisms(model_named("model_based"), make_choices(num_participants=3, num_trials=100))


@pytest.fixture(scope="module")
def record(planners):
    with pytest.MonkeyPatch.context() as patch:
        shorten_fits(patch)
        return analysis.analyze_choices(planners, num_groups=1)


@pytest.mark.slow
def test_model_organisms_are_recovered_as_far_as_models_can_be_distinguished():
    choices, models = make_choices(num_trials=200), two_step.build_models(False)
    organisms = [simulate_organisms(model, choices) for model in models]
    trials = jax.tree.map(lambda *parts: np.concatenate(parts), *(part.trials for part in organisms))
    participant = np.concatenate([part.participant for part in organisms])
    transition_probs = likelihood.estimate_transitions(choices)[participant]
    fits = fitting.fit_models(models, trials, transition_probs, num_starts=4)
    best = np.stack([fit.bic for fit in fits]).argmin(axis=0).reshape(len(models), -1)
    names = [model.name for model in models]
    confusion = {
        (true, fitted): (best[i] == j).mean() for i, true in enumerate(names) for j, fitted in enumerate(names)
    }
    for name in ("repetition", "model_free", "latent_state", "model_based"):
        assert confusion[name, name] > 0.4  # by chance one in six
    assert confusion["successor", "successor"] + confusion["successor", "model_based"] > 0.6
    assert confusion["model_based", "model_free"] < 0.2 and confusion["model_free", "model_based"] < 0.2
    # A larger model contains the smaller one, so the maximum of its likelihood is at least as high, in every fit.
    likelihoods = {fit.model: fit.log_likelihood for fit in fits}
    pairs = [(part.name, model.name) for model in models for part in model.contains]
    assert {("model_free", "hybrid"), ("model_based", "hybrid"), ("model_based", "successor")} < set(pairs)
    for smaller, larger in pairs:
        assert (likelihoods[larger] > likelihoods[smaller] - 0.01).all()


def test_a_fit_is_not_less_likely_than_the_true_parameters():
    """Organisms that learn far more slowly than usual; an optimization that stops too early stays below them."""
    choices = make_choices()
    model = model_named("model_based")
    trials = ParticipantTrials(*(np.concatenate([part] * 3) for part in choices.trials))
    transition_probs = np.tile(likelihood.estimate_transitions(choices), (3, 1, 1))
    # Learning rate 0.03, inverse temperature 17.6, forgetting rate 0.02.
    truth = np.tile(np.float32([-3.5, 2.0, -4.0, 0.1, 0.0]), (24, 1))
    keys = jax.random.split(jax.random.key(0), 24)
    rewards = resample_rewards(choices, np.tile(np.arange(8), 3), seed=0)
    simulated = likelihood.simulate_participants(keys, model, truth, transition_probs, trials, rewards)
    simulated = ParticipantTrials(*map(np.asarray, simulated))
    fit = fitting.fit_model(model, simulated, transition_probs, num_starts=4)
    of_truth = jax.vmap(lambda *arguments: likelihood.log_likelihoods(model, *arguments).sum())(
        truth, transition_probs, simulated
    )
    assert (fit.log_likelihood > np.asarray(of_truth) - 0.1).all()


def test_stay_probabilities_alone_do_not_identify_a_planner():
    choices = make_choices()
    coefficients = {
        model.name: analyze_stays(take_organisms(model, choices, 3)).regression["reward x transition"]
        for model in two_step.build_models(False)
    }
    for name in ("model_based", "latent_state", "successor"):
        assert coefficients[name].low > 0.1
    assert coefficients["repetition"].mean < 0.1


def test_the_page_is_rendered_from_its_record_alone(record):
    html = page.render(json.loads(json.dumps(record, allow_nan=False)), "Choices")
    assert html == page.render(record, "Choices")
    assert html.count("<svg") == 4 and not re.search(r'(src|href)="(?!#)', html) and "<script" not in html
    for sentence in record["verdict_text"][2:]:
        assert str(escape(sentence)) in html


def test_zero_is_an_arm_of_a_bandit_unless_it_is_a_missing_value(read):
    rows = [[s, t, (7 * t) % 3, t % 2] for s in range(2) for t in range(30)]
    choices = read(to_csv(rows, "subject,trial,choice,reward"))
    assert choices.task == "bandit" and choices.num_arms == 3 and has_note(choices, "--na-values 0")
    marked = read(to_csv(rows, "subject,trial,choice,reward"), na_values=["0"])
    assert marked.num_arms == 2 and marked.trials.is_complete.sum() == 40 and marked.trials.reward.max() == 1


def simulate_run(env, header, folder):
    """The choices of a run in an environment, which is trained for the purpose."""
    spec = {"env": env, "agent": "random", "development": "single_lifetime:num_lifetimes=2"}
    train(parse_run_spec(spec), folder)
    text = simulate_choices(folder, num_lifetimes=6, seed=0)
    assert text.startswith(f"subject,trial,{header}\nlifetime 1,1,")
    choices = reading.read_choices(folder, text=text)
    assert len(choices.participants) == 6 and choices.trials.is_complete.all()
    return choices


@pytest.mark.parametrize(
    ("settings", "header"),
    [
        pytest.param("num_trials=20", "choice,state,reward", marks=pytest.mark.slow),
        ("num_trials=20,has_second_choice=True", "choice,state,choice2,reward"),
    ],
)
def test_choices_of_a_run_in_the_two_step_task_are_read_like_a_file(settings, header, tmp_path):
    choices = simulate_run(f"two_step:{settings}", header, tmp_path / "run")
    assert 0.7 < choices.is_common.mean() < 0.9


def test_choices_of_a_run_are_analyzed_like_a_file(tmp_path, monkeypatch, capsys):
    assert simulate_run("bandit:num_arms=3,num_pulls=60", "choice,reward", tmp_path / "ban13").task == "bandit"
    monkeypatch.chdir(tmp_path)
    shorten_fits(monkeypatch)
    arguments = ["behavior", "ban13", "--num-lifetimes", "6", "--num-groups", "1", "--out", "out"]
    monkeypatch.setattr(sys, "argv", ["ontogeny", "audit", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    assert "stay probability" in captured.out and "recognized" in captured.out
    assert "Audit 1 of this agent; its history is in 'ban13/audits.jsonl'." in captured.out
    (audit,) = read_history(tmp_path / "ban13" / "audits.jsonl")
    assert audit["command"] == "audit behavior" and audit["settings"]["num_lifetimes"] == 6 and audit["verdicts"]
    record = json.loads((tmp_path / "out" / "behavior.json").read_text())
    names, shares = record["recovery"]["models"], record["recovery"]["by_participant"]
    assert np.allclose(np.sum(shares, axis=1), 1) and len(names) == 5
    assert record["verdicts"][0]["verdict"] != "yes"
    for model in record["models"]:  # choices of the random agent depend on nothing
        assert np.mean(model["log_likelihood"]) == pytest.approx(-60 * np.log(3), abs=4)
    html = (tmp_path / "out" / "behavior.html").read_text()
    assert html == page.render(record, "Choices in ban13")
    assert (tmp_path / "out" / "choices.csv").read_text().startswith("subject,trial,choice,reward\n")


def test_bad_input_is_answered_in_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "c.csv").write_text(to_csv([[*row[:4], "x"] for row in make_rows()]))
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (["c.csv", "--out", "o"], "80 bad rows: line 2"),
        (["c.csv", "--columns", "choice"], "column=name"),
        (["none.csv"], "No such file"),
    ):
        monkeypatch.setattr(sys, "argv", ["ontogeny", "audit", "behavior", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr().err
        assert stop.value.code == 2 and message in captured and captured.count("\n") == 1
    assert not (tmp_path / "o").exists()
