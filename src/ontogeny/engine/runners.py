"""What computes the steps of an engine: kernels of numba on a CPU, or compiled programs of XLA.

A runner owns the caches of sequences: it creates, extends, forks and releases what `SequenceState.cache` names.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from ontogeny.content.transformer import TransformerWeights
from ontogeny.engine.requests import CachedLayers, SequenceState
from ontogeny.engine.sampling import SamplingParams, TokenLogprobs

LAST, ALL, NO_LOGITS = "last", "all", "none"  # the tokens of a chunk after which logits are needed


class TokenDraw(NamedTuple):
    """The next token of a sequence, which is drawn, or which is given and has only to be scored.

    Attributes:
        logits: Those of the model.
        num_candidates: Only the tokens below this number are drawn; None for all.
        adjusted: Logits of the candidates from which the token is drawn instead.
        params: How it is drawn.
        position: The number of the token in its answer.
        num_top: How many of the most probable tokens to list; None for no log-probabilities.
        token: The token, if it is given.
    """

    logits: Float[np.ndarray, "V"]
    num_candidates: int | None
    adjusted: Float[np.ndarray, "_"] | None
    params: SamplingParams
    position: int
    num_top: int | None
    token: int | None = None


@runtime_checkable
class Runner(Protocol):
    """Computes logits and caches; the bits of a sequence depend on its own tokens alone.

    Attributes:
        max_length: The most tokens that the cache of a sequence can hold.
        prefix_chunk: Prefixes of prompts are looked up by hashes of so many tokens at a time.
        shares_any_length: Whether a sequence may continue from any number of cached tokens, or from multiples of
            `prefix_chunk` alone.
        max_num_seqs: The most sequences that may run; None for no limit but memory.
        applies_adapters: Whether sequences with the same weights may have different adapters.
    """

    max_length: int
    prefix_chunk: int
    shares_any_length: bool
    max_num_seqs: int | None
    applies_adapters: bool

    def check_batch_invariance(self, weights: TransformerWeights) -> None:
        """Compile everything and test that sequences do not influence each other; raises `BadInput` if they do."""
        ...

    def num_bytes(self, num_tokens: int) -> int:
        """The memory of a sequence with so many tokens, beyond what the runner has reserved for all."""
        ...

    def max_prefill_tokens(self, num_decoded: int) -> int:
        """The most tokens of prompts in a step that also decodes so many sequences."""
        ...

    def chunk_size(self, sequence: SequenceState, limit: int) -> int:
        """How many unprocessed tokens of a sequence to process next; at most `limit`, possibly 0."""
        ...

    def run(
        self,
        weights: TransformerWeights,
        sequences: Sequence[SequenceState],
        tokens: Sequence[Sequence[int]],
        needs: Sequence[str],
    ) -> list[Float[np.ndarray, "_ V"]]:
        """Process tokens of sequences with these weights and the adapter of each, and extend their caches.

        Args:
            weights: The weights of all these sequences.
            sequences: Their `cache_length` does not change.
            tokens: The next tokens of each.
            needs: `LAST`, `ALL` or `NO_LOGITS` for each.

        Returns:
            The logits of each sequence that needs any: those after the last token or after all tokens.
        """
        ...

    def sample(self, draws: Sequence[TokenDraw]) -> list[tuple[int, TokenLogprobs | None]]:
        """Draw tokens, and compute log-probabilities where they are needed; see `engine.sampling`."""
        ...

    def fork(self, cache: Any, length: int) -> Any:
        """Return a cache of the first tokens of another; what `share` returned does not change."""
        ...

    def share(self, sequence: SequenceState) -> tuple[Any, Sequence[Any]] | None:
        """Return the present content of a sequence's cache, for `fork`, and its arrays; None if it cannot be shared."""
        ...

    def to_layers(self, sequence: SequenceState, length: int) -> CachedLayers:
        """Copy the keys and values of the first tokens of a sequence."""
        ...

    def suspend(self, sequence: SequenceState) -> None:
        """Free what only running sequences need; the cache of the sequence stays."""
        ...

    def release(self, sequence: SequenceState) -> None:
        """Free the cache of a sequence; has no effect where there is none."""
        ...
