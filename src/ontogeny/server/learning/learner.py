"""How a line learns from a contribution: `language.learner` on its tokens, block by block, and what the gate reads.

The learner is the one of `evaluate --online`; here it meets texts, and is a value that lines can hold. Deterministic:
the same weights, scratch and text give the same bits, so that what a crash took can be learned again. Knows nothing of
lines, journals and keys. C context, B windows of rehearsal, N windows.
"""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int32

from ontogeny import trees
from ontogeny.content import transformer
from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.errors import BadInput
from ontogeny.lm import corpus, online, online_learner
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.online_learner import OnlineConfig, PretrainedWeights
from ontogeny.runs.folder import library_versions
from ontogeny.types import Weights

HELD_OUT = 64  # windows that the gate looks at
AT_A_TIME = 8  # of them
SEED = 0  # of the rehearsal: which windows is decided by a line's own count of steps

Between = Callable[[], None]  # called between pieces of work, and may take its time, so that others come to theirs


class Learner(NamedTuple):
    """What a line needs: its first weights, how they change, what the gate reads."""

    origin: TransformerWeights  # the trained weights
    birth: Callable[[], Weights]
    model: Callable[[Any], TransformerWeights]  # content -> the weights that answer
    learn: Callable[[Weights, str, Between], Weights]  # one contribution; changes weights and scratch
    held_out: Callable[[TransformerWeights, Between], float]  # nats per token of text that was fixed at the start
    trained: float  # the trained weights' own
    digest: str  # of all that decides how is learned


class Scratch(NamedTuple):
    """What survives beside the content."""

    moments: Any
    steps: Int32[Array, ""]  # taken by this line, which the rehearsal is drawn by


def build(model: LanguageModel, plan: OnlineConfig | None = None) -> Learner:
    """A learner from a model that was trained here; `BadInput` where it was not."""
    if model.run is None:
        raise BadInput(
            "this model came without the texts that it was trained on, which a gate and rehearsal need: "
            "online learning is for runs of `ontogeny train text`"
        )
    config, texts = model.config, corpus.load(model.run)
    plan = online_learner.checked(plan or OnlineConfig(), config.context_length)
    rehearsed, gate = texts.training, corpus.spaced_windows(texts.held_out, config.context_length, HELD_OUT)
    trained = online.pretrained_weights(model, plan)
    pure = online_learner.build(config, plan)

    def birth() -> Weights:
        content, moments = pure.init(trained)
        return Weights(content, Scratch(moments, jnp.int32(0)))

    def learn(weights: Weights, text: str, between: Between = _at_once) -> Weights:
        tokens = model.tokenizer.encode(text)  # no end token before it: prompts, which answers follow, have none
        for start in range(0, len(tokens) - 1, plan.chunk_size):
            window, size = online.context_windows(
                tokens, np.array([start]), plan.chunk_size, config.context_length, config.context_length
            )
            again = np.zeros((0, config.context_length + 1), np.int32)
            if plan.rehearsal_batch_size:
                step, shape = int(weights.scratch.steps), (1, 1, plan.rehearsal_batch_size)
                again = corpus.sample_batches(rehearsed, SEED, step, shape, config.context_length)[0, 0]
            weights = jax.block_until_ready(_step(config, plan, trained, weights, window[0], size[0], again))
            between()
        return weights

    def held_out(content: TransformerWeights, between: Between = _at_once) -> float:
        parts = []
        for first in range(0, len(gate), AT_A_TIME):
            parts.append(np.asarray(_losses(config, content, gate[first : first + AT_A_TIME]), np.float64))
            between()
        return float(np.concatenate(parts).mean())

    def whole(content: Any) -> TransformerWeights:
        return _whole(config, plan, trained, content) if plan.adapter_rank else content

    digest = _digest(model, plan, trained, rehearsed, gate)
    return Learner(model.weights, birth, whole, learn, held_out, held_out(model.weights), digest)


def _at_once() -> None:
    pass


def _digest(
    model: LanguageModel, plan: OnlineConfig, trained: PretrainedWeights, rehearsed: np.ndarray, gate: np.ndarray
) -> str:
    about: dict[str, Any] = {"plan": plan._asdict(), "config": model.config._asdict()}
    about["versions"] = library_versions()
    about["versions"].pop("devices")
    about["squares"] = None if trained.squared_gradients is None else trees.digest(trained.squared_gradients)
    hashed = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for tokens in (rehearsed, gate):
        hashed.update(hashlib.sha256(np.ascontiguousarray(tokens).tobytes()).digest())
    hashed.update(model.tokenizer.as_json().encode())
    return hashed.hexdigest()


@partial(jax.jit, static_argnums=(0, 1))
def _step(
    config: TransformerConfig,
    plan: OnlineConfig,
    trained: PretrainedWeights,
    weights: Weights,
    window: Int32[Array, "C1"],
    size: Int32[Array, ""],
    again: Int32[Array, "B C1"],
) -> Weights:
    moved = Weights(weights.content, weights.scratch.moments)
    (content, moments), _ = online_learner.build(config, plan).update(trained, moved, window, size, again)
    return Weights(content, Scratch(moments, weights.scratch.steps + 1))


@partial(jax.jit, static_argnums=(0, 1))
def _whole(config: TransformerConfig, plan: OnlineConfig, trained: PretrainedWeights, content: Any) -> TransformerWeights:
    return online_learner.build(config, plan).model(trained, content)


@partial(jax.jit, static_argnums=0)
def _losses(config: TransformerConfig, content: TransformerWeights, windows: Int32[Array, "N C1"]) -> Float[Array, "N C"]:
    return transformer.token_losses(config, content, windows)
