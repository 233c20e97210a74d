"""Continuing text: a batch of prompts of unequal length, a key-value cache, the whole loop in one program.

A row is a prompt and what follows it. It reads its prompt but for the last token in chunks, and then, step by step,
its last token, and draws the next. What a row draws depends on its own tokens, its own seed and the shape of the batch
(rows, capacity, chunk), and not on what the other rows hold: bit for bit, whichever row it is.
Letters: R rows, K tokens of a chunk, V vocabulary, N draws in one dispatch.
"""

import codecs
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny.content import transformer
from ontogeny.content.transformer import KVCache, TransformerConfig, TransformerWeights
from ontogeny.errors import BadInput
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.tokenizer import Tokenizer
from ontogeny.types import Key

CHUNK = 32  # K, of a prompt
PIECE = 16  # draws between two looks at the text
ROOM = 32  # capacities are multiples of it, so that few programs are compiled


class Sampling(NamedTuple):
    """How the next token is drawn, per row or for all; temperature 0 takes the most probable one."""

    temperature: Array | float = 1.0  # [R]
    top_k: Array | int = 0  # only so many of the most probable; 0 means all
    top_p: Array | float = 1.0  # only the most probable that together have this probability


class Rows(NamedTuple):
    """A batch in the midst of being continued."""

    cache: KVCache  # what each row has read
    last: Array  # [R] int32, the token that it reads next
    left: Array  # [R] int32, how many it may still draw; 0 where a row is done, or free
    drawn: Array  # [R] int32, how many it has drawn
    key: Key  # [R]
    sampling: Sampling


class Drawn(NamedTuple):
    """What a dispatch has drawn; row r's are the first `counts[r]`."""

    tokens: Array  # [R, N] int32
    log_probability: Array  # [R, N] of each, by the model's own distribution (temperature 1, no cut)
    top: Array  # [R, N, top] int32, the most probable tokens, best first
    top_log_probability: Array  # [R, N, top]
    counts: Array  # [R] int32


class Completion(NamedTuple):
    """What followed a prompt, and why it ended: `end` (the end token), `stop` (a stop string) or `length`."""

    text: str
    tokens: tuple[int, ...]
    reason: str


def no_rows(config: TransformerConfig, rows: int, capacity: int | None = None) -> Rows:
    """A batch whose rows are all free."""
    zero = jnp.zeros(rows, jnp.int32)
    sampling = Sampling(jnp.ones(rows), zero, jnp.ones(rows))
    key = jax.random.split(jax.random.key(0), rows)
    return Rows(transformer.init_cache(config, rows, capacity), zero, zero, zero, key, sampling)


def checked(sampling: Sampling) -> Sampling:
    """The sampling itself, of single numbers; `BadInput` where nothing could be drawn by it."""
    if not 0 <= sampling.temperature <= 100:
        raise BadInput(f"the temperature lies between 0 and 100, not {sampling.temperature}")
    if not 0 <= sampling.top_k < 2**31:
        raise BadInput(f"top-k is at least 0, which means all tokens, not {sampling.top_k}")
    if not 0 < sampling.top_p <= 1:
        raise BadInput(f"top-p lies above 0 and is at most 1, not {sampling.top_p}")
    return sampling


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def read(config: TransformerConfig, weights: TransformerWeights, cache: KVCache, tokens: Array, count: Array) -> KVCache:
    """Row r reads the first `count[r]` of its tokens [R, K]."""
    return transformer.extend_cache(config, weights, cache, tokens, count)[0]


@partial(jax.jit, static_argnums=0, static_argnames=("most", "top", "end"), donate_argnums=2)
def draw(
    config: TransformerConfig,
    weights: TransformerWeights,
    rows: Rows,
    steps: Array | int,
    *,
    most: int,
    end: int,
    top: int = 0,
    read_out: Array | None = None,
) -> tuple[Rows, Drawn]:
    """Up to `steps` <= `most` = N draws for every row that has some left; one compiled loop, which ends early.

    A row is done (`left` 0) where it has drawn `end` (-1: there is none), and waits where its cache is full. `read_out`
    is `transformer.transposed_lm_head(weights)`, for who draws more than once.
    """
    R, capacity = rows.last.shape[0], rows.cache.capacity
    read_out = transformer.transposed_lm_head(weights) if read_out is None else read_out
    none = Drawn(
        jnp.zeros((R, most), jnp.int32),
        jnp.zeros((R, most)),
        jnp.zeros((R, most, top), jnp.int32),
        jnp.zeros((R, most, top)),
        jnp.zeros(R, jnp.int32),
    )

    def alive(rows: Rows) -> Array:
        return (rows.left > 0) & (rows.cache.length < capacity)

    def go_on(carry: tuple[Array, Rows, Drawn]) -> Array:
        number, rows, _ = carry
        return (number < steps) & jnp.any(alive(rows))

    def one(carry: tuple[Array, Rows, Drawn]) -> tuple[Array, Rows, Drawn]:
        number, rows, drawn = carry
        live = alive(rows)
        count = live.astype(jnp.int32)
        cache, logits = transformer.extend_cache(config, weights, rows.cache, rows.last[:, None], count, lm_head=read_out)
        token = sample(jax.vmap(jax.random.fold_in)(rows.key, rows.drawn), logits, rows.sampling)
        normal = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0] - normal
        best, names = jax.lax.top_k(logits, top) if top else (logits[:, :0], jnp.zeros((R, 0), jnp.int32))
        at = jnp.where(live, drawn.counts, most)  # beyond the end nothing is written
        row = jnp.arange(R)
        drawn = Drawn(
            drawn.tokens.at[row, at].set(token, mode="drop"),
            drawn.log_probability.at[row, at].set(chosen, mode="drop"),
            drawn.top.at[row, at].set(names, mode="drop"),
            drawn.top_log_probability.at[row, at].set(best - normal[:, None], mode="drop"),
            drawn.counts + live,
        )
        left = jnp.where(live, jnp.where(token == end, 0, rows.left - 1), rows.left)
        rows = rows._replace(
            cache=cache, last=jnp.where(live, token, rows.last), left=left, drawn=rows.drawn + live.astype(jnp.int32)
        )
        return number + 1, rows, drawn

    _, rows, drawn = jax.lax.while_loop(go_on, one, (jnp.int32(0), rows, none))
    return rows, drawn


def sample(key: Key, logits: Array, sampling: Sampling) -> Array:
    """One token per row, [R] keys, [R, V] logits -> [R] int32; what no row asks for is not computed.

    Top-k before top-p, both after temperature (Holtzman et al. 2020, arXiv 1904.09751); the draw by Gumbel's maximum.
    """
    temperature, top_k, top_p = (jnp.asarray(setting)[:, None] for setting in sampling)
    greedy = _first_highest(logits)

    def drawn(logits: Array) -> Array:
        scaled = logits / jnp.where(temperature > 0, temperature, 1)
        scaled = jax.lax.cond(jnp.any((top_k > 0) | (top_p < 1)), cut, lambda scaled: scaled, scaled)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(key)
        return jnp.where(temperature[:, 0] > 0, _first_highest(scaled + noise), greedy)

    def cut(scaled: Array) -> Array:
        V = scaled.shape[-1]
        ordered = -jnp.sort(-scaled, axis=-1)
        kept = jnp.arange(V)[None] < jnp.where(top_k > 0, top_k, V)
        shares = jax.nn.softmax(jnp.where(kept, ordered, -jnp.inf), axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares
        kept &= (before < top_p) | (jnp.arange(V)[None] == 0)
        least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
        uncut = (top_k <= 0) & (top_p >= 1)
        return jnp.where(uncut | (scaled >= least), scaled, -jnp.inf)

    return jax.lax.cond(jnp.any(temperature > 0), drawn, lambda logits: greedy, logits)


def _first_highest(logits: Array) -> Array:
    """`jnp.argmax` of [R, V], in two plain reductions: on a CPU four times as fast."""
    V = logits.shape[-1]
    here = logits == jnp.max(logits, axis=-1, keepdims=True)
    return jnp.minimum(jnp.min(jnp.where(here, jnp.arange(V), V), axis=-1), V - 1).astype(jnp.int32)


class TextStream:
    """Tokens in, text out as soon as it is sure: whole characters, and nothing that may belong to a stop string."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting = ""
        self.stopped = False  # whether a stop string has come; it and what follows it are not part of the text

    def feed(self, tokens: Sequence[int]) -> str:
        """The text that has become sure by these tokens."""
        return self._sure(self._decoder.decode(b"".join(map(self._tokenizer.bytes_of, tokens))))

    def close(self) -> str:
        """The rest: no token will come."""
        text = self._sure(self._decoder.decode(b"", final=True))
        rest, self._waiting = ("" if self.stopped else self._waiting), ""
        return text + rest

    def _sure(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._waiting + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._waiting = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._waiting = text[len(text) - held :]
        return text[: len(text) - held]


def generate(
    model: LanguageModel,
    prompts: Sequence[str],
    *,
    tokens: int = 128,
    sampling: Sampling = Sampling(),  # noqa: B008
    stop: Sequence[str] = (),
    seed: int = 0,
    n: int = 1,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Completion]:
    """`n` continuations of each prompt, prompt by prompt; the same arguments give the same text.

    `on_text(number of the completion, text)` is told each piece of text as soon as it is sure. Where a row has filled
    the model's context, it goes on with the last half of it. An empty prompt begins a document; one that fills the
    context, and settings out of range, raise `BadInput`.
    """
    sampling = checked(sampling)
    if tokens < 1 or n < 1:
        raise BadInput(f"at least one token of at least one completion is generated, not {tokens} of {n}")
    encoded = [tokenized(model, prompt) for prompt in prompts for _ in range(n)]
    if not encoded:
        raise BadInput("there is no prompt")
    return generate_tokens(model, encoded, tokens, sampling, stop=stop, seed=seed, on_text=on_text)


def generate_tokens(
    model: LanguageModel,
    encoded: Sequence[Sequence[int]],
    tokens: int,
    sampling: Sampling,
    *,
    stop: Sequence[str] = (),
    seed: int = 0,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Completion]:
    """`generate` after prompts of tokens, each of at least one and fewer than the context."""
    capacity = min(model.config.context_length, -(-(max(map(len, encoded)) + tokens) // ROOM) * ROOM)
    rows = start(model, encoded, capacity, tokens, sampling, seed)
    end = -1 if model.tokenizer.end is None else model.tokenizer.end
    read_out = jax.jit(transformer.transposed_lm_head)(model.weights)
    streams = [TextStream(model.tokenizer, stop) for _ in encoded]
    made: list[list[int]] = [[] for _ in encoded]
    texts = ["" for _ in encoded]

    def tell(number: int, text: str) -> None:
        texts[number] += text
        if text and on_text is not None:
            on_text(number, text)

    while np.any(np.asarray(rows.left) > 0):
        rows = _refilled(model, rows, encoded, made)
        rows, drawn = draw(model.config, model.weights, rows, PIECE, most=PIECE, end=end, read_out=read_out)
        count, found = np.asarray(drawn.counts), np.asarray(drawn.tokens)
        left = np.array(rows.left)
        for number, stream in enumerate(streams):
            new = found[number, : count[number]].tolist()
            made[number] += new
            tell(number, stream.feed(new))
            if stream.stopped:
                left[number] = 0
        rows = rows._replace(left=jnp.asarray(left))
    for number, stream in enumerate(streams):
        tell(number, stream.close())
    return [
        Completion(text, tuple(ids), "stop" if stream.stopped else "end" if ids[-1] == end else "length")
        for text, ids, stream in zip(texts, made, streams, strict=True)
    ]


def tokenized(model: LanguageModel, prompt: str) -> list[int]:
    """A prompt's tokens, at least one; `BadInput` where it cannot be read or leaves no room in the context."""
    found = model.tokenizer.encode(prompt).tolist()
    if not found:
        if model.tokenizer.end is None:
            raise BadInput("the prompt is empty, and this tokenizer has no token to begin a document with")
        found = [model.tokenizer.end]
    if len(found) >= model.config.context_length:
        raise BadInput(
            f"the prompt has {len(found):,} tokens, which leaves no room in the model's context of "
            f"{model.config.context_length}"
        )
    return found


def start(
    model: LanguageModel, prompts: Sequence[Sequence[int]], capacity: int, tokens: int, sampling: Sampling, seed: int
) -> Rows:
    """A batch with one row per prompt that has been read but for its last token."""
    R = len(prompts)
    rows = no_rows(model.config, R, capacity)
    cache = read_all(model, rows.cache, [prompt[:-1] for prompt in prompts])
    kinds = (jnp.float32, jnp.int32, jnp.float32)
    same = Sampling(*(jnp.full(R, setting, kind) for setting, kind in zip(sampling, kinds, strict=True)))
    key = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(seed), number))(jnp.arange(R))
    last = jnp.asarray([prompt[-1] for prompt in prompts], jnp.int32)
    return Rows(cache, last, jnp.full(R, tokens, jnp.int32), jnp.zeros(R, jnp.int32), key, same)


def read_all(model: LanguageModel, cache: KVCache, texts: Sequence[Sequence[int]]) -> KVCache:
    """Row r reads all of `texts[r]`, chunk by chunk."""
    chunk = min(CHUNK, cache.capacity)
    for at in range(0, max(map(len, texts)), chunk):
        parts = [text[at : at + chunk] for text in texts]
        tokens = np.array([[*part, *[0] * (chunk - len(part))] for part in parts], np.int32)
        cache = read(model.config, model.weights, cache, tokens, np.array([len(part) for part in parts], np.int32))
    return cache


def _refilled(
    model: LanguageModel, rows: Rows, prompts: Sequence[Sequence[int]], made: Sequence[Sequence[int]]
) -> Rows:
    """Rows that go on and whose context is full read the last half of it again, as if it began there."""
    full = (np.asarray(rows.left) > 0) & (np.asarray(rows.cache.length) >= rows.cache.capacity)
    if not full.any():
        return rows
    keep = max(model.config.context_length // 2, 1)
    texts = [
        ([*prompt, *new][-keep:-1] if is_full else []) for prompt, new, is_full in zip(prompts, made, full, strict=True)
    ]
    return rows._replace(cache=read_all(model, transformer.clear_sequences(rows.cache, jnp.asarray(full)), texts))


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
