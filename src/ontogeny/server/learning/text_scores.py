"""Does the model learn from its user? The score of each text of a branch under the frozen and the live weights.

Both score a text before the branch learns it. The frozen weights are the trained ones, the live weights those of the
version that was current when the learner reached the text. The saving is the difference in bits per byte, weighted by
bytes. Each score is recorded in the transaction of the decision about its text, once, with the sums over all texts of
the branch so far, so that reading the newest interval costs the same however long the journal is. A text that a branch
learns again, after an erasure or a rollback, keeps the first score: the weights of that time had not seen it.
"""

import math
import time
from typing import Literal, NamedTuple

from ontogeny.server.databases.base import Statement
from ontogeny.server.store import Store
from ontogeny.stats import RatioEstimate, RunningSums, always_valid_interval

# The variance, in squared bits, at which the interval is narrowest: that of the bits saved on about fifty texts of 200
# to 2,000 bytes, of which `benchmarks/saving_power.py` measured 4e5 to 6e7.
TYPICAL_VARIANCE = 5.0e6
LEVEL = 0.1  # error rate of the whole sequence of intervals of a branch: 0.05 for each of its ends
FOLLOWING_SUMS = (
    "UPDATE text_scores SET num_texts = num_texts - 1, total_bytes = total_bytes - ?, "
    "squared_bytes = squared_bytes - ?, total_frozen_bits = total_frozen_bits - ?, "
    "total_bits_saved = total_bits_saved - ?, squared_bits_saved = squared_bits_saved - ?, "
    "bytes_times_bits_saved = bytes_times_bits_saved - ? WHERE branch = ? AND number > ?"
)


class TextScore(NamedTuple):
    """The score of one text: its bits under both weights, without the first token, and the bytes of these tokens."""

    num_bytes: int
    frozen_bits: float
    live_bits: float


class ScoredText(NamedTuple):
    """A recorded score, with the sums over all texts of the branch up to it."""

    number: int
    branch: str
    example: int
    version: int  # of the live weights
    num_bytes: int
    frozen_bits: float
    live_bits: float
    created_at: float
    num_texts: int
    total_bytes: float
    squared_bytes: float
    total_frozen_bits: float
    total_bits_saved: float
    squared_bits_saved: float
    bytes_times_bits_saved: float

    @property
    def sums(self) -> RunningSums:
        """The sums as those of the bits saved, weighted by bytes."""
        return RunningSums(
            self.num_texts, self.total_bytes, self.squared_bytes, self.total_bits_saved, self.squared_bits_saved,
            self.bytes_times_bits_saved,
        )  # fmt: skip

    @property
    def saving(self) -> RatioEstimate:
        """The mean saving up to this text in bits per byte; each end is right at all times with probability 0.95."""
        return always_valid_interval(self.sums, TYPICAL_VARIANCE, level=LEVEL)

    @property
    def verdict(self) -> Literal["saves", "costs", "undetermined"]:
        """Whether learning saves or costs bits on average so far, as far as the interval excludes 0."""
        return "saves" if self.saving.low > 0 else "costs" if self.saving.high < 0 else "undetermined"


COLUMNS = ScoredText._fields[1:]  # the database counts
ADD_SCORE = (
    f"INSERT INTO text_scores ({', '.join(COLUMNS)}) SELECT {', '.join('?' * COLUMNS.index('num_texts'))}, "
    f"{', '.join(f'coalesce({column}, 0) + ?' for column in COLUMNS[COLUMNS.index('num_texts') :])} "
    "FROM (SELECT 1) AS once LEFT JOIN "
    "(SELECT * FROM text_scores WHERE branch = ? ORDER BY number DESC LIMIT 1) AS newest ON TRUE "
    "WHERE TRUE ON CONFLICT DO NOTHING"
)


def make_score(num_bytes: int, frozen_nats: float, live_nats: float) -> TextScore | None:
    """Converts nats to a score; None if a text has no bytes beyond its first token, or weights that are not finite."""
    if not num_bytes or not math.isfinite(frozen_nats) or not math.isfinite(live_nats):
        return None
    return TextScore(num_bytes, frozen_nats / math.log(2), live_nats / math.log(2))


def score_statement(branch: str, example: int, version: int, score: TextScore) -> Statement:
    """The statement that records the score of an example unless it has one; it adds the score to the newest sums."""
    sums = RunningSums().add(score.num_bytes, score.frozen_bits - score.live_bits)
    terms = (
        sums.num_terms, sums.weight, sums.squared_weight, score.frozen_bits, sums.amount, sums.squared_amount,
        sums.product,
    )  # fmt: skip
    return Statement(ADD_SCORE, (branch, example, version, *score, time.time(), *terms, branch))


def add_score(store: Store, branch: str, example: int, version: int, score: TextScore) -> None:
    """Records the score of an example unless it has one; must be called in a transaction."""
    store.run(score_statement(branch, example, version, score))


def erase_score(store: Store, example: int) -> None:
    """Deletes the score of an example and takes it out of all later sums; must be called in a transaction."""
    score = store.select_one(ScoredText, "SELECT * FROM text_scores WHERE example = ?", example)
    if score is None:
        return
    single = RunningSums().add(score.num_bytes, score.frozen_bits - score.live_bits)
    store.execute("DELETE FROM text_scores WHERE number = ?", score.number)
    store.execute(
        FOLLOWING_SUMS,
        single.weight, single.squared_weight, score.frozen_bits, single.amount, single.squared_amount, single.product,
        score.branch, score.number,
    )  # fmt: skip


def find_newest(store: Store, branch: str) -> ScoredText | None:
    """Returns the last score of a branch, whose sums are those over all of its texts, or None."""
    query = "SELECT * FROM text_scores WHERE branch = ? ORDER BY number DESC LIMIT 1"
    return store.select_one(ScoredText, query, branch)
