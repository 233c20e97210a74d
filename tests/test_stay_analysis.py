"""Stay probabilities and their regression: errors by clusters, habitual stayers, intervals of shares, linear time."""

import itertools
import json
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from ontogeny import cli
from ontogeny.audit.behavior import page, reading
from ontogeny.audit.behavior.smoothing import sum_neighbors
from ontogeny.audit.behavior.stay_analysis import TERMS, analyze_stays, mean_over_participants, mean_share
from ontogeny.audit.behavior.stay_regression import fit_pooled_logit
from ontogeny.errors import BadInput
from ontogeny.stats import share_interval

DATA = Path(__file__).parent / "data" / "behavior"
VALUES = np.array(list(TERMS["two_step"].values()), float).T
TRANSITION = 1 + list(TERMS["two_step"]).index("transition")
COMMON_SHARE = 0.8


def simulate_stayers(random, num_participants, num_trials, mean, sd, reward_effect=0.0):
    """Stays and pairs by cell of people who nearly always stay, whatever the transition was."""
    intercept = random.normal(mean, sd, num_participants)
    reward_rate = expit(random.normal(0, 0.5, num_participants))
    outcomes = np.stack([reward_rate, 1 - reward_rate], 1)
    cells = (outcomes[:, :, None] * np.array([COMMON_SHARE, 1 - COMMON_SHARE])).reshape(num_participants, 4)
    num_pairs = random.multinomial(num_trials, cells)
    return random.binomial(num_pairs, expit(intercept[:, None] + reward_effect * VALUES[:, 0])), num_pairs


@pytest.mark.parametrize(
    ("num_participants", "num_trials", "mean", "sd", "reward_effect"),
    [(30, 100, 4.2, 0.7, 0.0), (10, 200, 3.0, 1.0, 0.3)],
)
def test_transition_is_significant_by_chance_only_in_habitual_stayers(
    num_participants, num_trials, mean, sd, reward_effect
):
    random = np.random.default_rng(0)
    studies = [simulate_stayers(random, num_participants, num_trials, mean, sd, reward_effect) for _ in range(200)]
    p_values = np.array([fit_pooled_logit(VALUES, *study)[TRANSITION].p_value for study in studies])
    # With a true rate of 5 % more than 20 of 200 occur in one case of a thousand.
    assert (p_values < 0.05).sum() <= 20 and (p_values < 0.5).mean() == pytest.approx(0.5, abs=0.12)


def test_an_effect_of_transition_is_detected_and_its_interval_covers_it():
    random = np.random.default_rng(0)
    coefficients = []
    for _ in range(100):
        num_pairs = random.multinomial(150, [0.4, 0.1, 0.4, 0.1], size=20)
        chance = expit(random.normal(1.0, 0.2, 20)[:, None] + 0.3 * VALUES[:, 1])
        coefficients.append(fit_pooled_logit(VALUES, random.binomial(num_pairs, chance), num_pairs)[TRANSITION])
    assert sum(c.low > 0 for c in coefficients) > 95
    assert sum(c.low < 0.3 < c.high for c in coefficients) >= 89  # 95 % less three standard errors


def test_clustered_errors_equal_those_of_matrices_of_all_trials():
    """Pustejovsky & Tipton 2018, equations for CR2 and its degrees of freedom, with one row per trial."""
    random = np.random.default_rng(1)
    num_pairs = random.integers(1, 25, (6, 4))
    num_pairs[0, 3] = num_pairs[1, 1] = 0
    num_stays = random.binomial(num_pairs, random.uniform(0.5, 0.95, (6, 1)))
    coefficients = fit_pooled_logit(VALUES, num_stays, num_pairs)
    centered = VALUES - (num_pairs @ VALUES / num_pairs.sum(axis=1, keepdims=True))[:, None]
    trials = [
        (s, t < num_stays[s, c], [1, *centered[s, c]])
        for s, c in itertools.product(range(6), range(4))
        for t in range(num_pairs[s, c])
    ]
    cluster, stay, design = (np.array(part, float) for part in zip(*trials, strict=True))
    probability = expit(design @ [c.mean for c in coefficients])
    weight = np.sqrt(probability * (1 - probability))
    Z = design * weight[:, None]
    inverse = np.linalg.inv(Z.T @ Z)
    hat = Z @ inverse @ Z.T
    residual = (stay - probability + np.diag(hat) * (0.5 - probability)) / weight
    assert np.abs(Z.T @ residual).max() < 1e-6  # the penalized scores are zero
    rows, variance = [], np.zeros((4, 4))
    for s in range(6):
        is_member = cluster == s
        values, vectors = np.linalg.eigh(np.eye(is_member.sum()) - hat[np.ix_(is_member, is_member)])
        adjusted = (vectors / np.sqrt(values)) @ vectors.T @ Z[is_member] @ inverse
        score = adjusted.T @ residual[is_member]
        variance += np.outer(score, score)
        rows.append((np.eye(len(cluster)) - hat)[:, is_member] @ adjusted)
    for k, coefficient in enumerate(coefficients):
        assert coefficient.standard_error == pytest.approx(np.sqrt(variance[k, k]))
        P = np.array([row[:, k] for row in rows])
        assert coefficient.degrees_of_freedom == pytest.approx(np.trace(P @ P.T) ** 2 / ((P @ P.T) ** 2).sum())


def test_coefficients_are_finite_where_everybody_always_stays():
    num_pairs = np.tile([40, 10, 40, 10], (5, 1))
    for coefficient in fit_pooled_logit(VALUES, num_pairs, num_pairs)[1:]:
        assert abs(coefficient.mean) < 1 and not coefficient.p_value < 0.05
    single = fit_pooled_logit(VALUES, num_pairs[:1] - 1, num_pairs[:1])
    assert all(np.isfinite(c.mean) and np.isnan(c.low) for c in single)
    empty = fit_pooled_logit(VALUES, num_pairs * 0, num_pairs * 0)
    assert all(np.isnan(c.mean) and c.num_participants == 0 for c in empty)


@pytest.mark.parametrize("name", ["arms_minus_one", "asked_again", "choice2_lost", "excel_sep", "gain_and_loss"])
def test_intervals_of_shares_stay_within_0_and_1(name):
    stays = analyze_stays(reading.read_choices(DATA / f"{name}.csv"))
    for mean in stays.cell_means.values():
        assert 0 <= mean.low <= mean.mean <= mean.high <= 1
    for part in (probability for cell in stays.by_participant.values() for probability in cell):
        assert 0 <= part.low <= part.share <= part.high <= 1
    for contrast, mean in stays.contrasts.items():
        bound = 2 if contrast == "interaction" else 1
        assert -bound <= mean.low <= mean.high <= bound


def test_intervals_of_mean_shares_cover_skewed_shares():
    """Shares of people who nearly always stay: the interval stays inside and still covers, which clipping would not."""
    random = np.random.default_rng(0)
    num_covered = 0
    for _ in range(1000):
        chance = random.beta(19, 1, 8)
        mean = mean_share(random.binomial(25, chance) / 25)
        assert 0 <= mean.low <= mean.high <= 1
        num_covered += mean.low < 0.95 < mean.high
    assert num_covered > 925
    low, high = share_interval(1.0, 0.0, 4, 3)
    assert 0.2 < low < 0.4 and high == 1.0 and share_interval(0.0, 0.0, 4, 3) == pytest.approx((0, 1 - low))


def test_participants_who_all_agree_are_no_certainty():
    """Four of four with the same share or contrast: others may differ."""
    low, high = share_interval(0.3, 0.0, 4)
    assert low == pytest.approx(0.3 * 0.025 ** (1 / 4)) and high == pytest.approx(1 - 0.7 * 0.025 ** (1 / 4))
    mean = mean_over_participants(np.full(4, 0.5), 1.0)
    assert mean.low == pytest.approx(1.5 * 0.025 ** (1 / 4) - 1) and mean.high == pytest.approx(1 - 0.5 * 0.025**0.25)
    assert mean.p_value > 0.05 > mean_over_participants(np.full(40, 0.5), 1.0).p_value
    assert mean_over_participants(np.zeros(4), 1.0).p_value == 1
    unknown = mean_over_participants(np.full(4, 0.5))
    assert unknown.mean == 0.5 and np.isnan([unknown.low, unknown.high, unknown.p_value]).all()


def test_smoothing_in_linear_time_equals_the_sum_over_all_pairs_of_trials():
    values = np.random.default_rng(0).random((2, 50))
    distance = np.abs(np.arange(50)[:, None] - np.arange(50))
    np.testing.assert_allclose(sum_neighbors(values, 8.0), values @ np.exp(-distance / 8.0))


@pytest.mark.parametrize("name", ["choice2_lost", "gain_and_loss"])
def test_the_stay_tables_alone_are_computed_without_choice_models(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["behavior", str(DATA / f"{name}.csv"), "--stays-only", "--out", "out"]
    monkeypatch.setattr(sys, "argv", ["ontogeny", "audit", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    output = capsys.readouterr()
    assert stop.value.code == 0 and "stay probability" in output.out and "BIC" not in output.out
    record = json.loads((tmp_path / "out" / "behavior.json").read_text())
    assert "models" not in record and record["stay_analysis"]["num_pairs"] in (297, 196)
    html = (tmp_path / "out" / "behavior.html").read_text()
    assert html == page.render(record, f"Choices in {name}.csv")
    assert "Stay probabilities" in html and "Choice models" not in html and "best model" not in html


def write_long_file(path: Path, num_trials: int) -> Path:
    """Random choices of one subject in two steps."""
    values = np.random.default_rng(0).integers(2, size=(num_trials, 4))
    lines = (f"a,{t},{c},{s if r else c},{o}" for t, (c, s, r, o) in enumerate(values.tolist()))
    path.write_text("\n".join(["subject,trial,choice,state,reward", *lines]) + "\n")
    return path


def test_memory_of_reading_and_stay_tables_is_linear_in_trials(tmp_path):
    peaks = []
    for num_trials in (1_500, 6_000):
        tracemalloc.start()
        analyze_stays(reading.read_choices(write_long_file(tmp_path / "c.csv", num_trials)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 6 * peaks[0]  # four times as many trials; one matrix of trials by trials has 16 times as much


def write_choices(path: Path, header: str, rows: list[tuple[int, ...]]) -> Path:
    """Rows of two subjects."""
    lines = [f"s{subject},{','.join(map(str, row))}" for subject in (0, 1) for row in rows]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_without_rare_transitions_no_effect_of_transition_is_estimated(tmp_path, monkeypatch, capsys):
    values = np.random.default_rng(0).integers(2, size=(40, 2)).tolist()
    path = write_choices(tmp_path / "a.csv", "subject,choice,state,reward", [(c, c, r) for c, r in values])
    stays = analyze_stays(reading.read_choices(path))
    coefficients = stays.regression | {f"corrected {name}": c for name, c in stays.corrected_regression.items()}
    is_unknown = {name for name, coefficient in coefficients.items() if np.isnan(coefficient.mean)}
    effects = {"reward", "transition", "reward x transition"}
    assert is_unknown == effects | {f"corrected {name}" for name in effects}
    monkeypatch.setattr(sys, "argv", ["ontogeny", "audit", "behavior", str(path), "--stays-only"])
    with pytest.raises(SystemExit):
        cli.main()
    output = capsys.readouterr().out
    assert "contrast of stay probabilities is unknown: no participant has pairs of trials in every cell" in output
    assert "nan" not in output


def test_an_empty_file_is_called_empty(tmp_path):
    (tmp_path / "a.csv").touch()
    with pytest.raises(BadInput, match="is empty"):
        reading.read_choices(tmp_path / "a.csv")
