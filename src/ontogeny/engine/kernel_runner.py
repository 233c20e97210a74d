"""Steps of an engine by the kernels of `ontogeny.kernels`: any tokens of any sequences, in one pass."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.engine.kernel_sampling import sample_tokens
from ontogeny.engine.requests import CachedLayers, SequenceState
from ontogeny.engine.runners import ALL, LAST, NO_LOGITS, TokenDraw
from ontogeny.engine.sampling import TokenLogprobs
from ontogeny.errors import BadInput
from ontogeny.kernels import transformer
from ontogeny.kernels.cache import PAGE, SequenceCache, page_bytes
from ontogeny.kernels.packing import PackedAdapter, pack, pack_adapter
from ontogeny.lm.adapters import make_sample_adapters

MAX_PREFILL_ALONE = 128  # tokens of prompts in a step that decodes nothing
MAX_PREFILL_BESIDE_DECODE = 64
MAX_LOGITS = 1 << 23  # of one chunk of a scored prompt: 32 MiB


class KernelRunner:
    """See `runners.Runner`."""

    prefix_chunk = 32
    shares_any_length = True
    max_num_seqs: int | None = None
    applies_adapters = True

    def __init__(self, config: TransformerConfig, max_length: int) -> None:
        self.config, self.max_length = config, max_length
        self._workspace = transformer.Workspace()

    def check_batch_invariance(self, weights: TransformerWeights) -> None:
        """Compile the kernels and compare the logits of a sequence alone with those among others, bit for bit.

        Every other sequence has an adapter.
        """
        num_sequences, num_tokens = 9, min(17, self.max_length)
        tokens, packed = np.arange(num_tokens) % self.config.vocab_size, pack(self.config, weights)
        pair = [None, PackedAdapter(self.config, make_sample_adapters(weights))]
        together = [SequenceCache(self.config) for _ in range(num_sequences)]
        separate = [transformer.extend(packed, [SequenceCache(self.config)], [tokens], adapters=[a]) for a in pair]
        adapters = [pair[number % 2] for number in range(num_sequences)]
        if num_tokens > 1:
            transformer.extend(packed, together, [tokens[:-1]] * num_sequences, NO_LOGITS, adapters=adapters)
        computed = transformer.extend(packed, together, [tokens[-1:]] * num_sequences, adapters=adapters)
        if any(logits.tobytes() != separate[number % 2].tobytes() for number, logits in enumerate(computed)):
            raise BadInput(
                "on this machine the bits of an answer depend on the other answers of a step, so the server cannot "
                "keep its promise of batch invariance"
            )

    def num_bytes(self, num_tokens: int) -> int:
        """The pages of a sequence."""
        return -(-num_tokens // PAGE) * page_bytes(self.config)

    def max_prefill_tokens(self, num_decoded: int) -> int:
        """See `Runner`."""
        return MAX_PREFILL_BESIDE_DECODE if num_decoded else MAX_PREFILL_ALONE

    def chunk_size(self, sequence: SequenceState, limit: int) -> int:
        """See `Runner`. The logits of all tokens of a chunk that is scored are in memory at the same time."""
        if sequence.request.score_prompt and not sequence.is_scored:
            limit = min(limit, max(MAX_LOGITS // self.config.vocab_size, 1))
        return min(len(sequence.unprocessed), limit)

    def run(
        self,
        weights: TransformerWeights,
        sequences: Sequence[SequenceState],
        tokens: Sequence[Sequence[int]],
        needs: Sequence[str],
    ) -> list[Float[np.ndarray, "_ V"]]:
        """See `Runner`."""
        for sequence in sequences:
            if sequence.cache is None:
                sequence.cache = self._create(sequence.layers)
        caches = [sequence.cache for sequence in sequences]
        kinds = LAST if all(need == LAST for need in needs) else needs
        leader = sequences[0]
        if leader.packed is None:
            leader.packed = pack(self.config, weights)
        adapters = [self._pack_adapter(sequence) for sequence in sequences]
        logits = transformer.extend(leader.packed, caches, tokens, kinds, self._workspace, adapters)
        of_sequences, first = list[np.ndarray](), 0
        for need, new in zip(needs, tokens, strict=True):
            count = {LAST: 1, ALL: len(new), NO_LOGITS: 0}[need]
            of_sequences.append(logits[first : first + count])
            first += count
        return of_sequences

    def sample(self, draws: Sequence[TokenDraw]) -> list[tuple[int, TokenLogprobs | None]]:
        """See `Runner`."""
        return sample_tokens(draws, self._workspace)

    def fork(self, cache: SequenceCache, length: int) -> SequenceCache:
        """See `Runner`."""
        return cache.fork(length)

    def share(self, sequence: SequenceState) -> tuple[SequenceCache, Sequence[np.ndarray]]:
        """See `Runner`. What the pages have of the first tokens never changes."""
        cache = SequenceCache(self.config, sequence.cache.pages, sequence.cache.length)
        return cache, cache.pages

    def to_layers(self, sequence: SequenceState, length: int) -> CachedLayers:
        """See `Runner`."""
        return CachedLayers(*sequence.cache.to_layers(length))

    def suspend(self, sequence: SequenceState) -> None:
        """See `Runner`. The pages of a sequence belong to it alone."""

    def release(self, sequence: SequenceState) -> None:
        """See `Runner`."""
        sequence.cache = None

    def _pack_adapter(self, sequence: SequenceState) -> PackedAdapter | None:
        """The adapter of a sequence as the kernels read it."""
        adapter = sequence.request.adapter
        if adapter is not None and sequence.packed_adapter is None:
            sequence.packed_adapter = pack_adapter(self.config, adapter)
        return sequence.packed_adapter

    def _create(self, layers: CachedLayers | None) -> SequenceCache:
        """A new cache, of keys and values that were computed before if there are any."""
        if layers is None:
            return SequenceCache(self.config)
        return SequenceCache.from_layers(self.config, *layers)
