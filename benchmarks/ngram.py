"""An adaptive n-gram model: the control that every saving of online learning has to beat.

Interpolated as by Witten and Bell 1991 (IEEE Transactions on Information Theory 37:1085, method C): the estimate after
a context of k tokens is (c(w) + u p_{k-1}(w)) / (c + u), where c tokens, u of them distinct, have followed the context;
without context all V tokens are equally probable. Counts only grow, so the model forgets nothing.
"""

from collections.abc import Sequence

import numpy as np

DEFAULT_ORDER = 5


class NgramModel:
    """The counts of n-grams of at most `order` tokens, the predicted one included."""

    def __init__(self, vocab_size: int, order: int = DEFAULT_ORDER) -> None:
        self.vocab_size, self.order = vocab_size, order
        self._totals: dict[int, int] = {}  # context -> number of tokens that have followed it
        self._distinct: dict[int, int] = {}  # context -> number of distinct tokens that have followed it
        self._counts: dict[int, int] = {}  # context and next token -> number of occurrences

    def predict(self, tokens: Sequence[int] | np.ndarray, *, learning: bool = True) -> np.ndarray:
        """Predict the tokens of a sequence one by one.

        Args:
            tokens: [T].
            learning: Whether each token is counted after it is predicted.

        Returns:
            [T], the probability of each token given those before it.
        """
        probabilities = np.empty(len(tokens))
        history: list[int] = []
        for index, token in enumerate(np.asarray(tokens).tolist()):
            contexts = self._encode_contexts(history)
            probabilities[index] = self._probability(contexts, token)
            if learning:
                self._count(contexts, token)
            history = [*history, token][-(self.order - 1) :] if self.order > 1 else []
        return probabilities

    def _encode_contexts(self, history: Sequence[int]) -> list[int]:
        """The contexts of 0, 1, ... tokens as distinct integers (numbers in base V + 1, combined with their length)."""
        contexts, code, scale = [0], 0, 1
        for length, token in enumerate(reversed(history), start=1):
            code += (token + 1) * scale
            scale *= self.vocab_size + 1
            contexts.append(code * self.order + length)
        return contexts

    def _probability(self, contexts: Sequence[int], token: int) -> float:
        probability = 1.0 / self.vocab_size
        for context in contexts:
            total = self._totals.get(context, 0)
            if not total:
                break  # longer contexts have not occurred either
            distinct = self._distinct[context]
            count = self._counts.get(context * self.vocab_size + token, 0)
            probability = (count + distinct * probability) / (total + distinct)
        return probability

    def _count(self, contexts: Sequence[int], token: int) -> None:
        for context in contexts:
            self._totals[context] = self._totals.get(context, 0) + 1
            ngram = context * self.vocab_size + token
            count = self._counts.get(ngram, 0)
            self._counts[ngram] = count + 1
            if not count:
                self._distinct[context] = self._distinct.get(context, 0) + 1


def mix_predictions(losses: np.ndarray, *other_losses: np.ndarray, switch_rate: float = 0.02) -> np.ndarray:
    """Mix predictors with weights that follow their recent losses (fixed share; Herbster and Warmuth 1998, ML 32:151).

    Args:
        losses: [T], nats of the first predictor.
        *other_losses: [T] each, nats of the other predictors.
        switch_rate: The share of weight that is redistributed at each token, 0 to 1.

    Returns:
        [T], nats of the mixture.
    """
    probabilities = np.exp(-np.stack([losses, *other_losses]))
    weights = np.full(len(probabilities), 1 / len(probabilities))
    mixture = np.empty(probabilities.shape[1])
    for index in range(probabilities.shape[1]):
        joint = weights * probabilities[:, index]
        total = joint.sum()
        mixture[index] = -np.log(total)
        weights = (1 - switch_rate) * joint / total + switch_rate / len(probabilities)
    return mixture
