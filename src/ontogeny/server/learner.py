"""How a line learns from a contribution: steps of Adam on its tokens and, beside them, on text of its training.

Rehearsal (Robins 1995) and a decay towards the trained weights (Krause et al. 2018, arXiv 1709.07432, section 3.3)
hold the weights near to where they still know what they were trained on. A learner is deterministic: the same weights,
scratch and text give the same bits, so that what a crash took can be learned again. Knows nothing of lines, journals
and keys.
"""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Bool, Float, Int32

from ontogeny.content import transformer
from ontogeny.content.transformer import Config, Transformer
from ontogeny.errors import BadInput
from ontogeny.language.tokenizer import Tokenizer
from ontogeny.lifecycle import checkpoint
from ontogeny.types import Weights

HELD_OUT = 32  # windows that the gate looks at
AT_A_TIME = 8  # of them


Between = Callable[[], None]  # called between pieces of work, and may take its time, so that others come to theirs


class Learner(NamedTuple):
    """What a line needs: its first weights, how they change, what the gate reads. Another may stand in its place."""

    birth: Callable[[Transformer], Weights]
    learn: Callable[[Weights, str, Between], Weights]  # one contribution; changes weights and scratch
    held_out: Callable[[Transformer, Between], float]  # nats per token of text that was fixed at the start
    trained: float  # the trained weights' own
    digest: str  # of all that decides how is learned


class Settings(NamedTuple):
    learning_rate: float = 1e-3
    decay: float = 1e-3  # towards the trained weights, per step
    passes: int = 1  # through a contribution
    window: int = 64  # tokens, at most the context
    rows: int = 4  # windows of a contribution in a step
    rehearsal: int = 8  # windows of training text in a step
    clip: float = 1.0


class Scratch(NamedTuple):
    """What survives beside the content."""

    moments: Any
    steps: Int32[Array, ""]  # taken by this line, which the rehearsal is drawn by


def build(
    config: Config,
    trained: Transformer,
    tokenizer: Tokenizer,
    training: np.ndarray,
    held_out: np.ndarray,
    settings: Settings | None = None,
) -> Learner:
    """A learner from a model and two texts in tokens: one to rehearse, and one for the gate, never learned from."""
    settings = settings or Settings()
    settings = settings._replace(window=min(settings.window, config.context))
    T = settings.window
    for what, tokens in (("to rehearse", training), ("held out", held_out)):
        if len(tokens) < T + 1:
            raise BadInput(
                f"the text {what} has {len(tokens)} tokens, less than one window of {T} and the one after it"
            )
    starts = np.linspace(0, len(held_out) - T - 1, HELD_OUT).round().astype(np.int64)
    gate = held_out[starts[:, None] + np.arange(T + 1)].astype(np.int32)

    def birth(content: Transformer) -> Weights:
        moments = _optimizer(settings).init(content)  # type: ignore[arg-type]
        return Weights(content, Scratch(moments, jnp.int32(0)))

    def learn(weights: Weights, text: str, between: Between = _at_once) -> Weights:
        for tokens, count in _windows(tokenizer, text, settings):
            step = int(weights.scratch.steps)
            draw = np.random.Generator(np.random.Philox(key=[0, step]))
            places = draw.integers(0, len(training) - T, settings.rehearsal)
            rehearsed = training[places[:, None] + np.arange(T + 1)].astype(np.int32)
            weights = jax.block_until_ready(_step(config, settings, trained, weights, tokens, count, rehearsed))
            between()
        return weights

    def loss(content: Transformer, between: Between = _at_once) -> float:
        parts = []
        for first in range(0, HELD_OUT, AT_A_TIME):
            parts.append(np.asarray(_losses(config, content, gate[first : first + AT_A_TIME]), np.float64))
            between()
        return float(np.concatenate(parts).mean())

    about = {"settings": settings._asdict(), "config": config._asdict(), "versions": checkpoint.versions()}
    about["versions"].pop("devices")
    hashed = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for tokens in (training, gate):
        hashed.update(hashlib.sha256(np.ascontiguousarray(tokens, np.int32).tobytes()).digest())
    hashed.update(tokenizer.as_json().encode())
    return Learner(birth, learn, loss, loss(trained), hashed.hexdigest())


def _at_once() -> None:
    pass


def _windows(tokenizer: Tokenizer, text: str, settings: Settings):
    """Steps' worth of a contribution: [rows, window + 1] tokens, and which of the predictions count."""
    tokens = tokenizer.encode(text)
    if tokenizer.end is not None:
        tokens = np.concatenate([[tokenizer.end], tokens]).astype(np.int32)
    T, R = settings.window, settings.rows
    predictions = max(len(tokens) - 1, 0)
    count = -(-predictions // T)
    padded = np.zeros(count * T + 1, np.int32)
    padded[: len(tokens)] = tokens[: count * T + 1]
    rows = padded[(np.arange(count) * T)[:, None] + np.arange(T + 1)]
    counts = (np.arange(count * T) < predictions).reshape(count, T)
    for _ in range(settings.passes):
        for first in range(0, count, R):
            part, mask = rows[first : first + R], counts[first : first + R]
            missing = R - len(part)
            yield (
                np.concatenate([part, np.zeros((missing, T + 1), np.int32)]),
                np.concatenate([mask, np.zeros((missing, T), bool)]),
            )


def _optimizer(settings: Settings) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(settings.clip), optax.adam(settings.learning_rate))


@partial(jax.jit, static_argnums=(0, 1))
def _step(
    config: Config,
    settings: Settings,
    trained: Transformer,
    weights: Weights,
    tokens: Int32[Array, "R T1"],
    counts: Bool[Array, "R T"],
    rehearsed: Int32[Array, "N T1"],
) -> Weights:
    def loss(content: Transformer) -> Float[Array, ""]:
        both = transformer.losses(config, content, jnp.concatenate([tokens, rehearsed]))
        new = (both[: settings.rows] * counts).sum() / jnp.maximum(counts.sum(), 1)
        return new + both[settings.rows :].mean()

    gradient = jax.grad(loss)(weights.content)
    change, moments = _optimizer(settings).update(gradient, weights.scratch.moments, weights.content)
    content = optax.apply_updates(weights.content, change)
    content = jax.tree.map(lambda new, old: new + settings.decay * (old - new), content, trained)
    return Weights(content, Scratch(moments, weights.scratch.steps + 1))


@partial(jax.jit, static_argnums=0)
def _losses(config: Config, content: Transformer, windows: Int32[Array, "N T1"]) -> Float[Array, "N T"]:
    return transformer.losses(config, content, windows)
