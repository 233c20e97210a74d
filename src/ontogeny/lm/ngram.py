"""Counts of what follows what: an adaptive n-gram, the control that every saving of online reading has to beat.

Interpolated as by Witten and Bell 1991 (IEEE Transactions on Information Theory 37:1085, method C): the estimate after
a context of k tokens has c(w) + u p_{k-1}(w) in c + u, where c tokens, u different ones, have followed it; with no
context left all V are equal. Counts only grow, so nothing is forgotten.
"""

from collections.abc import Sequence

import numpy as np

ORDER = 5


class Counts:
    """The counts of an n-gram of `order` tokens, the predicted one among them."""

    def __init__(self, vocabulary: int, order: int = ORDER) -> None:
        self.vocabulary, self.order = vocabulary, order
        self._followed: dict[int, int] = {}  # context -> how many tokens have followed it
        self._different: dict[int, int] = {}  # context -> how many different ones
        self._seen: dict[int, int] = {}  # context with its next token -> how often

    def read(self, tokens: Sequence[int] | np.ndarray, *, learning: bool = True) -> np.ndarray:
        """The probability of each token [T], given those before it and the counts then; each is counted afterwards."""
        V = self.vocabulary
        followed, different, seen = self._followed, self._different, self._seen
        found = np.empty(len(tokens))
        past: list[int] = []
        for at, token in enumerate(np.asarray(tokens).tolist()):
            # Contexts as numbers in base V + 1, of none, one, ... order - 1 tokens; shorter ones have leading zeros.
            contexts, code, scale = [0], 0, 1
            for before in reversed(past):
                code += (before + 1) * scale
                scale *= V + 1
                contexts.append(code)
            p = 1.0 / V
            for length, context in enumerate(contexts):
                place = context * self.order + length
                total = followed.get(place, 0)
                if not total:
                    break  # longer contexts have not been met either
                kinds = different[place]
                p = (seen.get(place * V + token, 0) + kinds * p) / (total + kinds)
            found[at] = p
            if learning:
                for length, context in enumerate(contexts):
                    place = context * self.order + length
                    followed[place] = followed.get(place, 0) + 1
                    times = seen.get(place * V + token, 0)
                    seen[place * V + token] = times + 1
                    if not times:
                        different[place] = different.get(place, 0) + 1
            past = [*past, token][-(self.order - 1) :] if self.order > 1 else []
        return found


def mixed(nats: np.ndarray, *others: np.ndarray, switch: float = 0.02) -> np.ndarray:
    """Nats [T] of a mixture whose weights follow what predicted well so far: fixed share (Herbster and Warmuth 1998,
    Machine Learning 32:151). `switch` is the share of weight that is dealt out anew at each token."""
    chances = np.exp(-np.stack([nats, *others]))
    weights = np.full(len(chances), 1 / len(chances))
    found = np.empty(chances.shape[1])
    for at in range(chances.shape[1]):
        joint = weights * chances[:, at]
        total = joint.sum()
        found[at] = -np.log(total)
        weights = (1 - switch) * joint / total + switch / len(chances)
    return found
