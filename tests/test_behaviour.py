"""Choices that others logged: every trap of real files, staying by hand, models that are told apart, the page."""

import json
import re
import sys

import jax
import numpy as np
import pytest

from ontogeny import cli
from ontogeny.audit.behavior import fitting, own_choices, stays, two_step
from ontogeny.audit.behavior import page as behaviour_page
from ontogeny.audit.behavior import report as behaviour
from ontogeny.audit.behavior.base import Choices, Trials
from ontogeny.stages.spec import parse_run_spec
from ontogeny.stages.train import train
from ontogeny.types import BadInput

pytestmark = pytest.mark.computes


def rows(trials=40, subjects=2, seed=0, common=0.8):
    """Subject, trial, choice 1 or 2, state 1 or 2, reward."""
    random = np.random.default_rng(seed)
    for subject in range(1, subjects + 1):
        for trial in range(1, trials + 1):
            choice = random.integers(1, 3)
            state = choice if random.random() < common else 3 - choice
            yield [f"s{subject}", trial, int(choice), int(state), int(random.random() < 0.5)]


HEAD = "subject,trial,choice,state,reward"


def text_of(lines, head=HEAD, separator=","):
    return "\n".join([head.replace(",", separator), *(separator.join(map(str, line)) for line in lines)]) + "\n"


@pytest.fixture
def read(tmp_path):
    def reading(text, coding="utf-8", **how):
        path = tmp_path / "choices.csv"
        path.write_bytes(text.encode(coding) if isinstance(text, str) else text)
        return behaviour.read(path, **how)

    return reading


def same(one: Choices, other: Choices) -> bool:
    arrays = (*zip(one.trials, other.trials, strict=True), (one.common, other.common), (one.rewarded, other.rewarded))
    return all(np.array_equal(a, b) for a, b in arrays)


def test_separators_marks_and_names_make_no_difference(read):
    plain = read(text_of(rows()))
    assert plain.assemblys == ("s1", "s2") and plain.trials.there.sum() == 80 and plain.trials.follows.sum() == 78
    for separator, coding in (("\t", "utf-8"), (";", "utf-8-sig"), (",", "utf-16")):
        other = read(text_of(rows(), separator=separator), coding)
        assert same(plain, other)
        assert any("byte-order mark" in line for line in other.said) == (coding != "utf-8")
    assert same(plain, read(text_of(rows(), "subjID,trial_num,level1_choice,Second State,outcome")))
    theirs = {"subject": "a", "trial": "b", "choice": "c", "state": "d", "reward": "e"}
    assert same(plain, read(text_of(rows(), "a,b,c,d,e"), columns=theirs))


@pytest.mark.parametrize("mark", ["0", "-1", "NA", "", "nan"])
def test_a_missed_trial_takes_both_its_pairs(read, mark):
    lines = list(rows())
    lines[9][2:] = [mark, mark, mark if mark != "0" else "0"]
    found = read(text_of(lines))
    assert found.trials.there.sum() == 79 and not found.trials.there[0, 9]
    assert found.trials.follows.sum() == 76 and not found.trials.follows[0, 9:11].any()
    assert any("missed" in line and "choice" in line for line in found.said)


def test_a_choice_of_zero_or_minus_one_is_a_choice_where_there_are_two(read):
    zero = [[s, t, c - 1, p - 1, r] for s, t, c, p, r in rows()]
    signed = [[s, t, 2 * c - 3, p, r] for s, t, c, p, r in rows()]
    words = [[s, t, "left" if c == 1 else "right", p, r] for s, t, c, p, r in rows()]
    for lines in (zero, signed, words):
        assert same(read(text_of(lines)), read(text_of(rows())))


def test_only_consecutive_trial_numbers_are_neighbours(read):
    lines = list(rows())
    del lines[20], lines[10]
    found = read(text_of(lines))
    assert found.trials.follows.sum() == 74 and any("2 gaps" in line for line in found.said)
    shuffled = [lines[i] for i in np.random.default_rng(1).permutation(len(lines))]
    again = read(text_of(sorted(shuffled, key=lambda line: line[0])))
    assert same(found, again) and any("sorted by trial" in line for line in again.said)
    twice = list(rows(20, 1)) + list(rows(20, 1, seed=1))
    found = read(text_of(twice))
    assert found.trials.begins.sum() == 2 and found.trials.follows.sum() == 38
    assert any("begin anew" in line for line in found.said)


def coded(common, rare, keep_state):
    for s, t, c, p, r in rows():
        told = common if c == p else rare
        yield [s, t, c, p, told, r] if keep_state else [s, t, c, told, r]


@pytest.mark.parametrize("code", [("common", "rare"), ("Common", "RARE"), (1, -1), (1, 0), (0, 1), ("frequent", "r")])
@pytest.mark.parametrize("keep_state", [True, False])
def test_common_and_rare_in_every_code(read, code, keep_state):
    head = "subject,trial,choice,state,transition,reward" if keep_state else "subject,trial,choice,transition,reward"
    found = read(text_of(coded(*code, keep_state), head))
    assert same(found, read(text_of(rows())))


def test_common_is_inferred_for_each_subject(read):
    lines = list(rows(subjects=1)) + [["s2", t, c, 3 - p, r] for _, t, c, p, r in rows(subjects=1)]
    found = read(text_of(lines))
    assert found.good.tolist() == [[0, 1], [1, 0]] and np.array_equal(found.common[0], found.common[1])
    assert any("inferred" in line and "1 of 2 subjects" in line for line in found.said)
    unclear = read(text_of(rows(common=0.5)))
    assert any(line.startswith("WARNING") and "not clear" in line for line in unclear.said)


def test_second_choices_name_the_state(read):
    lines = [[s, t, c, 2 * p - t % 2, r] for s, t, c, p, r in rows()]
    found = read(text_of(lines, "subject,trial,choice,choice2,reward"))
    plain = read(text_of(rows()))
    assert found.has_second and np.array_equal(found.trials.place, plain.trials.place)
    with_state = [[s, t, c, p, 2 * p - t % 2, r] for s, t, c, p, r in rows()]
    assert same(found, read(text_of(with_state, "subject,trial,choice,state,choice2,reward")))
    with_state[5][4] = 5 - with_state[5][4]
    with pytest.raises(BadInput, match=r"line 7: choice2 .* belongs to the other state"):
        read(text_of(with_state, "subject,trial,choice,state,choice2,reward"))


def test_more_levels_of_reward(read):
    lines = [[s, t, c, p, (t * 7) % 10 - 3] for s, t, c, p, _ in rows()]
    found = read(text_of(lines))
    values = np.array([line[4] for line in lines[:40]])
    assert np.array_equal(found.rewarded[0], values > values.mean())
    assert found.trials.reward.min() == 0 and found.trials.reward.max() == 1
    assert any("10 levels" in line for line in found.said)
    losses = [[s, t, c, p, 2 * r - 1] for s, t, c, p, r in rows()]
    assert same(read(text_of(losses)), read(text_of(rows())))  # -1 is a loss here, and no mark of a missed trial
    halves = text_of([[s, t, c, p, f"{r},0"] for s, t, c, p, r in rows()], separator=";")
    assert same(read(halves), read(text_of(rows())))


def test_bad_rows_are_named_by_their_line(read):
    lines = [list(line) for line in rows()]
    lines[3][4], lines[8][2], lines[20][1] = "x", 7, "first"
    lines[30] = lines[30][:4]
    text = text_of(lines)
    with pytest.raises(BadInput, match="4 bad rows") as refused:
        read(text)
    for told in (
        "line 5: reward 'x' is no number",
        "line 10: choice '7'",
        "line 22: trial 'first'",
        "line 32: 4 fields",
    ):
        assert told in str(refused.value)
    found = read(text, leave_out_bad=True)
    assert found.trials.there.sum() == 76 and any("left out 4 bad rows: line 5" in line for line in found.said)


@pytest.mark.parametrize(
    ("text", "how", "message"),
    [
        ("choice\n1\n", {}, "one column only"),
        (text_of(rows(), "who,trial,what,state,reward"), {}, "no column 'choice'"),
        (text_of(rows()), {"columns": {"choise": "choice"}}, "did you mean choice"),
        (text_of(rows()), {"columns": {"choice": "choise"}}, "did you mean choice"),
        (text_of(rows()), {"task": "three_step"}, "did you mean two_step"),
        (text_of([[*line[:4], 1] for line in rows()]), {}, "nothing to learn from"),
        (text_of(rows(5)), {}, "no subject has 10 trials"),
        (HEAD + "\n", {}, "no rows"),
        (b"\xff\x00,\n\xfe", {}, "not text"),
    ],
)
def test_what_is_no_file_of_choices_is_said(read, text, how, message):
    with pytest.raises(BadInput, match=message):
        read(text, **how)


def test_stays_are_those_counted_by_hand(read):
    #        choice state reward   stayed after?
    lines = [
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
    first = [["a", t + 1, *line] for t, line in enumerate(lines)]
    found = stays.stays(read(text_of(first + [["b", t, *rest] for _, t, *rest in first])))
    shares = {name: (cells[0].stayed, cells[0].pairs) for name, cells in found.cells.items()}
    # After 1: common rewarded, stayed; 2: rare rewarded, stayed; 3: common unrewarded, left; 4: rare unrewarded,
    # stayed; 5: common rewarded, stayed; 6: the same, left; 7: the same, stayed; 8: common unrewarded, stayed; 9:
    # common rewarded, stayed.
    assert shares == {
        "common, rewarded": (4, 5),
        "rare, rewarded": (1, 1),
        "common, unrewarded": (1, 2),
        "rare, unrewarded": (1, 1),
    }
    assert found.contrasts["interaction"].mean == pytest.approx(0.8 - 1 - 0.5 + 1)
    assert found.pooled["common, rewarded"].low == found.pooled["common, rewarded"].high == pytest.approx(0.8)


def task(trials=120, subjects=8, seed=0) -> Choices:
    """Two steps without second choices; which place pays swaps every 20 trials."""
    shape = (subjects, trials)
    swap = (np.arange(trials) // 20 % 2 == 0)[None, :]
    random = np.random.default_rng(seed)
    choice = random.integers(0, 2, shape).astype(np.int32)
    place = np.where(random.random(shape) < 0.7, choice, 1 - choice).astype(np.int32)
    reward = (random.random(shape) < np.where((place == 0) == swap, 0.8, 0.2)).astype(np.float32)
    there, begins = np.ones(shape, bool), np.zeros(shape, bool)
    begins[:, 0] = True
    trial = Trials(choice, place, np.zeros(shape, np.int32), reward, there, ~begins, begins)
    good = np.tile([0, 1], (subjects, 1))
    names = tuple(map(str, range(subjects)))
    return Choices("two_step", names, trial, place == choice, good, reward > 0.5, None, 2, False, ())


def test_a_successor_at_rest_is_the_model_based_agent():
    choices = task(subjects=2)
    who = jax.tree.map(lambda part: part[0], fitting.who_of(choices))
    trials = jax.tree.map(lambda part: part[0], choices.trials)
    by_name = {model.name: model for model in two_step.models(False)}

    def told(name, **values):
        model = by_name[name]._replace(parameters=())
        first, learn = by_name[name].first, by_name[name].learn
        model = model._replace(
            first=lambda p, who, memory, last: first(values, who, memory, last),
            learn=lambda p, memory, trial: learn(values, memory, trial),
        )
        return np.asarray(fitting.log_likelihoods(model, 2, np.zeros(0), who, trials))

    shared = {"rate": 0.4, "weight": 5.0, "repeat": 0.3, "side": 0.1}
    based = told("model_based", **shared)
    np.testing.assert_allclose(told("successor", map_rate=0.0, **shared), based, atol=1e-5)
    assert np.abs(told("successor", map_rate=0.3, **shared) - based).max() > 0.1
    mixed = told("hybrid", free_weight=0.0, based_weight=5.0, trace=0.5, **shared)
    np.testing.assert_allclose(mixed, based, atol=1e-5)


@pytest.fixture(scope="module")
def record():
    return behaviour.measured(task(), groups=3, starts=(24, 4))


def test_organisms_are_recovered_and_what_cannot_be_is_shown(record):
    names, shares = record["recovery"]["models"], np.array(record["recovery"]["by_subject"])
    assert shares.shape == (6, 6) and np.allclose(shares.sum(axis=1), 1)
    taken = {(one, other): shares[i, j] for i, one in enumerate(names) for j, other in enumerate(names)}
    for name in ("repeats", "model_free", "mimic", "model_based"):
        assert taken[name, name] > 0.4  # by chance one in six
    assert taken["successor", "successor"] + taken["successor", "model_based"] > 0.6
    assert taken["model_based", "model_free"] < 0.2 and taken["model_free", "model_based"] < 0.2
    assert "are one model" in record["in_words"][-1]
    # The larger model can do what the smaller can: maximum likelihood was reached.
    told = {model["name"]: np.array(model["log_likelihood"]) for model in record["models"]}
    for smaller, larger in (("model_free", "hybrid"), ("model_based", "hybrid"), ("model_based", "successor")):
        assert (told[larger] > told[smaller] - 0.2).all()


def test_a_fit_is_never_less_likely_than_the_truth():
    """Organisms that learn far more slowly than usual; a climb that is cut short stays below them."""
    choices = task()
    model = next(model for model in two_step.models(False) if model.name == "model_based")
    given, who = ([np.concatenate([part] * 3) for part in parts] for parts in (choices.trials, fitting.who_of(choices)))
    given, who = Trials(*given), fitting.Who(*who)
    truth = np.tile(np.float32([-3.5, 2.0, 0.1, 0.0]), (24, 1))  # rate .03, weight 17.6
    did = fitting._lives(jax.random.split(jax.random.key(0), 24), model, "two_step", 2, False, truth, who, given)
    did = Trials(*map(np.asarray, did))
    found = fitting.fit(model, 2, did, who, False, np.full(24, 4))
    told = jax.vmap(lambda x, w, t: fitting.log_likelihoods(model, 2, x, w, t).sum())(truth, who, did)
    assert (found.log_likelihood > np.asarray(told) - 0.1).all()


def test_staying_alone_does_not_name_a_planner(record):
    plain = {name: part["plain"]["reward x transition"] for name, part in record["organisms"].items()}
    for name in ("model_based", "mimic", "successor"):
        assert plain[name]["low"] > 0.1
    assert plain["repeats"]["mean"] < 0.1


def test_the_page_needs_nothing_but_its_record(record):
    html = behaviour_page.render(json.loads(json.dumps(record, allow_nan=False)), "Choices")
    assert html == behaviour_page.render(record, "Choices")
    assert html.count("<svg") == 4 and not re.search(r'(src|href)="(?!#)', html) and "<script" not in html
    for line in record["in_words"]:
        assert line.replace("'", "&#x27;") in html


def test_zero_is_an_arm_of_a_bandit_unless_it_is_said_to_be_a_mark(read):
    lines = [[s, t, (7 * t) % 3, t % 2] for s in range(2) for t in range(30)]
    found = read(text_of(lines, "subject,trial,choice,reward"))
    assert found.task == "bandit" and found.arms == 3 and any("--missed 0" in line for line in found.said)
    marked = read(text_of(lines, "subject,trial,choice,reward"), missed=["0"])
    assert marked.arms == 2 and marked.trials.there.sum() == 40 and marked.trials.reward.max() == 1


def test_lives_of_a_run_are_read_as_anybody_s(tmp_path, monkeypatch, capsys):
    for env, head in (("two_step:num_trials=20", "choice,state,reward"), ("bandit:num_arms=3,num_pulls=60", "choice,reward")):
        spec = {"env": env, "agent": "random", "development": "single_lifetime:num_lifetimes=2"}
        folder = tmp_path / env[:3]
        train(parse_run_spec(spec), folder)
        text = own_choices.of_run(folder, num_lifetimes=6, seed=0)
        assert text.startswith(f"subject,trial,{head}\nlife 1,1,")
        found = behaviour.read(folder, text=text)
        assert len(found.assemblys) == 6 and found.trials.there.all()
        assert found.task == "bandit" or 0.7 < found.common.mean() < 0.9
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fitting, "STARTS", (12, 4))
    arguments = ["behaviour", "ban", "--num-lifetimes", "6", "--groups", "2", "--out", "out"]
    monkeypatch.setattr(sys, "argv", ["ontogeny", "audit", *arguments])
    with pytest.raises(SystemExit) as done:
        cli.main()
    printed = capsys.readouterr()
    assert done.value.code == 0, printed.err
    assert "share of choices repeated" in printed.out and "recognised" in printed.out
    record = json.loads((tmp_path / "out" / "behaviour.json").read_text())
    names, shares = record["recovery"]["models"], record["recovery"]["by_subject"]
    for name in ("win_stay", "choice_kernel", "q_learning"):
        assert shares[names.index(name)][names.index(name)] > 0.5
    for model in record["models"]:  # drawn by chance, they follow nothing
        assert np.mean(model["log_likelihood"]) == pytest.approx(-60 * np.log(3), abs=4)
    html = (tmp_path / "out" / "behaviour.html").read_text()
    assert html == behaviour_page.render(record, "Choices in ban")
    assert (tmp_path / "out" / "choices.csv").read_text().startswith("subject,trial,choice,reward\n")


def test_a_complaint_is_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "c.csv").write_text(text_of([[*line[:4], "x"] for line in rows()]))
    monkeypatch.chdir(tmp_path)
    for arguments, said in (
        (["c.csv", "--out", "o"], "80 bad rows: line 2"),
        (["c.csv", "--columns", "choice"], "ours=theirs"),
        (["none.csv"], "No such file"),
    ):
        monkeypatch.setattr(sys, "argv", ["ontogeny", "audit", "behaviour", *arguments])
        with pytest.raises(SystemExit) as done:
            cli.main()
        complaint = capsys.readouterr().err
        assert done.value.code == 2 and said in complaint and complaint.count("\n") == 1
    assert not (tmp_path / "o").exists()
