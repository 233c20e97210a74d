"""Reference predictors with known ground truth, by which the prequential audit is calibrated.

Valid predictors are the negative controls: the audit must certify them. Invalid predictors are the positive controls:
each breaks a known check. All are small count models over a vocabulary of V tokens, and see T tokens per call.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from ontogeny import plugins
from ontogeny.audit.prequential.base import CHECKS, BuildPredictor, Predictor
from ontogeny.errors import BadInput


def count_transitions(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Counts how often each token follows each context, which is the token before it.

    Args:
        tokens: [T], integers from 0 to V - 1.
        vocab_size: V.

    Returns:
        [V + 1, V]; the context of index V is the beginning of the stream.
    """
    counts = np.zeros((vocab_size + 1, vocab_size))
    np.add.at(counts, (_contexts(tokens, vocab_size), tokens), 1.0)
    return counts


def predict_by_counts(
    tokens: np.ndarray, vocab_size: int, initial_counts: np.ndarray | None = None, prior_weight: float = 2.0
) -> np.ndarray:
    """Predicts each token by the counts of what followed its context before, smoothed by the overall frequencies.

    Args:
        tokens: [T], integers from 0 to V - 1.
        vocab_size: V.
        initial_counts: [V + 1, V], the counts before the first token; by default zero.
        prior_weight: Weight of the overall frequencies, in observations; positive.

    Returns:
        Log-probabilities [T, V]; entry t depends on the tokens before t and on `initial_counts` alone.
    """
    T, V = len(tokens), vocab_size
    initial = np.zeros((V + 1, V)) if initial_counts is None else initial_counts
    contexts, one_hot = _contexts(tokens, V), np.eye(V)[tokens]
    token_counts = initial.sum(axis=0) + np.cumsum(one_hot, axis=0) - one_hot
    same_context = np.tril(contexts[:, None] == contexts[None, :], -1)  # [T, T], earlier tokens only
    context_counts = initial[contexts] + same_context @ one_hot
    # Krichevsky and Trofimov 1981 (IEEE Trans Inf Theory 27:199) add 1/2 to each count.
    frequencies = (token_counts + 0.5) / (token_counts.sum(axis=1, keepdims=True) + 0.5 * V)
    totals = context_counts.sum(axis=1, keepdims=True) + prior_weight
    return np.log((context_counts + prior_weight * frequencies) / totals).reshape(T, V)


def leak_tokens(log_probs: np.ndarray, tokens: np.ndarray, weight: np.ndarray | float) -> np.ndarray:
    """Mixes a point mass on the token to be predicted into each distribution.

    Args:
        log_probs: [T, V].
        tokens: [T].
        weight: Probability moved to the token itself, 0 to 1; one number or [T].

    Returns:
        Log-probabilities [T, V] which leak the token.
    """
    share = np.broadcast_to(np.asarray(weight, float), (len(tokens),))[:, None]
    return np.log((1 - share) * np.exp(log_probs) + share * np.eye(log_probs.shape[1])[tokens])


def _contexts(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """The token before each token; V at the beginning of the stream."""
    return np.concatenate([[vocab_size], tokens[:-1]]).astype(int)[: len(tokens)]


def counts(*, vocab_size: int = 16) -> Predictor:
    """Valid: counts transitions, and learns from each token after scoring it."""
    return partial(predict_by_counts, vocab_size=vocab_size)


def gradient_descent(*, vocab_size: int = 16, learning_rate: float = 1.0) -> Predictor:
    """Valid: a softmax of one weight vector per context, which takes a gradient step after scoring each token."""

    def predict(tokens: np.ndarray) -> np.ndarray:
        weights, log_probs, context = np.zeros((vocab_size + 1, vocab_size)), [], vocab_size
        for token in tokens:
            log_probs.append(weights[context] - np.log(np.sum(np.exp(weights[context]))))
            weights[context] -= learning_rate * (np.exp(log_probs[-1]) - np.eye(vocab_size)[token])
            context = token
        return np.stack(log_probs)

    return predict


def persistent_counts(*, vocab_size: int = 16) -> Predictor:
    """Valid where each pass uses a new instance: the instance keeps its counts between calls, as a model does."""
    counts_so_far = np.zeros((vocab_size + 1, vocab_size))

    def predict(tokens: np.ndarray) -> np.ndarray:
        log_probs = predict_by_counts(tokens, vocab_size, counts_so_far.copy())
        counts_so_far[:] += count_transitions(tokens, vocab_size)
        return log_probs

    return predict


def overconfident(*, vocab_size: int = 16, error: float = 1e-9) -> Predictor:
    """Valid and inaccurate: predicts almost with certainty that the previous token repeats.

    Args:
        vocab_size: V.
        error: Probability of all other tokens together.
    """

    def predict(tokens: np.ndarray) -> np.ndarray:
        repeated = np.eye(vocab_size)[np.concatenate([[0], tokens[:-1]])[: len(tokens)]]  # token 0 before the first
        with np.errstate(divide="ignore"):
            return np.log(repeated * (1 - error) + (1 - repeated) * error / (vocab_size - 1))

    return predict


def padded(*, vocab_size: int = 16, num_columns: int = 24) -> Predictor:
    """Valid: its rows are wider than the vocabulary, and the columns beyond it have the probability zero."""

    def predict(tokens: np.ndarray) -> np.ndarray:
        log_probs = predict_by_counts(tokens, vocab_size)
        return np.pad(log_probs, {1: (0, num_columns - vocab_size)}, constant_values=-np.inf)

    return predict


def length_dependent_rounding(*, vocab_size: int = 16) -> Predictor:
    """Valid: sums in an order that depends on the length, so the last digits of a prefix differ."""

    def predict(tokens: np.ndarray) -> np.ndarray:
        return (predict_by_counts(tokens, vocab_size) * (1 + 1e-7 * (len(tokens) % 7))).astype(np.float32)

    return predict


def uniform(*, vocab_size: int = 16) -> Predictor:
    """Valid: the uniform distribution at every token."""
    return lambda tokens: np.full((len(tokens), vocab_size), -np.log(vocab_size), np.float32)


def token_leak(*, vocab_size: int = 16, weight: float = 0.1) -> Predictor:
    """Invalid: moves a little probability to the very token that it must predict."""
    return lambda tokens: leak_tokens(predict_by_counts(tokens, vocab_size), tokens, weight)


def rare_leak(*, vocab_size: int = 16, share: float = 0.05, weight: float = 0.95) -> Predictor:
    """Invalid: leaks the token that it must predict, at one position in twenty."""

    def predict(tokens: np.ndarray) -> np.ndarray:
        is_leaking = np.random.default_rng(7).random(len(tokens)) < share
        return leak_tokens(predict_by_counts(tokens, vocab_size), tokens, weight * is_leaking)

    return predict


def chunk_leak(*, vocab_size: int = 16, chunk_size: int = 32) -> Predictor:
    """Invalid: adapts to each chunk of tokens before scoring it, a possible error of test-time training."""

    def predict(tokens: np.ndarray) -> np.ndarray:
        log_probs = []
        for start in range(0, len(tokens), chunk_size):
            end = start + chunk_size
            adapted = count_transitions(tokens[:end], vocab_size)
            log_probs.append(predict_by_counts(tokens[start:end], vocab_size, adapted))
        return np.concatenate(log_probs)

    return predict


def second_pass(*, vocab_size: int = 16, count_weight: float = 1.0) -> Predictor:
    """Invalid: learns the whole stream in a first pass and reports the scores of a second one.

    Args:
        vocab_size: V.
        count_weight: Factor of the counts of the first pass, from 0 to 1.
    """
    return lambda tokens: predict_by_counts(tokens, vocab_size, count_weight * count_transitions(tokens, vocab_size))


def unnormalized(*, vocab_size: int = 16, log_excess: float = 0.01) -> Predictor:
    """Invalid: probabilities sum to more than one, which improves every score."""
    return lambda tokens: predict_by_counts(tokens, vocab_size) + log_excess


def length_dependent(*, vocab_size: int = 16) -> Predictor:
    """Invalid: sets its learning rate by the length of the stream, which an online predictor cannot know."""
    return lambda tokens: predict_by_counts(tokens, vocab_size, prior_weight=1 + 200 / max(len(tokens), 1))


def zero_probability(*, vocab_size: int = 16) -> Predictor:
    """Not certifiable: a token that it has not seen has the probability zero, so the score is infinite."""

    def predict(tokens: np.ndarray) -> np.ndarray:
        one_hot = np.eye(vocab_size)[tokens]
        token_counts = np.cumsum(one_hot, axis=0) - one_hot
        token_counts[0] = 1.0  # nothing is known about the first token
        with np.errstate(divide="ignore"):
            return np.log(token_counts / token_counts.sum(axis=1, keepdims=True))

    return predict


def random_noise(*, vocab_size: int = 16, noise: float = 0.01) -> Predictor:
    """Not certifiable: adds unseeded noise in each pass, so a published score cannot be checked."""

    def predict(tokens: np.ndarray) -> np.ndarray:
        log_probs = predict_by_counts(tokens, vocab_size)
        noisy = log_probs + noise * np.random.default_rng().standard_normal(log_probs.shape)
        return noisy - np.logaddexp.reduce(noisy, axis=1, keepdims=True)

    return predict


_process_counts: dict[int, np.ndarray] = {}  # by vocabulary size, for as long as the process runs


def process_cache(*, vocab_size: int = 16) -> Predictor:
    """Invalid within one process: a module-level cache carries counts from one instance to the next.

    In a new process the cache is empty and the predictor is valid; this is the reason for `--isolation process`.
    """

    def predict(tokens: np.ndarray) -> np.ndarray:
        before = _process_counts.get(vocab_size, np.zeros((vocab_size + 1, vocab_size)))
        _process_counts[vocab_size] = before + count_transitions(tokens, vocab_size)
        return predict_by_counts(tokens, vocab_size, before)

    return predict


class ReferencePredictor(NamedTuple):
    """A predictor with the verdicts that a correct audit gives."""

    build: Callable[..., Predictor]
    ground_truth: Mapping[str, str]  # verdicts by check; a check that may go either way is absent


VALID_VERDICTS = dict.fromkeys(CHECKS, "pass")
_LEAK_VERDICTS = {"causal": "fail", "random_tokens": "fail", "normalized": "pass", "reproducible": "pass"}
_NOT_REPRODUCIBLE_VERDICTS = {
    "reproducible": "fail",
    "normalized": "pass",
    "causal": "undetermined",
    "prefix_invariant": "undetermined",
}
REFERENCE_PREDICTORS = {
    build.__name__: ReferencePredictor(build, ground_truth)
    for build, ground_truth in (
        (counts, VALID_VERDICTS),
        (gradient_descent, VALID_VERDICTS),
        (persistent_counts, VALID_VERDICTS),
        (overconfident, VALID_VERDICTS),
        (length_dependent_rounding, VALID_VERDICTS),
        (uniform, VALID_VERDICTS),
        (padded, VALID_VERDICTS),
        (token_leak, _LEAK_VERDICTS),
        (rare_leak, {"normalized": "pass", "reproducible": "pass"}),  # fails `causal` or `random_tokens`
        (chunk_leak, _LEAK_VERDICTS),
        (second_pass, _LEAK_VERDICTS | {"prefix_invariant": "fail"}),
        (unnormalized, VALID_VERDICTS | {"normalized": "fail"}),
        (length_dependent, VALID_VERDICTS | {"prefix_invariant": "fail"}),
        (zero_probability, VALID_VERDICTS | {"finite_score": "fail"}),
        (random_noise, _NOT_REPRODUCIBLE_VERDICTS | {"random_tokens": "pass"}),
        (process_cache, _NOT_REPRODUCIBLE_VERDICTS),
    )
}


def find_reference_predictor(text: str) -> BuildPredictor:
    """Finds a reference predictor by its name and settings.

    Args:
        text: `NAME` or `NAME:setting=value,...`.

    Raises:
        BadInput: The name or a setting is unknown, or a value is not a number.
    """
    name, settings = plugins.parse(text)
    if name not in REFERENCE_PREDICTORS:
        raise plugins.unknown_name_error("predictor", name, list(REFERENCE_PREDICTORS))
    build = REFERENCE_PREDICTORS[name].build
    setting_names = list(inspect.signature(build).parameters)
    for key, value in settings.items():
        if key not in setting_names:
            raise plugins.unknown_name_error(f"setting of the predictor '{name}' named", key, setting_names)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadInput(f"the setting '{key}' of the predictor '{name}' must be a number, not {value!r}")
    return partial(build, **settings)
