"""A batch of sequences that the kernels of `ontogeny.kernels` continue; `generate` uses it where they are active."""

from collections.abc import Sequence

import numpy as np

from ontogeny.engine.sampling import SamplingParams, sample_token
from ontogeny.kernels import transformer
from ontogeny.kernels.packing import pack
from ontogeny.lm.model import LanguageModel

MAX_PREFILL_TOKENS = 64  # of one sequence in one step


class KernelBatch:
    """Sequences that are generated together; the tokens of each depend on its own prompt and seed alone.

    Args:
        model: As `ontogeny.load` returns it.
        prompts: Each has at least one token and fewer than the context length.
        max_tokens: The most tokens that each sequence generates.
        sampling_params: Temperature, top-p and top-k of all sequences.
        seeds: One per prompt.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        sampling_params: SamplingParams,
        seeds: Sequence[int],
    ) -> None:
        self._model, self._packed = model, pack(model.config, model.weights)
        self._capacity = min(model.config.context_length, max(map(len, prompts)) + max_tokens)
        self._cache = transformer.init_cache(model.config, len(prompts), self._capacity)
        self._tokens = [list(prompt) for prompt in prompts]
        self._prompt_lengths = [len(prompt) for prompt in prompts]
        self._unprocessed = [
            prompt if len(prompt) <= self._capacity else self._last_half(prompt) for prompt in self._tokens
        ]
        self._lengths = [0] * len(prompts)
        self._num_remaining = [max_tokens] * len(prompts)
        self._params = [sampling_params._replace(seed=seed) for seed in seeds]

    @property
    def is_active(self) -> bool:
        """Whether any sequence can be continued."""
        return any(self._num_remaining)

    def finish(self, index: int) -> None:
        """End one sequence."""
        self._num_remaining[index] = 0

    def advance(self, num_steps: int) -> list[list[int]]:
        """Generate up to this number of tokens of each sequence that is not finished, and return them."""
        before = [len(tokens) for tokens in self._tokens]
        for _ in range(num_steps):
            if active := [i for i, count in enumerate(self._num_remaining) if count]:
                self._step(active)
        return [tokens[first:] for tokens, first in zip(self._tokens, before, strict=True)]

    def _last_half(self, tokens: list[int]) -> list[int]:
        """The last tokens of a sequence, which fill half of the context."""
        return tokens[-max(self._model.config.context_length // 2, 1) :]

    def _step(self, active: list[int]) -> None:
        """Generate one token of each active sequence."""
        end_tokens = self._model.tokenizer.end_tokens
        for index in active:
            if self._lengths[index] >= self._capacity:  # restarts from the second half of its tokens
                self._unprocessed[index], self._lengths[index] = self._last_half(self._tokens[index]), 0
        while long := [i for i in active if len(self._unprocessed[i]) > MAX_PREFILL_TOKENS]:
            self._process(long, "none")
        logits = self._process(active, "last")[:, : self._model.tokenizer.size]
        if self._params[0].temperature == 0:
            chosen = logits.argmax(axis=-1).tolist()
        else:
            positions = [len(self._tokens[i]) - self._prompt_lengths[i] for i in active]
            chosen = [
                sample_token(of_sequence, self._params[i], position)
                for of_sequence, i, position in zip(logits, active, positions, strict=True)
            ]
        for index, token in zip(active, chosen, strict=True):
            self._tokens[index].append(token)
            self._unprocessed[index] = [token]
            self._num_remaining[index] = 0 if token in end_tokens else self._num_remaining[index] - 1

    def _process(self, indices: list[int], logits: str) -> np.ndarray:
        """Process the next tokens of some sequences and return the logits."""
        tokens = [self._unprocessed[i][:MAX_PREFILL_TOKENS] for i in indices]
        lengths = [self._lengths[i] for i in indices]
        computed = transformer.extend(self._packed, self._cache, indices, lengths, tokens, logits)
        for index, new in zip(indices, tokens, strict=True):
            self._lengths[index] += len(new)
            self._unprocessed[index] = self._unprocessed[index][len(new) :]
        return computed
