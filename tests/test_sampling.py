"""The sampler: temperature, top-k and top-p, seeds, and agreement of its NumPy and JAX versions."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from ontogeny.engine import sampling
from ontogeny.engine.sampling import BatchSamplingParams, SamplingParams, draw_uniform, sample_token
from ontogeny.errors import BadInput
from ontogeny.seeds import NUM_SAMPLING_SEEDS

NUM_DRAWS = 20_000
VOCAB_SIZES = (2, 3, 17, 256, 700)  # one program is compiled for each
sample_tokens = jax.jit(sampling.sample_tokens)


@cache
def draw_uniforms():
    """The uniform numbers of one seed at many positions."""
    return [draw_uniform(7, position) for position in range(NUM_DRAWS)]


def draw_with_jax(logits, params, uniforms):
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (len(uniforms), len(logits)))
    settings = [jnp.full(len(rows), value) for value in (params.temperature, params.top_p, params.top_k)]
    return np.asarray(sample_tokens(jnp.asarray(uniforms, jnp.float32), rows, BatchSamplingParams(*settings)))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5}, [0.25, 0.09, 0.0225, 0.0025]),
        ({"top_k": 2}, [0.5, 0.3, 0, 0]),
        ({"top_p": 0.79}, [0.5, 0.3, 0, 0]),
        ({"top_p": 0.81}, [0.5, 0.3, 0.15, 0]),
        ({"top_k": 2, "top_p": 0.6}, [1, 0, 0, 0]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0]),
        ({"top_p": 0.0}, [1, 0, 0, 0]),
    ],
    ids=str,
)
def test_draws_follow_the_distribution_restricted_by_top_k_and_top_p(settings, expected):
    """By a chi-square test at 0.1 %, for the numbers that seeds give."""
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    params = SamplingParams(**settings)
    tokens = draw_with_jax(logits, params, draw_uniforms())
    counts = np.bincount(tokens, minlength=4)
    host = [sample_token(logits, params._replace(seed=7), position) for position in range(2000)]
    assert host == tokens[:2000].tolist()
    possible = np.array(expected) > 0
    assert not counts[~possible].any()
    shares = np.array(expected)[possible] / np.sum(expected)
    assert possible.sum() == 1 or chisquare(counts[possible], NUM_DRAWS * shares).pvalue > 1e-3


@given(
    st.integers(0, 999), st.sampled_from(VOCAB_SIZES), st.sampled_from([0.3, 1.0, 3.0]), st.sampled_from([0, 1, 9]),
    st.sampled_from([0.2, 0.9, 1.0]),
)  # fmt: skip
def test_jax_and_numpy_samplers_draw_with_the_same_probabilities(seed, vocab_size, temperature, top_k, top_p):
    """The uniform numbers at which the drawn token changes differ by less than 1e-6: float32 against float64."""
    logits = np.random.default_rng(seed).normal(0, 2, vocab_size).astype(np.float32)
    params = SamplingParams(temperature, top_p, top_k=top_k)
    shares = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    order = np.argsort(-shares, kind="stable")[: top_k or None]
    sums = np.cumsum(shares[order])
    possible = np.sort(order[: int(np.searchsorted(sums, top_p * sums[-1])) + 1])
    ends = np.cumsum(shares[possible]) / shares[possible].sum()
    starts = np.concatenate([[0.0], ends[:-1]])
    wide = ends - starts > 4e-6  # a token of a narrower interval may be drawn or not
    for uniforms in (starts[wide] + 1e-6, ends[wide] - 1e-6):
        tokens = draw_with_jax(logits, params, np.resize(uniforms, vocab_size))  # one size, hence one program
        assert tokens.tolist() == np.resize(possible[wide], vocab_size).tolist()


def test_uniform_numbers_depend_on_seed_and_position_alone():
    numbers = [draw_uniform(seed, position) for seed in (0, 1, 2**32, 2**64 - 1) for position in range(50)]
    assert len(set(numbers)) == 200 and 0 <= min(numbers) < max(numbers) < 1
    assert draw_uniform(5, 3) == draw_uniform(5, 3) == draw_uniform(5 + NUM_SAMPLING_SEEDS, 3)


def test_the_largest_uniform_number_draws_a_possible_token():
    logits = np.array([0.0, 1.0, 0.5, -np.inf], np.float32)
    assert draw_with_jax(logits, SamplingParams(), [1.0, 0.0]).tolist() == [2, 0]


@pytest.mark.parametrize(
    "settings", [{"temperature": -1}, {"temperature": np.nan}, {"top_p": -0.1}, {"top_p": 1.1}, {"top_k": -1}], ids=str
)
def test_parameters_out_of_range_are_rejected(settings):
    with pytest.raises(BadInput, match="must"):
        sampling.check_sampling_params(SamplingParams(**settings))


LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40).map(lambda v: np.array(v, np.float32))
SEEDS = st.integers(0, 2**64 - 1)


@given(LOGITS, st.floats(0.01, 100), SEEDS, st.integers(0, 100))
def test_top_p_of_zero_samples_greedily(logits, temperature, seed, position):
    params = SamplingParams(temperature, 0.0, seed)
    assert sample_token(logits, params, position) == int(np.argmax(logits))


@given(SEEDS, st.integers(0, 255), SEEDS, st.integers(0, 255))
def test_seeds_of_choices_are_hashed(seed, choice, other_seed, other_choice):
    """Choice k of seed s is not choice 0 of seed s + k, and no other pair shares a seed either."""
    derived = sampling.derive_seed(seed, choice)
    assert 0 <= derived < NUM_SAMPLING_SEEDS and sampling.derive_seed(seed, 0) == seed
    assert (derived == sampling.derive_seed(other_seed, other_choice)) == ((seed, choice) == (other_seed, other_choice))
    assert derived != (seed + choice) % NUM_SAMPLING_SEEDS or choice == 0


def test_repeats_of_a_request_have_different_seeds():
    seeds = sampling.derive_seeds_of_repeats(["a", "b", "a", "a", "b"])
    assert seeds[0] == seeds[1] == 0 and seeds[2] == seeds[4] and len(set(seeds)) == 3


BIASES = st.dictionaries(st.integers(0, 39), st.floats(-100, 100, width=32), max_size=8)


@given(LOGITS, st.lists(st.integers(0, 39), max_size=12), SEEDS, st.integers(0, 9))
def test_adjustments_of_zero_change_no_bit(logits, generated, seed, position):
    assert sampling.make_adjustments(logit_bias={3: 0.0}) is None
    none = sampling.LogitAdjustments()
    assert sampling.adjust_logits(logits, none, [t % len(logits) for t in generated], [0]).tobytes() == logits.tobytes()


@given(LOGITS, st.floats(-2, 2), st.floats(-2, 2), BIASES, st.lists(st.integers(0, 39), max_size=12))
def test_penalties_and_biases_follow_the_definition_of_the_api(logits, presence, frequency, biases, generated):
    """Logit minus frequency penalty times count, minus presence penalty where the count is not 0, plus bias."""
    V = len(logits)
    generated, biases = [t % V for t in generated], {t % V: bias for t, bias in biases.items()}
    adjustments = (
        sampling.make_adjustments(presence_penalty=presence, frequency_penalty=frequency, logit_bias=biases)
        or sampling.LogitAdjustments()
    )
    before = logits.copy()
    adjusted = sampling.adjust_logits(logits, adjustments, generated, ())
    assert logits.tobytes() == before.tobytes()  # other answers share them
    for token in range(V):
        count, bias = generated.count(token), biases.get(token, 0.0)
        expected = logits[token] - frequency * count - presence * (count > 0) + bias
        assert adjusted[token] == pytest.approx(expected if bias > -100 else sampling.FORBIDDEN_LOGIT, abs=1e-3)


@given(LOGITS, st.sets(st.integers(0, 39), max_size=20), st.sampled_from([0.0, 0.1, 1.0, 100.0]), SEEDS)
def test_a_token_with_the_lowest_bias_is_never_sampled(logits, excluded, temperature, seed):
    excluded = {token % len(logits) for token in excluded} - {int(np.argmin(logits))}  # any but the least probable
    adjustments = sampling.make_adjustments(logit_bias=dict.fromkeys(excluded, -100.0), presence_penalty=-2.0)
    for position in range(20):
        adjusted = sampling.adjust_logits(logits, adjustments, list(excluded), ())
        assert sample_token(adjusted, SamplingParams(temperature, seed=seed), position) not in excluded


@given(LOGITS, st.integers(0, 5), st.integers(0, 8), SEEDS)
def test_the_end_token_is_not_sampled_before_min_tokens(logits, min_tokens, num_generated, seed):
    logits = np.concatenate([logits, [np.float32(50.0)]])
    end = len(logits) - 1
    adjustments = sampling.LogitAdjustments(min_tokens=min_tokens)
    adjusted = sampling.adjust_logits(logits, adjustments, [0] * num_generated, [end])
    assert (sample_token(adjusted, SamplingParams(0.0), 0) == end) == (num_generated >= min_tokens)
