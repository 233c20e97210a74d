"""How a branch learns a training example: the updates of `ontogeny lm evaluate --online` on the tokens of its text.

Learning is deterministic: equal weights, scratch and texts give bitwise equal results, so that versions lost in a
crash can be recomputed. This module does not depend on branches, the journal or keys.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int32

from ontogeny import trees
from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.errors import BadInput
from ontogeny.lm import corpus, online, online_learner
from ontogeny.lm.adapters import AdaptedWeights, merge_adapters
from ontogeny.lm.evaluation import token_bytes
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.online_learner import OnlineConfig, PretrainedWeights
from ontogeny.runs.folder import library_versions
from ontogeny.server.learning.acceptance import NUM_WINDOWS, Pause, do_not_pause, held_out_loss, text_nats
from ontogeny.server.processes.identity import EARLIER_PROGRAM
from ontogeny.types import Weights

MAX_CONTEXT = 512  # of a model that came without its training texts
REHEARSAL_SEED = 0  # the windows depend on this seed and on the branch's number of steps


class BranchLearner(NamedTuple):
    """The pure functions and constants that a branch needs to learn."""

    trained_weights: TransformerWeights
    init: Callable[[], Weights]  # content and scratch of version 0
    full_weights: Callable[[Any], TransformerWeights]  # content -> the weights that are scored and tested
    serve: Callable[[Any], AdaptedWeights]  # content -> the weights that answer requests
    encode: Callable[[str], np.ndarray]  # text -> tokens
    chunk_size: int  # tokens of an update chunk
    learn: Callable[[Weights, np.ndarray, range, Pause], Weights]  # the weights after these update chunks of a text
    score: Callable[[TransformerWeights, np.ndarray, Pause], float]  # nats of all tokens of a text but the first
    count_bytes: Callable[[np.ndarray], int]  # of all tokens of a text but the first
    held_out_loss: Callable[[TransformerWeights, Pause], float]  # nats per token
    trained_loss: float  # the held-out loss of the trained weights
    digest: str  # of everything that an update depends on, apart from the machine and the packages
    earlier_digest: str | None = None  # the digest by an earlier version of ontogeny with the installed packages


class BranchScratch(NamedTuple):
    """The part of the weights that `full_weights` does not read."""

    moments: Any
    num_steps: Int32[Array, ""]  # taken by this branch


def build(
    model: LanguageModel,
    online_config: OnlineConfig,
    reference: Sequence[Path] = (),
    max_context: int = MAX_CONTEXT,
    *,
    applies_adapters: bool = False,
) -> BranchLearner:
    """Builds the learner of a model.

    Args:
        model: A model that was trained by `ontogeny lm train`, with its texts, or one that came without them.
        online_config: How the weights are updated.
        reference: For a model without its training texts: files of text like them, for rehearsal and for the
            acceptance test.
        max_context: How many tokens before a token such a model learns with at most.
        applies_adapters: Whether the engine that answers computes with the trained weights and an adapter, so that
            branches with adapters need no weights of their own.

    Raises:
        BadInput: The model has neither training texts nor a reference, or the settings do not suit it.
    """
    if model.run is not None:
        config, texts = model.config, corpus.load_corpus(model.run)
    elif reference:
        config = model.config._replace(context_length=min(model.config.context_length, max_context))
        texts = corpus.tokenize_files(reference, model.tokenizer, config.context_length)
    else:
        raise BadInput(
            "this model came without its training texts, which rehearsal and the acceptance test need; name text like "
            "it with --reference-text FILE, or begin a run with `ontogeny lm train FILE --from FOLDER`"
        )
    learner = online_learner.build(config, online_config)
    windows = corpus.spaced_windows(texts.held_out, config.context_length, NUM_WINDOWS)
    pretrained = online.pretrained_weights(model, online_config)

    def init() -> Weights:
        content, moments = learner.init(pretrained)
        return Weights(content, BranchScratch(moments, jnp.int32(0)))

    def learn(weights: Weights, tokens: np.ndarray, chunks: range, pause: Pause = do_not_pause) -> Weights:
        for number in chunks:
            key, start = (REHEARSAL_SEED, int(weights.scratch.num_steps)), number * online_config.chunk_size
            chunk = online.read_chunk(tokens, start, online_config, config.context_length, texts.training, key)
            weights = jax.block_until_ready(_update(config, online_config, pretrained, weights, *chunk))
            pause()
        return weights

    def full_weights(content: Any) -> TransformerWeights:
        return merge_adapters(model.weights, content) if online_config.adapter_rank else content

    def serve(content: Any) -> AdaptedWeights:
        if applies_adapters and online_config.adapter_rank:
            return AdaptedWeights(model.weights, content)
        return AdaptedWeights(full_weights(content))

    def score(weights: TransformerWeights, tokens: np.ndarray, pause: Pause = do_not_pause) -> float:
        return text_nats(config, weights, tokens, online_config.chunk_size, pause)

    def count_bytes(tokens: np.ndarray) -> int:
        return int(token_bytes(model, tokens[1:]).sum())

    def loss(weights: TransformerWeights, pause: Pause = do_not_pause) -> float:
        return held_out_loss(config, weights, windows, pause)

    encode = model.tokenizer.encode  # without an end token in front, like the prompts of requests
    describe = partial(_digest, model.tokenizer.as_json(), (texts.training, windows))
    digest = describe(_settings(config, online_config))
    earlier_digest = describe(_earlier_settings(config, online_config, pretrained))
    return BranchLearner(
        model.weights, init, full_weights, serve, encode, online_config.chunk_size, learn, score, count_bytes, loss,
        loss(model.weights), digest, earlier_digest,
    )  # fmt: skip


def _settings(config: TransformerConfig, online_config: OnlineConfig) -> dict[str, Any]:
    """The settings that an update depends on.

    A setting that is off, as it is by default, is left out, so that later versions of ontogeny can add settings.
    """
    defaults = {name: field.default for name, field in OnlineConfig.model_fields.items()}
    return {
        "online_config": _omit_unused(online_config.model_dump(), defaults),
        "config": _omit_unused(config._asdict(), TransformerConfig._field_defaults),
    }


def _omit_unused(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that are None, False, 0 or empty by default and have this default."""
    return {
        name: setting
        for name, setting in settings.items()
        if setting or name not in defaults or (type(setting), setting) != (type(defaults[name]), defaults[name])
    }


def _earlier_settings(
    config: TransformerConfig, online_config: OnlineConfig, pretrained: PretrainedWeights
) -> dict[str, Any]:
    """The settings and versions whose digest ontogeny 0.1.0 recorded, before versions of weights named the packages."""
    squares = pretrained.squared_gradients
    versions = library_versions() | {"ontogeny": EARLIER_PROGRAM}
    return {
        "online_config": online_config.model_dump(),
        "config": config._asdict(),
        "versions": {name: version for name, version in versions.items() if name != "devices"},
        "squared_gradients": None if squares is None else trees.digest(squares),
    }


def _digest(tokenizer: str, texts: tuple[np.ndarray, ...], settings: dict[str, Any]) -> str:
    """The digest of settings, of the tokens of texts and of the tokenizer as JSON."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for tokens in texts:
        digest.update(hashlib.sha256(np.ascontiguousarray(tokens).tobytes()).digest())
    digest.update(tokenizer.encode())
    return digest.hexdigest()


@partial(jax.jit, static_argnums=(0, 1))
def _update(
    config: TransformerConfig,
    online_config: OnlineConfig,
    pretrained: PretrainedWeights,
    weights: Weights,
    window: Int32[Array, "C1"],
    num_read: Int32[Array, ""],
    rehearsal: Int32[Array, "B C1"],
) -> Weights:
    """Takes one learning step on a chunk of text."""
    learner = online_learner.build(config, online_config)
    optimized = Weights(weights.content, weights.scratch.moments)
    (content, moments), _ = learner.update(pretrained, optimized, window, num_read, rehearsal)
    return Weights(content, BranchScratch(moments, weights.scratch.num_steps + 1))
