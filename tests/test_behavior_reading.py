"""Reading of files of choices: the values of `tests/data/behavior` by plain counts, and ambiguous columns and codes."""

import csv
import io
import itertools
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from ontogeny.audit.behavior import reading
from ontogeny.audit.behavior.base import ChoiceData
from ontogeny.audit.behavior.stay_analysis import analyze_stays
from ontogeny.errors import BadInput

DATA = Path(__file__).parent / "data" / "behavior"
CELLS = ("common, rewarded", "rare, rewarded", "common, unrewarded", "rare, unrewarded")


def list_rows(name: str) -> list[dict[str, str]]:
    """The rows of a file, without the program."""
    text = (DATA / name).read_text().removeprefix("sep=;\n")
    return list(csv.DictReader(io.StringIO(text), delimiter=";" if name == "excel_sep.csv" else ","))


def count_stays(rows: list[dict[str, str]], subject: str = "subject", drop_repeated: bool = True) -> tuple[int, dict]:
    """The number of pairs and the mean stay share of each cell, counted trial by trial."""
    by_subject = defaultdict(list)
    for row in rows:
        by_subject[row[subject]].append(row)
    pairs = Counter(row["choice"] + row["state"] for row in rows if row["choice"] != "null")
    first = min({row["choice"] for row in rows} - {"null"})
    low = min(row["state"] for row in rows if row["state"] != "null")
    straight = sum(n for pair, n in pairs.items() if (pair.startswith(first)) == pair.endswith(low))
    shares = defaultdict(list)
    num_pairs = 0
    for trials in by_subject.values():
        repeated = Counter(row["trial"] for row in trials)
        counts = defaultdict(lambda: [0, 0])
        for row, after in itertools.pairwise(trials):
            is_known = "null" not in (row["choice"], after["choice"])
            is_single = max(repeated[row["trial"]], repeated[after["trial"]]) == 1
            if not (is_known and int(after["trial"]) == int(row["trial"]) + 1 and (is_single or not drop_repeated)):
                continue
            is_straight = (row["choice"] == first) == (row["state"] == low)
            is_common = is_straight == (straight > sum(pairs.values()) / 2)
            cell = f"{'common' if is_common else 'rare'}, {'rewarded' if row['reward'] == '1' else 'unrewarded'}"
            counts[cell][0] += row["choice"] == after["choice"]
            counts[cell][1] += 1
            num_pairs += 1
        for cell, (num_stays, number) in counts.items():
            shares[cell].append(num_stays / number)
    return num_pairs, {cell: float(np.mean(shares[cell])) for cell in CELLS}


def read_text(tmp_path: Path, text: str | bytes, **options) -> ChoiceData:
    """Reads a text as a file."""
    path = tmp_path / "choices.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return reading.read_choices(path, **options)


def has_note(choices: ChoiceData, *words: str) -> bool:
    """Whether one note contains all words."""
    return any(all(word in note for word in words) for note in choices.notes)


def make_table(num_trials: int = 60, subjects: str = "ab", seed: int = 0) -> list[dict[str, str]]:
    """Rows of a two-step task with four second choices."""
    random = np.random.default_rng(seed)
    rows = []
    for subject in subjects:
        for trial in range(1, num_trials + 1):
            choice = int(random.integers(2))
            state = choice if random.random() < 0.75 else 1 - choice
            option = 1 + 2 * state + int(random.integers(2))
            reward = int(random.random() < 0.5)
            values = (subject, trial, choice, state, option, reward)
            rows.append(
                dict(zip(("subject", "trial", "choice", "state", "choice2", "reward"), map(str, values), strict=True))
            )
    return rows


def to_csv(rows: list[dict[str, str]], separator: str = ",") -> str:
    """The text of a file."""
    return "\n".join([separator.join(rows[0]), *(separator.join(row.values()) for row in rows)]) + "\n"


def are_equal(first: ChoiceData, second: ChoiceData) -> bool:
    """Whether two files have the same trials."""
    arrays = (*zip(first.trials, second.trials, strict=True), (first.is_common, second.is_common))
    return all(np.array_equal(a, b) for a, b in (*arrays, (first.is_pair, second.is_pair)))


def test_a_choice_of_minus_one_that_is_an_arm_is_not_read_as_missed():
    rows = list_rows("arms_minus_one.csv")
    choices = reading.read_choices(DATA / "arms_minus_one.csv")
    assert len(choices.participants) == 6 and choices.num_arms == 3
    assert choices.has_outcome.sum() == len(rows) == 360 and choices.is_pair.sum() == 354
    counts = Counter(row["choice"] for row in rows)
    assert counts == {"-1": 69, "0": 128, "1": 163}
    assert np.bincount(choices.trials.choice[choices.has_outcome]).tolist() == [69, 128, 163]
    assert has_note(choices, "-1 (69 of 360 times, 19.2%) is an arm", "--na-values -1")
    missed = reading.read_choices(DATA / "arms_minus_one.csv", na_values=["-1"])
    assert missed.num_arms == 2 and missed.has_outcome.sum() == 360 - 69 - 4  # one subject has 4 trials left


@pytest.mark.parametrize("code", ["-1", "99", "-999"])
def test_a_rare_code_without_varying_reward_marks_missed_trials_of_a_bandit(tmp_path, code):
    rows = [{"trial": f"{t}", "choice": f"{1 + t % 3}", "reward": f"{t % 2}"} for t in range(60)]
    for t in (7, 20, 33):
        rows[t] |= {"choice": code, "reward": "0"}
    choices = read_text(tmp_path, to_csv(rows))
    assert choices.num_arms == 3 and choices.has_outcome.sum() == 57
    assert has_note(choices, f"{code} (3 of 60 times, 5.0%) marks a missed trial", "--arms")
    as_arm = read_text(tmp_path, to_csv(rows), arms=["1", "2", "3", code])
    assert as_arm.num_arms == 4 and as_arm.has_outcome.sum() == 60
    assert read_text(tmp_path, to_csv(rows), arms=["1", "2", "3", "4"]).num_arms == 4  # 4 was never chosen


def test_gain_and_loss_together_are_the_reward():
    rows = list_rows("gain_and_loss.csv")
    payouts = [int(row["gain"]) + int(row["loss"]) for row in rows]
    assert Counter(payouts) == {-60: 22, -10: 27, 0: 45, 40: 19, 50: 52, 100: 35}
    choices = reading.read_choices(DATA / "gain_and_loss.csv")
    assert np.round(-60 + 160 * choices.trials.reward).ravel().tolist() == payouts
    assert has_note(choices, "'gain' + 'loss'")


def test_losses_are_never_left_out_of_the_reward(tmp_path):
    rows = [{"choice": f"{t % 2}", "win": f"{t % 3}", "lost": f"{t % 2}"} for t in range(40)]
    choices = read_text(tmp_path, to_csv(rows))
    assert np.allclose(choices.trials.reward[0], [(t % 3 - t % 2 + 1) / 3 for t in range(40)])
    assert has_note(choices, "'win' - 'lost'")
    with_total = [row | {"payoff": f"{int(row['win']) - int(row['lost'])}"} for row in rows]
    assert are_equal(read_text(tmp_path, to_csv(with_total)), choices)
    for wrong in ([row | {"payoff": "1"} for row in rows], [{"points": r["win"]} | r for r in rows]):
        with pytest.raises(BadInput, match=r"(payoff|points)' is not 'win' - 'lost'"):
            read_text(tmp_path, to_csv(wrong))
    only_loss = [{"choice": row["choice"], "outcome": row["win"], "penalty": row["lost"]} for row in rows]
    with pytest.raises(BadInput, match=r"'outcome' and 'penalty'.*--columns reward=NAME"):
        read_text(tmp_path, to_csv(only_loss))
    assert read_text(tmp_path, to_csv(only_loss), columns={"reward": "outcome"}).trials.reward.max() == 1
    columns = {"gain": "outcome", "loss": "penalty"}
    assert are_equal(read_text(tmp_path, to_csv(only_loss), columns=columns), choices)


def test_a_missed_trial_with_a_repetition_does_not_start_a_session():
    rows = list_rows("asked_again.csv")
    choices = reading.read_choices(DATA / "asked_again.csv")
    assert len(choices.participants) == 3 and choices.trials.starts_session.sum() == 3
    assert choices.has_outcome.sum() == sum(row["choice"] != "null" for row in rows) == 300
    assert sum(row["choice"] == "null" for row in rows) == 21 and has_note(choices, "21 missed (")
    num_pairs, shares = count_stays(rows, "participant")
    assert num_pairs == choices.is_pair.sum() == 256
    stays = analyze_stays(choices)
    assert [round(shares[cell], 4) for cell in CELLS] == [0.6779, 0.4887, 0.3882, 0.7839]
    assert [stays.cell_means[cell].mean for cell in CELLS] == pytest.approx([shares[cell] for cell in CELLS])
    assert has_note(choices, "21 missed trials asked again", "pairs", "not used")


def test_missed_trials_with_repetitions_at_the_end_do_not_start_a_session(tmp_path):
    rows = make_table(subjects="a")
    missed = [row | {"choice": "NA", "state": "NA", "choice2": "NA", "reward": "NA"} for row in rows[10:40:10]]
    later = [*rows[:10], missed[0], *rows[11:20], missed[1], *rows[21:30], missed[2], *rows[31:], *rows[10:40:10]]
    choices = read_text(tmp_path, to_csv(later))
    assert choices.trials.starts_session.sum() == 1 and choices.has_outcome.sum() == 60
    assert choices.is_pair.sum() == 59 - 6
    # A trial number that restarts after complete trials is another session, even if its first trial was missed before.
    restarted = [missed[0] | {"trial": "1"}, *rows[1:], *rows]
    assert read_text(tmp_path, to_csv(restarted)).trials.starts_session.sum() == 2


def test_rows_that_occur_twice_are_named(tmp_path):
    rows = make_table(subjects="a")
    twice = read_text(tmp_path, to_csv([*rows[:6], rows[5], *rows[6:]]))
    assert twice.trials.starts_session.sum() == 1 and twice.is_pair.sum() == 57
    assert has_note(twice, "WARNING", "1 row repeat the number of a complete trial")
    assert has_note(read_text(tmp_path, to_csv(rows + rows)), "WARNING", "two sessions are identical for a")
    constant = read_text(tmp_path, to_csv([row | {"trial": "1"} for row in rows]))
    assert has_note(constant, "WARNING", "no two trials are consecutive")


def test_the_first_line_of_excel_states_the_separator(tmp_path):
    rows = list_rows("excel_sep.csv")
    choices = reading.read_choices(DATA / "excel_sep.csv")
    assert len(choices.participants) == 3 and choices.has_outcome.sum() == len(rows) == 300
    num_pairs, shares = count_stays(rows)
    assert num_pairs == choices.is_pair.sum() == 297
    means = analyze_stays(choices).cell_means
    assert [round(means[cell].mean, 4) for cell in CELLS] == [0.6571, 0.4761, 0.3853, 0.7523]
    assert [means[cell].mean for cell in CELLS] == pytest.approx([shares[cell] for cell in CELLS])
    text = (DATA / "excel_sep.csv").read_text()
    body = text.removeprefix("sep=;\n")
    for separator, first_line in ((";", '"sep=;"'), (",", "SEP=,"), ("\t", "sep=\t"), ("|", "sep=|||")):
        assert are_equal(read_text(tmp_path, f"{first_line}\n{body.replace(';', separator)}"), choices)
    bad = text.replace("s0;3;1", "s0;3;7", 1)
    with pytest.raises(BadInput, match="line 5: choice '7'"):
        read_text(tmp_path, bad)


def test_separators_encodings_and_marks_of_spreadsheets_make_no_difference(tmp_path):
    rows = make_table()
    plain = read_text(tmp_path, to_csv(rows))
    decimal = [row | {"reward": f"{row['reward']},5", "choice": f"{row['choice']},0"} for row in rows]
    assert are_equal(read_text(tmp_path, to_csv(decimal, "\t")), plain)
    assert are_equal(read_text(tmp_path, to_csv(decimal, ";")), plain)
    assert are_equal(read_text(tmp_path, to_csv(rows, "|")), plain)
    assert are_equal(read_text(tmp_path, to_csv(rows, "   ")), plain)
    assert are_equal(read_text(tmp_path, to_csv(rows).replace("\n", "\r")), plain)
    header, *lines = to_csv(rows, " ").splitlines()
    with_row_names = "\n".join([header, *(f'"{i + 1}" {line}' for i, line in enumerate(lines))])
    assert are_equal(read_text(tmp_path, with_row_names), plain)
    for encoding in ("utf-8-sig", "utf-16", "utf-32", "cp1252"):
        umlauts = to_csv([row | {"subject": f"Jürgen {row['subject']}"} for row in rows])
        choices = read_text(tmp_path, umlauts.encode(encoding))
        assert are_equal(choices, plain) and choices.participants == ("Jürgen a", "Jürgen b")
    thousands = to_csv([row | {"reward": f'"{1 + int(row["reward"])},000"'} for row in rows])
    with pytest.raises(BadInput, match=r"reward '.,000' is not a number"):  # one or one thousand
        read_text(tmp_path, thousands)


def test_a_missing_second_choice_does_not_remove_the_trial_from_stay_probabilities():
    rows = list_rows("choice2_lost.csv")
    choices = reading.read_choices(DATA / "choice2_lost.csv")
    assert choices.has_outcome.sum() == len(rows) == 300 and choices.is_pair.sum() == 297
    num_known = sum(row["choice2"] != "" for row in rows)
    assert choices.trials.is_complete.sum() == num_known == 251
    num_pairs, shares = count_stays(rows)
    means = analyze_stays(choices).cell_means
    assert num_pairs == 297 and [means[cell].mean for cell in CELLS] == pytest.approx([shares[cell] for cell in CELLS])
    assert has_note(choices, "stay probabilities use all 300 complete trials, choice models the 251")


@pytest.mark.parametrize("absent", ["1", "2", "3", "4"])
@pytest.mark.parametrize("source", ["state", "transition", "labels"])
def test_a_label_of_choice2_that_never_occurs_makes_no_row_bad(tmp_path, absent, source):
    rows = make_table(100)
    partner = {"1": "2", "2": "1", "3": "4", "4": "3"}[absent]
    rows = [row | {"choice2": partner if row["choice2"] == absent else row["choice2"]} for row in rows]
    states = np.array([int(row["state"]) for row in rows]).reshape(2, 100)
    if source == "transition":
        rows = [row | {"transition": "rare" if row["state"] != row["choice"] else "common"} for row in rows]
    if source != "state":
        rows = [{name: value for name, value in row.items() if name != "state"} for row in rows]
    if source == "labels" and absent == "4":
        with pytest.raises(BadInput, match="1, 2, 3: with three different values the file needs a column 'state'"):
            read_text(tmp_path, to_csv(rows))
        return
    choices = read_text(tmp_path, to_csv(rows))
    assert choices.has_second_choice and choices.trials.is_complete.all()
    assert np.array_equal(choices.trials.state, states)


def test_skipping_bad_rows_never_drops_a_large_share_without_confirmation(tmp_path):
    rows = make_table(100)
    for row in rows[::4]:
        row["reward"] = "x"
    with pytest.raises(
        BadInput, match=r"50 bad rows: line 2.*25.0% of 200 rows.*at most 5.0% \(--max-skipped-share 0.25"
    ):
        read_text(tmp_path, to_csv(rows), skip_bad_rows=True)
    choices = read_text(tmp_path, to_csv(rows), skip_bad_rows=True, max_skipped_share=0.25)
    assert choices.has_outcome.sum() == 150 and has_note(choices, "skipped 50 bad rows", "25.0% of 200 rows")
    many_missed = to_csv([row | {"reward": "NA" if row["reward"] == "x" else row["reward"]} for row in rows])
    assert has_note(read_text(tmp_path, many_missed), "WARNING", "many trials are missed", "a (25%)")


@pytest.mark.parametrize("unit", [1, 1000])
def test_a_column_t_of_reaction_times_is_not_the_trial_number(tmp_path, unit):
    random = np.random.default_rng(0)
    rows = make_table()
    for row in rows:
        del row["trial"]
        row["t"] = f"{random.gamma(4, 0.2) * unit:.{3 if unit == 1 else 0}f}"
    choices = read_text(tmp_path, to_csv(rows))
    assert choices.is_pair.sum() == 118 and choices.trials.starts_session.sum() == 2
    assert has_note(choices, "'t' does not number the trials", "--columns trial=t")
    numbered = [row | {"t": str(i % 60)} for i, row in enumerate(rows) if i != 5]
    assert read_text(tmp_path, to_csv(numbered)).is_pair.sum() == 116
    ids = [{"id": str(i)} | row for i, row in enumerate(rows)]
    for row in ids:
        del row["subject"]
    assert has_note(read_text(tmp_path, to_csv(ids)), "'id' differs in nearly every row")


def test_two_candidates_for_a_column_are_named(tmp_path):
    rows = [row | {"outcome": row["reward"], "rt": "0.5"} for row in make_table()]
    for row in rows:
        row["points"] = str(3 - int(row.pop("reward")))
    with pytest.raises(BadInput, match=r"'outcome' and 'points' .* could both be 'reward'"):
        read_text(tmp_path, to_csv(rows))
    choices = read_text(tmp_path, to_csv(rows), columns={"reward": "outcome"})
    assert has_note(choices, "columns that are not used: rt, points")
    two = [row | {"action": "1"} for row in make_table()]
    assert has_note(read_text(tmp_path, to_csv(two)), "'choice' and 'action' the first is read as 'choice'")


def test_words_cases_and_missing_codes_are_read_as_their_writers_mean_them(tmp_path):
    rows = make_table()
    plain = read_text(tmp_path, to_csv(rows))
    words = [
        row
        | {"choice": ("left", "Right", "LEFT", "right")[int(row["choice"]) + 2 * (i % 2)]}
        | {"reward": ("lose", "win")[int(row["reward"])]}
        for i, row in enumerate(rows)
    ]
    choices = read_text(tmp_path, to_csv(words))
    assert are_equal(choices, plain) and has_note(choices, "'choice' that differ in upper and lower case")
    assert has_note(choices, "win is read as 1, lose as 0")
    flags = [row | {"correct": ("FALSE", "TRUE")[i % 2]} for i, row in enumerate(rows)]
    assert read_text(tmp_path, to_csv(flags)).is_correct[0, :4].tolist() == [False, True, False, True]
    coded = [row | {"reward": "-99"} if i == 5 else row for i, row in enumerate(rows)]
    assert has_note(read_text(tmp_path, to_csv(coded)), "WARNING", "--na-values reward=-99")
    assert read_text(tmp_path, to_csv(coded), na_values=["reward=-99"]).has_outcome.sum() == 119
    missed = [
        row | {"choice": "99", "state": "99", "choice2": "99", "reward": "99"} if i == 5 else row
        for i, row in enumerate(rows)
    ]
    assert read_text(tmp_path, to_csv(missed)).has_outcome.sum() == 119
    totals = [row | {"reward": str(i % 60)} for i, row in enumerate(rows)]
    assert has_note(read_text(tmp_path, to_csv(totals)), "WARNING", "running total")


def test_one_stray_label_does_not_turn_a_choice_into_a_missing_value(tmp_path):
    rows = make_table()
    rows[2]["choice"] = "7"
    with pytest.raises(BadInput, match="line 4: choice '7' is none of 0, 1"):
        read_text(tmp_path, to_csv(rows))


def make_transitions(num_trials: int, num_subjects: int, common=0.75, seed: int = 0, **columns) -> str:
    """A file of random choices; `common` is the probability that choice k leads to state k, or a function."""
    random = np.random.default_rng(seed)
    rows = []
    for subject in range(num_subjects):
        for trial in range(num_trials):
            choice, reward = random.integers(2, size=2)
            straight = random.random() < (common(subject, trial) if callable(common) else common)
            row = {"subject": f"s{subject}", "trial": f"{trial}", "choice": f"{choice}"}
            row |= {"state": f"{choice if straight else 1 - choice}", "reward": f"{reward}"}
            rows.append(row | {name: value(trial) for name, value in columns.items()})
    return to_csv(rows)


def test_the_common_transition_of_short_runs_is_pooled_over_participants(tmp_path):
    choices = read_text(tmp_path, make_transitions(12, 60, common=0.65))
    shares = (choices.trials.choice == choices.trials.state).mean(axis=1)
    assert (shares < 0.5).sum() > 5  # by its own majority alone each of these would be read the wrong way round
    assert choices.common_state.tolist() == [[0, 1]] * 60
    assert np.array_equal(choices.is_common, choices.trials.choice == choices.trials.state)
    assert has_note(choices, "pooled over participants", "60 of 60") and not has_note(choices, "WARNING")
    counterbalanced = read_text(tmp_path, make_transitions(100, 20, lambda s, t: 0.75 if s % 2 else 0.25))
    assert counterbalanced.common_state[:, 0].tolist() == [1, 0] * 10
    assert has_note(counterbalanced, "participants disagree", "10 of 20")


def test_a_common_transition_that_changes_is_named(tmp_path):
    by_session = make_transitions(
        80, 3, lambda s, t: 0.8 if t < 40 or s else 0.2, session=lambda t: "first" if t < 40 else "second"
    )
    choices = read_text(tmp_path, by_session)
    assert has_note(choices, "WARNING", "changes between sessions of s0;")
    short = make_transitions(
        10, 20, lambda s, t: 0.8 if t < 5 else 0.2, session=lambda t: "first" if t < 5 else "second"
    )
    assert has_note(read_text(tmp_path, short), "WARNING", "changes between sessions")
    reversing = make_transitions(200, 3, lambda s, t: 0.2 if s == 1 and t // 40 % 2 else 0.8)
    assert has_note(read_text(tmp_path, reversing), "WARNING", "changes within sessions of s1;")
    for seed in range(20):
        assert not has_note(read_text(tmp_path, make_transitions(200, 5, 0.7, seed)), "WARNING")
