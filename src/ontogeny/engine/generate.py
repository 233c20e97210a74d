"""Continue prompts with a language model, from text to text.

Where the kernels of a CPU are active, the engine of the server generates, so that the same request has the same text
from both. Otherwise prompts are one fixed batch, which XLA decodes in a compiled loop: all tokens of a prompt but the
last are prefilled in chunks; then each step processes one token per sequence and samples the next one. The tokens of a
sequence then depend, bit for bit, on its own prompt, its seed and the shape of the batch (number of sequences,
capacity, chunk size), and not on its slot or on the other sequences. Seeds are those of `sampling`.

Letters: R sequences, K tokens of a chunk, N tokens of one compiled call.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int32

from ontogeny import kernels
from ontogeny.content import transformer
from ontogeny.content.transformer import KVCache, TransformerConfig, TransformerWeights
from ontogeny.engine.engine import Engine
from ontogeny.engine.requests import FinishOutput, GenerationRequest, TokenOutput
from ontogeny.engine.sampling import (
    BatchSamplingParams,
    SamplingParams,
    check_sampling_params,
    derive_seed,
    draw_uniform,
    sample_tokens,
)
from ontogeny.engine.text_stream import TextStream
from ontogeny.errors import BadInput
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.tokenizer import begin_prompt

PREFILL_CHUNK = 32  # K, tokens of a prompt per prefill call
TOKENS_PER_CALL = 16  # N, decode steps between two updates of the text
MAX_NUM_SEQS = 64  # sequences that the engine continues at the same time
CAPACITY_MULTIPLE = 32  # capacities are multiples of it, so that few programs are compiled

OnText = Callable[[int, str], None]


class DecodeState(NamedTuple):
    """The state of a batch between two compiled calls."""

    cache: KVCache
    next_token: Int32[Array, "R"]  # the token that is processed next
    num_remaining: Int32[Array, "R"]  # tokens that may still be generated; 0 where a sequence is finished
    sampling_params: BatchSamplingParams


class DecodeOutput(NamedTuple):
    """The tokens that a compiled call has generated; of sequence r the first `counts[r]` are valid."""

    tokens: Int32[Array, "R N"]
    counts: Int32[Array, "R"]


class Completion(NamedTuple):
    """The continuation of a prompt.

    Attributes:
        finish_reason: `end` (the end token, the last of `tokens`), `stop` (a stop string) or `length`.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def prefill(
    config: TransformerConfig,
    weights: TransformerWeights,
    cache: KVCache,
    tokens: Int32[Array, "R K"],
    num_tokens: Int32[Array, "R"],
) -> KVCache:
    """Process the first `num_tokens` of each sequence's tokens."""
    return transformer.extend_cache(config, weights, cache, tokens, num_tokens)[0]


@partial(jax.jit, static_argnums=0, static_argnames=("end_tokens", "num_candidate_tokens"), donate_argnums=2)
def decode(
    config: TransformerConfig,
    weights: TransformerWeights,
    state: DecodeState,
    uniforms: Float[Array, "R N"],
    *,
    end_tokens: tuple[int, ...],
    num_candidate_tokens: int | None = None,
    lm_head: Float[Array, "W V"] | None = None,
) -> tuple[DecodeState, DecodeOutput]:
    """Generate up to N tokens per sequence in one compiled loop, which ends early where no sequence can continue.

    Args:
        uniforms: The uniform numbers that select the next N tokens of each sequence (`sampling.draw_uniform`).
        end_tokens: A sequence is finished where it generates one of these.
        num_candidate_tokens: Only tokens below this number are generated; None for all of the model.
        lm_head: `transformer.transposed_lm_head(weights)`, which saves time where the function is called repeatedly.

    Returns:
        The new state and the tokens. A sequence whose cache is full waits; see `shift_full_caches`.
    """
    R, N = uniforms.shape
    lm_head = transformer.transposed_lm_head(weights) if lm_head is None else lm_head

    def is_active(state: DecodeState) -> Array:
        """Which sequences generate a token in the next step: [R] bool."""
        return (state.num_remaining > 0) & (state.cache.length < state.cache.capacity)

    def continues(carry: tuple[Array, DecodeState, DecodeOutput]) -> Array:
        """Whether another step is necessary."""
        step, state, _ = carry
        return (step < N) & jnp.any(is_active(state))

    def generate_one(carry: tuple[Array, DecodeState, DecodeOutput]) -> tuple[Array, DecodeState, DecodeOutput]:
        """Generates one token of each active sequence."""
        step, state, output = carry
        active = is_active(state)
        cache, logits = transformer.extend_cache(
            config, weights, state.cache, state.next_token[:, None], active.astype(jnp.int32), lm_head=lm_head
        )
        uniform = jnp.take_along_axis(uniforms, output.counts[:, None], axis=1, mode="clip")[:, 0]
        token = sample_tokens(uniform, logits[:, :num_candidate_tokens], state.sampling_params)
        index = jnp.where(active, output.counts, N)  # nothing is written beyond the end
        tokens = output.tokens.at[jnp.arange(R), index].set(token, mode="drop")
        remaining = jnp.where(jnp.isin(token, jnp.array(end_tokens, jnp.int32)), 0, state.num_remaining - 1)
        state = state._replace(
            cache=cache,
            next_token=jnp.where(active, token, state.next_token),
            num_remaining=jnp.where(active, remaining, state.num_remaining),
        )
        return step + 1, state, DecodeOutput(tokens, output.counts + active)

    empty = DecodeOutput(jnp.zeros((R, N), jnp.int32), jnp.zeros(R, jnp.int32))
    _, state, output = jax.lax.while_loop(continues, generate_one, (jnp.int32(0), state, empty))
    return state, output


def generate(
    model: LanguageModel,
    prompts: Sequence[str],
    *,
    max_tokens: int = 128,
    sampling_params: SamplingParams = SamplingParams(),  # noqa: B008
    stop: Sequence[str] = (),
    n: int = 1,
    on_text: OnText | None = None,
) -> list[Completion]:
    """Continue prompts; the same arguments give the same text.

    A sequence that fills the model's context continues from the second half of its tokens.

    Args:
        model: As `ontogeny.load` returns it.
        prompts: At least one. An empty prompt begins a document.
        max_tokens: The most tokens of one completion, at least 1.
        sampling_params: Completion number i of a prompt is drawn with `sampling.derive_seed(seed, i)`.
        stop: A completion ends before the first of these strings.
        n: Completions of each prompt, at least 1.
        on_text: Receives the number of a completion and each part of its text as soon as it is final.

    Returns:
        The completions, prompt by prompt.

    Raises:
        BadInput: A prompt leaves no space in the context, or an argument is out of its range.
    """
    check_sampling_params(sampling_params)
    if max_tokens < 1 or n < 1:
        raise BadInput(f"at least one token of at least one completion is generated, not {max_tokens} of {n}")
    if not prompts:
        raise BadInput("there is no prompt")
    encoded = [encode_prompt(model, prompt) for prompt in prompts for _ in range(n)]
    seeds = [derive_seed(sampling_params.seed, i) for _ in prompts for i in range(n)]
    return generate_from_tokens(model, encoded, max_tokens, sampling_params, seeds=seeds, stop=stop, on_text=on_text)


def generate_from_tokens(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampling_params: SamplingParams,
    *,
    seeds: Sequence[int] | None = None,
    stop: Sequence[str] = (),
    on_text: OnText | None = None,
) -> list[Completion]:
    """Continue prompts of tokens; see `generate`.

    Args:
        model: As `ontogeny.load` returns it.
        prompts: Each has at least one token and fewer than the context length.
        max_tokens: The most tokens of one completion, at least 1.
        sampling_params: How tokens are drawn.
        seeds: One seed per prompt; by default that of `sampling_params` for all.
        stop: A completion ends before the first of these strings.
        on_text: Receives the number of a completion and each part of its text as soon as it is final.
    """
    seeds = [sampling_params.seed] * len(prompts) if seeds is None else seeds
    streams = [_CompletionStream(model, index, stop, on_text) for index in range(len(prompts))]
    continue_prompts = _run_engine if kernels.is_active() else _run_batch
    continue_prompts(model, prompts, max_tokens, sampling_params, seeds, streams)
    return [stream.complete() for stream in streams]


class _CompletionStream:
    """The tokens and the text of one completion."""

    def __init__(self, model: LanguageModel, index: int, stop: Sequence[str], on_text: OnText | None) -> None:
        self._index, self._on_text, self._end_tokens = index, on_text, model.tokenizer.end_tokens
        self._stream = TextStream(model.tokenizer, stop)
        self._tokens, self._text = list[int](), ""

    def push(self, *tokens: int) -> bool:
        """Append tokens; returns whether a stop string has ended the completion."""
        self._tokens += tokens
        self._append(self._stream.push(*tokens))
        return self._stream.stopped

    def complete(self) -> Completion:
        """End the completion."""
        self._append(self._stream.finish())
        is_end = bool(self._tokens) and self._tokens[-1] in self._end_tokens
        reason = "stop" if self._stream.stopped else "end" if is_end else "length"
        return Completion(self._text, tuple(self._tokens), reason)

    def _append(self, text: str) -> None:
        """Adds text that has become final."""
        self._text += text
        if text and self._on_text is not None:
            self._on_text(self._index, text)


def _run_engine(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampling_params: SamplingParams,
    seeds: Sequence[int],
    streams: Sequence[_CompletionStream],
) -> None:
    """Continues prompts by the engine of the server, on this thread."""
    engine, failures = Engine(model.config, max_num_seqs=MAX_NUM_SEQS), list[BaseException]()

    def on_output(stream: _CompletionStream, part: TokenOutput | FinishOutput) -> bool:
        try:
            if isinstance(part, TokenOutput):
                return stream.push(part.token)
            if part.end_token is not None:
                stream.push(part.end_token)
            if part.finish_reason == "failed" and not failures:
                failures.append(RuntimeError("an error occurred while the text was generated"))
        except BaseException as error:
            failures.append(error)
            raise
        return False

    requests = [
        GenerationRequest(
            model.weights,
            tuple(prompt),
            max_tokens,
            sampling_params._replace(seed=seed),
            model.tokenizer.end_tokens,
            model.tokenizer.size,
        )
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    engine.submit_all(requests, [partial(on_output, stream) for stream in streams])  # pyright: ignore
    engine.run()
    if failures:
        raise failures[0]


def _run_batch(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampling_params: SamplingParams,
    seeds: Sequence[int],
    streams: Sequence[_CompletionStream],
) -> None:
    """Continues prompts by XLA's programs, as one batch."""
    batch = XlaBatch(model, prompts, max_tokens, sampling_params, seeds)
    while batch.is_active:
        for index, (stream, new) in enumerate(zip(streams, batch.advance(TOKENS_PER_CALL), strict=True)):
            if stream.push(*new):
                batch.finish(index)


class XlaBatch:
    """Sequences that XLA's programs continue together."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        sampling_params: SamplingParams,
        seeds: Sequence[int],
    ) -> None:
        self._model, self._params, self._seeds = model, sampling_params, seeds
        self._lm_head = jax.jit(transformer.transposed_lm_head)(model.weights)
        self._tokens, self._num_generated = [list(prompt) for prompt in prompts], [0] * len(prompts)
        self._state = start(model, prompts, max_tokens, sampling_params)
        self._num_remaining = np.array(self._state.num_remaining)

    @property
    def is_active(self) -> bool:
        """Whether any sequence can be continued."""
        return bool(np.any(self._num_remaining > 0))

    def finish(self, index: int) -> None:
        """End one sequence."""
        self._num_remaining[index] = 0

    def advance(self, num_steps: int) -> list[list[int]]:
        """Generate up to this number of tokens of each sequence that is not finished, and return them."""
        model, state = self._model, self._state._replace(num_remaining=jnp.asarray(self._num_remaining))
        state, output = decode(
            model.config,
            model.weights,
            shift_full_caches(model, state, self._tokens),
            _draw_uniforms(self._seeds, self._num_generated, num_steps, self._params.temperature),
            end_tokens=tuple(sorted(model.tokenizer.end_tokens)),
            num_candidate_tokens=model.tokenizer.size,
            lm_head=self._lm_head,
        )
        counts, tokens = np.asarray(output.counts).tolist(), np.asarray(output.tokens)
        generated = [new[:count].tolist() for new, count in zip(tokens, counts, strict=True)]
        for index, new in enumerate(generated):
            self._tokens[index] += new
            self._num_generated[index] += len(new)
        self._state, self._num_remaining = state, np.array(state.num_remaining)
        return generated


def encode_prompt(model: LanguageModel, prompt: str) -> list[int]:
    """Tokenize a prompt; an empty one becomes the token that begins a document.

    Raises:
        BadInput: The prompt cannot be tokenized or leaves no space in the context.
    """
    tokens = begin_prompt(model.tokenizer, model.tokenizer.encode(prompt).tolist())
    if not tokens:
        raise BadInput("the prompt is empty, and this tokenizer has no token that begins a document")
    context_length = model.config.context_length
    if len(tokens) >= context_length:
        raise BadInput(
            f"the prompt has {len(tokens):,} tokens, which leaves no space in the model's context of {context_length}"
        )
    return tokens


def start(
    model: LanguageModel, prompts: Sequence[Sequence[int]], max_tokens: int, sampling_params: SamplingParams
) -> DecodeState:
    """Prefill a batch of prompts, all tokens of each but the last.

    Args:
        model: As `ontogeny.load` returns it.
        prompts: Each has at least one token and fewer than the context length.
        max_tokens: The most tokens that each sequence generates.
        sampling_params: Temperature, top-p and top-k of all sequences.
    """
    R = len(prompts)
    needed = max(map(len, prompts)) + max_tokens
    capacity = min(model.config.context_length, -(-needed // CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE)
    cache = transformer.init_cache(model.config, R, capacity)
    cache = _prefill_prompts(model, cache, [prompt[:-1] for prompt in prompts])
    params = BatchSamplingParams(
        jnp.full(R, sampling_params.temperature, jnp.float32),
        jnp.full(R, sampling_params.top_p, jnp.float32),
        jnp.full(R, sampling_params.top_k, jnp.int32),
    )
    next_token = jnp.asarray([prompt[-1] for prompt in prompts], jnp.int32)
    return DecodeState(cache, next_token, jnp.full(R, max_tokens, jnp.int32), params)


def shift_full_caches(model: LanguageModel, state: DecodeState, tokens: Sequence[Sequence[int]]) -> DecodeState:
    """Restart each full cache from the second half of its sequence's tokens, which are processed anew."""
    full = (np.asarray(state.num_remaining) > 0) & (np.asarray(state.cache.length) >= state.cache.capacity)
    if not full.any():
        return state
    num_retained = max(model.config.context_length // 2, 1)
    # As at the start, all tokens but the last are prefilled; the last is the input of the next decode step.
    prompts = [sequence[-num_retained:-1] if is_full else [] for sequence, is_full in zip(tokens, full, strict=True)]
    cleared = transformer.clear_sequences(state.cache, jnp.asarray(full))
    return state._replace(cache=_prefill_prompts(model, cleared, prompts))


def _prefill_prompts(model: LanguageModel, cache: KVCache, prompts: Sequence[Sequence[int]]) -> KVCache:
    """Process all tokens of each prompt, chunk by chunk."""
    size = min(PREFILL_CHUNK, cache.capacity)
    for first in range(0, max(map(len, prompts)), size):
        chunks = [prompt[first : first + size] for prompt in prompts]
        tokens = np.array([[*chunk, *[0] * (size - len(chunk))] for chunk in chunks], np.int32)
        cache = prefill(model.config, model.weights, cache, tokens, np.array([len(c) for c in chunks], np.int32))
    return cache


def _draw_uniforms(seeds: Sequence[int], positions: Sequence[int], num_tokens: int, temperature: float) -> np.ndarray:
    """The uniform numbers of each sequence's next tokens, [R, num_tokens]; zeros where sampling is greedy."""
    shape = (len(seeds), num_tokens)
    if temperature == 0:
        return np.zeros(shape, np.float32)
    numbers = [
        draw_uniform(seed, position + i)
        for seed, position in zip(seeds, positions, strict=True)
        for i in range(shape[1])
    ]
    return np.array(numbers, np.float32).reshape(shape)
