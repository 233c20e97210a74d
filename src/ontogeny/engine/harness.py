"""A language model of ours as a model of EleutherAI's `lm_eval`, in process, so that any of its tasks run on it.

    import lm_eval
    from ontogeny.engine.harness import Harness

    results = lm_eval.simple_evaluate(Harness("runs/mine"), tasks=["lambada_openai"])["results"]

Gao et al., "The Language Model Evaluation Harness" (PyPI lm-eval, the extra `eval`; without torch). Scores are those of
the harness' own `hf` model on the same weights: where text is cut into tokens, what is left out where it is too long
and what stands before a document follow it.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ontogeny.content import transformer
from ontogeny.engine import generate
from ontogeny.errors import BadInput
from ontogeny.lm import model as models
from ontogeny.lm.model import LanguageModel

try:
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
except ImportError:
    raise BadInput("the harness needs lm_eval: pip install 'ontogeny[eval]'") from None

NEW = 256  # tokens of an answer, where a task does not say
Pair = tuple[list[int], list[int]]  # a context's tokens, at least one, and those that are scored after it


class Harness(LM):
    """`model` is one that was loaded, or the folder of a run or of a GPT-2."""

    def __init__(self, model: LanguageModel | Path | str, batch: int = 16) -> None:
        super().__init__()
        self.model = model if isinstance(model, LanguageModel) else models.load(model)
        if self.model.tokenizer.end is None:
            raise BadInput("the harness needs a tokenizer with an end token, after which a document is scored")
        self.end, self.batch = self.model.tokenizer.end, batch

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether it is what would be drawn greedily."""
        return self._scored([self._pair(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, each from the end token on, in windows that the context does not exceed."""
        windows = [list(self._windows(self._encoded(request.args[0]))) for request in requests]
        scored = iter(self._scored([pair for each in windows for pair in each]))
        return [sum(next(scored)[0] for _ in each) for each in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What is drawn after each context, greedily unless `do_sample` is asked for, until one of `until`."""
        asked = [request.args for request in requests]
        made = [""] * len(asked)
        order = sorted(range(len(asked)), key=lambda i: repr(asked[i][1]))
        for _, group in groupby(order, key=lambda i: repr(asked[i][1])):
            numbers = list(group)
            for at in range(0, len(numbers), self.batch):
                some = numbers[at : at + self.batch]
                for number, text in zip(some, self._drawn([asked[i][0] for i in some], asked[some[0]][1]), strict=True):
                    made[number] = text
        return made

    def _encoded(self, text: str) -> list[int]:
        return self.model.tokenizer.encode(text).tolist()

    def _pair(self, context: str, continuation: str) -> Pair:
        """Spaces at the end of a context belong to the continuation; tokens are cut as in the whole."""
        if not context:
            scored = self._encoded(continuation)
            return [self.end], scored
        bare = context.rstrip()
        before = self._encoded(bare) if bare else []
        return (before or [self.end]), self._encoded(context + continuation)[len(before) :]

    def _windows(self, tokens: list[int]) -> Iterator[Pair]:
        """Each token once, with as much before it as a last whole window allows."""
        C = self.model.config.context_length
        for at in range(0, len(tokens), C):
            stop = min(at + C, len(tokens))
            start = max(stop - C, 0)
            yield [self.end, *tokens][start : at + 1], tokens[at:stop]

    def _scored(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        C = self.model.config.context_length
        found: list[tuple[float, bool]] = []
        for at in range(0, len(pairs), self.batch):
            some = pairs[at : at + self.batch]
            tokens = np.full((self.batch, C + 1), self.end, np.int32)
            for row, (context, scored) in zip(tokens, some, strict=False):
                if not 0 < len(scored) <= C:
                    raise BadInput(f"a continuation has {len(scored)} tokens, the model scores 1 to {C} at once")
                whole = (context + scored)[-(C + 1) :]
                row[: len(whole)] = whole
            chances, likeliest = _judged(self.model.config, self.model.weights, tokens)
            for row, (context, scored) in enumerate(some):
                stop = min(len(context) + len(scored), C + 1) - 1
                here = slice(stop - len(scored), stop)
                sure = bool(np.asarray(likeliest[row, here]).all())
                found.append((float(np.asarray(chances[row, here], np.float64).sum()), sure))
        return found

    def _drawn(self, contexts: Sequence[str], settings: dict[str, Any]) -> list[str]:
        most = int(settings.get("max_gen_toks", min(NEW, self.model.config.context_length // 2)))
        until = settings.get("until") or []
        until = [until] if isinstance(until, str) else list(until)
        room = self.model.config.context_length - most
        if room < 1:
            raise BadInput(f"an answer of {most} tokens leaves no room in a context of {self.model.config.context_length}")
        sampled = settings.get("do_sample", False) or settings.get("temperature", 0) > 0
        sampling = generate.Sampling(
            float(settings.get("temperature", 1.0)) if sampled else 0.0,
            int(settings.get("top_k", 0)) if sampled else 0,
            float(settings.get("top_p", 1.0)) if sampled else 1.0,
        )
        texts = [self._encoded(context)[-room:] or [self.end] for context in contexts]
        return [each.text for each in generate.generate_tokens(self.model, texts, most, sampling, stop=until)]


@partial(jax.jit, static_argnums=0)
def _judged(config: transformer.TransformerConfig, weights: transformer.TransformerWeights, tokens: jax.Array) -> tuple[Any, Any]:
    """Of windows [B, T + 1]: log-probability [B, T] of each token but the first, and whether it is the likeliest."""
    logits = transformer.forward(config, weights, tokens[:, :-1])
    chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1) == tokens[:, 1:]
