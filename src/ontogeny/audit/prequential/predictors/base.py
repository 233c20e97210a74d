"""What predictors share: counts of what followed what. T tokens, V in the vocabulary."""

from collections.abc import Callable

import numpy as np

Predictor = Callable[[np.ndarray], np.ndarray]  # tokens [T] -> log-probabilities [T, V], a row for each token

HONEST = {check: "pass" for check in ("normalised", "causal", "cut", "repeats", "secret")}


def counts_of(tokens: np.ndarray, vocabulary: int) -> np.ndarray:
    """[V + 1, V] how often each token followed each other one; the last row is of the stream's beginning."""
    counts = np.zeros((vocabulary + 1, vocabulary))
    np.add.at(counts, (_contexts(tokens, vocabulary), tokens), 1.0)
    return counts


def counted(tokens: np.ndarray, vocabulary: int, before: np.ndarray | None = None, trust: float = 2.0) -> np.ndarray:
    """Log-probabilities [T, V] from the counts before each token, beginning with those of `before` [V + 1, V].

    What followed the last token, beside `trust` observations' worth of what was frequent in general.
    """
    T, V = len(tokens), vocabulary
    earlier = np.zeros((V + 1, V)) if before is None else before
    contexts, seen = _contexts(tokens, V), np.eye(V)[tokens]
    anywhere = earlier.sum(axis=0) + np.cumsum(seen, axis=0) - seen
    same = np.tril(contexts[:, None] == contexts[None, :], -1)  # [T, T] an earlier token in the same context
    here = earlier[contexts] + same @ seen
    general = (anywhere + 0.5) / (anywhere.sum(axis=1, keepdims=True) + 0.5 * V)
    return np.log((here + trust * general) / (here.sum(axis=1, keepdims=True) + trust)).reshape(T, V)


def mixed(log_probabilities: np.ndarray, tokens: np.ndarray, weight: np.ndarray | float) -> np.ndarray:
    """Rows that put `weight` ([T] or one) on the very token that they are asked about: a leak."""
    told = np.broadcast_to(np.asarray(weight, float), (len(tokens),))[:, None]
    return np.log((1 - told) * np.exp(log_probabilities) + told * np.eye(log_probabilities.shape[1])[tokens])


def _contexts(tokens: np.ndarray, vocabulary: int) -> np.ndarray:
    return np.concatenate([[vocabulary], tokens[:-1]]).astype(int)[: len(tokens)]
