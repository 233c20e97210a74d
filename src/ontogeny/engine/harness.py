"""A language model as a model of EleutherAI's `lm_eval`, in process, so that any of its tasks can be run.

    import lm_eval
    from ontogeny.engine.harness import HarnessModel

    results = lm_eval.simple_evaluate(HarnessModel("runs/mine"), tasks=["lambada_openai"])["results"]

Gao et al., "The Language Model Evaluation Harness" (PyPI lm-eval, the extra `eval`; without torch). Scores equal those
of the harness' own `hf` model on the same weights: tokenization, truncation and the token before a document follow it.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny.content import transformer
from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.engine.generate import generate_from_tokens
from ontogeny.engine.sampling import SamplingParams, derive_seeds_of_repeats
from ontogeny.errors import BadInput
from ontogeny.lm import model as models
from ontogeny.lm.model import LanguageModel

try:
    from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
except ImportError:
    raise BadInput("the harness needs lm_eval: pip install 'ontogeny[eval]'") from None

DEFAULT_MAX_TOKENS = 256  # of an answer, where a task does not say
ContextAndContinuation = tuple[list[int], list[int]]  # tokens of a context, at least one, and the tokens to score


class HarnessModel(LM):
    """A model of `lm_eval`."""

    def __init__(self, model: LanguageModel | Path | str, batch_size: int = 16) -> None:
        """Load a model.

        Args:
            model: A loaded model, or the folder of a run or of Hugging Face.
            batch_size: Sequences that are scored or continued together, at least 1.

        Raises:
            BadInput: The model's tokenizer has no token that begins a document.
        """
        super().__init__()
        self.model = model if isinstance(model, LanguageModel) else models.load(model)
        if self.model.tokenizer.start is None:
            raise BadInput("the harness needs a tokenizer with a token that begins a document")
        self.start_token, self.batch_size = self.model.tokenizer.start, batch_size

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The log-probability of each continuation after its context, and whether greedy decoding would yield it."""
        return self._score([self._tokenize_pair(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of whole texts, each as a document of its own, in windows of at most the context."""
        windows = [list(self._windows(self._tokenize(request.args[0]))) for request in requests]
        scores = iter(self._score([pair for pairs in windows for pair in pairs]))
        return [sum(next(scores)[0] for _ in pairs) for pairs in windows]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, greedy unless `do_sample` is set, up to one of the strings `until`.

        Repeats of a request, as tasks with several samples per question send them, are drawn with different seeds.
        """
        arguments = [request.args for request in requests]  # pairs of a context and its settings
        seeds = derive_seeds_of_repeats(list(map(repr, arguments)))
        texts = [""] * len(arguments)
        order = sorted(range(len(arguments)), key=lambda i: repr(arguments[i][1]))
        # A batch has equal settings.
        for _, group in groupby(order, key=lambda i: repr(arguments[i][1])):
            indices = list(group)
            for first in range(0, len(indices), self.batch_size):
                batch = indices[first : first + self.batch_size]
                contexts, settings = [arguments[i][0] for i in batch], arguments[batch[0]][1]
                answers = self._generate(contexts, settings, [seeds[i] for i in batch])
                for index, text in zip(batch, answers, strict=True):
                    texts[index] = text
        return texts

    def _tokenize(self, text: str) -> list[int]:
        """The tokens of a text as the harness expects them."""
        return self.model.tokenizer.encode(text).tolist()

    def _tokenize_pair(self, context: str, continuation: str) -> ContextAndContinuation:
        """Tokenize both as one text; spaces at the end of the context belong to the continuation."""
        if not context:
            return [self.start_token], self._tokenize(continuation)
        stripped = context.rstrip()
        prefix = self._tokenize(stripped) if stripped else []
        return (prefix or [self.start_token]), self._tokenize(context + continuation)[len(prefix) :]

    def _windows(self, tokens: list[int]) -> Iterator[ContextAndContinuation]:
        """Windows that score each token once; the last one has as much context as a whole window allows."""
        C = self.model.config.context_length
        for start in range(0, len(tokens), C):
            stop = min(start + C, len(tokens))
            yield [self.start_token, *tokens][max(stop - C, 0) : start + 1], tokens[start:stop]

    def _score(self, pairs: Sequence[ContextAndContinuation]) -> list[tuple[float, bool]]:
        """The log-probability of each continuation, and whether greedy decoding would yield it."""
        C = self.model.config.context_length
        scores: list[tuple[float, bool]] = []
        for first in range(0, len(pairs), self.batch_size):
            batch = pairs[first : first + self.batch_size]
            tokens = np.full((self.batch_size, C + 1), self.start_token, np.int32)
            for window, (context, continuation) in zip(tokens, batch, strict=False):
                if not 0 < len(continuation) <= C:
                    raise BadInput(f"a continuation has {len(continuation)} tokens, the model scores 1 to {C} at once")
                sequence = (context + continuation)[-(C + 1) :]
                window[: len(sequence)] = sequence
            logprobs, is_greedy = _score_windows(self.model.config, self.model.weights, tokens)
            for index, (context, continuation) in enumerate(batch):
                stop = min(len(context) + len(continuation), C + 1) - 1
                scored = slice(stop - len(continuation), stop)
                total = float(np.asarray(logprobs[index, scored], np.float64).sum())
                scores.append((total, bool(np.asarray(is_greedy[index, scored]).all())))
        return scores

    def _generate(self, contexts: Sequence[str], settings: dict[str, Any], seeds: Sequence[int]) -> list[str]:
        """The continuations of contexts whose requests have the same settings."""
        context_length = self.model.config.context_length
        max_tokens = int(settings.get("max_gen_toks", min(DEFAULT_MAX_TOKENS, context_length // 2)))
        stop = settings.get("until") or []
        space = context_length - max_tokens
        if space < 1:
            raise BadInput(f"an answer of {max_tokens} tokens leaves no space in a context of {context_length}")
        params = SamplingParams(temperature=0.0)
        if settings.get("do_sample", False) or settings.get("temperature", 0) > 0:
            temperature, top_p = float(settings.get("temperature", 1.0)), float(settings.get("top_p", 1.0))
            params = SamplingParams(temperature, top_p, top_k=int(settings.get("top_k", 0)))
        prompts = [self._tokenize(context)[-space:] or [self.start_token] for context in contexts]
        completions = generate_from_tokens(
            self.model, prompts, max_tokens, params, seeds=seeds, stop=[stop] if isinstance(stop, str) else list(stop)
        )
        return [completion.text for completion in completions]


@partial(jax.jit, static_argnums=0)
def _score_windows(config: TransformerConfig, weights: TransformerWeights, tokens: Array) -> tuple[Array, Array]:
    """Returns the log-probability [B, T] of each token but the first, and whether it is the most probable one."""
    logits = transformer.forward(config, weights, tokens[:, :-1])
    chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1) == tokens[:, 1:]
