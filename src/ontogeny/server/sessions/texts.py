"""Sessions of texts: the activations of a language model, kept between requests and exported as files.

Activations are the tokens in the context window with their keys and values. They belong to the weights that computed
them; after the weights have learned, the session prefills its tokens again. The same calls on the same weights are
bitwise reproducible. H heads, N cached tokens, D numbers per head.
"""

import logging
import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int32

from ontogeny import trees
from ontogeny.content import transformer
from ontogeny.content.transformer import KVCache, TransformerConfig, TransformerWeights
from ontogeny.engine.programs import prefill
from ontogeny.engine.sampling import SamplingParams, sample_token
from ontogeny.errors import BadInput
from ontogeny.lm.model import LanguageModel
from ontogeny.server.sessions.store import SessionManager
from ontogeny.server.states import check_digest, decode_state, encode_state, read_metadata, read_num_steps
from ontogeny.server.store import Store

STATE = "text session"
log = logging.getLogger(__name__)
PREFILL_CHUNK = 32  # tokens
MAX_WAITING = 64  # calls


class TextActivations(NamedTuple):
    """The tokens of a text and the cache of all of them but the last; of a long text, of the most recent ones."""

    tokens: Int32[np.ndarray, "_"]  # at most the context window and one
    keys: tuple[Float[np.ndarray, "H N D"], ...]  # one per layer
    values: tuple[Float[np.ndarray, "H N D"], ...]

    @property
    def num_cached(self) -> int:
        """The number of tokens in the cache."""
        return self.keys[0].shape[1]


class TextSession(NamedTuple):
    """One text on the server."""

    id: str
    num_steps: int  # prompt and generated tokens so far
    activations: TextActivations
    weights_digest: str  # of the version that computed the activations


class SessionCompletion(NamedTuple):
    """The result of one call of `complete`."""

    tokens: list[int]  # without an end token
    finish_reason: str  # "stop" at the end token, else "length"
    session: TextSession


class TextSessions(SessionManager[TextSession]):
    """The sessions of one language model."""

    def __init__(self, name: str, model: LanguageModel, store: Store) -> None:
        super().__init__(name, store, MAX_WAITING)
        self._model = model
        self._chunk = min(PREFILL_CHUNK, model.config.context_length)
        self.trained_digest = trees.digest(model.weights)

    def warm_up(self) -> None:
        """Compiles prefill and decode."""
        decoder = _TextDecoder(self._model.config, self._model.weights, self._chunk, [0, 0], self._empty_cache(), 0)
        decoder.prefill(2)
        decoder.decode()

    def create(self, key: str, weights_digest: str) -> TextSession:
        """Begins an empty text for the weights of this digest."""
        empty = tuple(np.asarray(leaf)[0, :, :0] for leaf in self._empty_cache().keys)
        activations = TextActivations(np.zeros(0, np.int32), empty, empty)
        return self._insert(key, TextSession("", 0, activations, weights_digest))

    def drop_stale_activations(self, digests: Collection[str]) -> None:
        """Deletes activations of weights that are not among these digests; the next call prefills again."""
        self._thread.submit(self._drop_stale_activations, digests).result()

    def restore(self, key: str, id: str, data: bytes, weights_digest: str) -> TextSession:
        """Replaces the state of a session by an exported one of the weights of this digest."""
        self.get(key, id)
        session = self._decode(id, data)
        if session.weights_digest != weights_digest:
            raise BadInput(
                f"this state belongs to weights {session.weights_digest[:16]}, but the current weights are "
                f"{weights_digest[:16]}"
            )
        return self._write(key, session)

    def complete(
        self,
        key: str,
        id: str,
        weights: TransformerWeights,
        weights_digest: str,
        prompt: Sequence[int],
        max_tokens: int,
        sampling: SamplingParams,
        deadline: float,
    ) -> SessionCompletion:
        """Appends a prompt to a text and generates its continuation.

        Args:
            key: The id of the key that owns the session.
            id: The session.
            weights: The weights that answer.
            weights_digest: The digest of their version.
            prompt: New tokens, possibly none.
            max_tokens: Tokens to generate at most.
            sampling: How tokens are sampled.
            deadline: A value of `time.monotonic`.

        Raises:
            BadInput: The text is empty and the tokenizer has no end token to begin with.
            TimeoutError: The deadline passed; the session is unchanged.
        """
        session, end = self.get(key, id), self._model.tokenizer.end
        tokens = [*session.activations.tokens.tolist(), *prompt]
        if not tokens:
            if end is None:
                raise BadInput("the text is empty, and this tokenizer has no token that begins a document")
            tokens = [end]
        if session.weights_digest == weights_digest:
            cache, length = self._cache(session.activations), session.activations.num_cached
            num_new = len(prompt) + min(len(session.activations.tokens), 1)  # the last token is not in the cache
        else:
            cache, length, num_new = self._empty_cache(), 0, len(tokens)
        decoder = _TextDecoder(self._model.config, weights, self._chunk, tokens, cache, length)
        decoder.prefill(num_new)
        generated, reason = [], "length"
        while len(generated) < max_tokens:
            if time.monotonic() > deadline:
                raise TimeoutError
            token = sample_token(decoder.decode(), sampling, len(generated))
            if token == end:
                decoder.length -= 1  # the last token is outside the cache again
                reason = "stop"
                break
            generated.append(token)
            tokens.append(token)
        num_steps = session.num_steps + len(tokens) - len(session.activations.tokens)
        after = TextSession(id, num_steps, decoder.activations(), weights_digest)
        return SessionCompletion(generated, reason, self._write(key, after))

    def _drop_stale_activations(self, digests: Collection[str]) -> None:
        """See `drop_stale_activations`; runs on the thread of the sessions."""
        query = "SELECT key, id FROM sessions WHERE deployment = ?"
        for key, id in self._store.execute(query, self.name):
            state = self._store.select_value("SELECT state FROM sessions WHERE id = ?", id)
            try:
                if state is None or read_metadata(state, STATE).get("weights_digest") in {*digests, ""}:
                    continue
                session = self._decode(id, state)
            except BadInput as error:  # the session cannot be continued either
                log.warning("the session %s of '%s' cannot be read: %s", id, self.name, error)
            else:
                empty = tuple(leaf[:, :0] for leaf in session.activations.keys)
                activations = session.activations._replace(keys=empty, values=empty)
                self._write(key, session._replace(weights_digest="", activations=activations))

    def _cache(self, activations: TextActivations) -> KVCache:
        """Copies activations into a cache of full capacity."""
        empty, length = self._empty_cache(), activations.num_cached

        def fill(leaves: tuple[Array, ...], parts: tuple[np.ndarray, ...]) -> tuple[Array, ...]:
            return tuple(leaf.at[0, :, :length].set(part) for leaf, part in zip(leaves, parts, strict=True))

        return empty._replace(keys=fill(empty.keys, activations.keys), values=fill(empty.values, activations.values))

    def _empty_cache(self) -> KVCache:
        """An empty cache of one sequence."""
        return transformer.init_cache(self._model.config, 1)

    def _encode(self, session: TextSession) -> bytes:
        """The exported bytes of a session."""
        return encode_state(
            STATE,
            session.activations,
            {
                "trained_digest": self.trained_digest,
                "weights_digest": session.weights_digest,
                "num_steps": str(session.num_steps),
            },
        )

    def _decode(self, id: str, data: bytes) -> TextSession:
        """The session `id` from exported bytes; raises `BadInput` if they do not fit this model."""
        metadata, config = read_metadata(data, STATE), self._model.config
        if metadata.get("trained_digest") != self.trained_digest:
            raise BadInput(
                f"this state belongs to model {str(metadata.get('trained_digest'))[:16]}, but this is model "
                f"{self.trained_digest[:16]}"
            )
        try:
            arrays = decode_state(data)
            num_cached, num_tokens = arrays["keys.0"].shape[1], len(arrays["tokens"])
            part = np.zeros((config.num_heads, num_cached, config.width // config.num_heads), np.float32)
            layers = tuple(part for _ in range(config.num_layers))
            template = TextActivations(np.zeros(num_tokens, np.int32), layers, layers)
            activations = jax.tree.map(np.asarray, trees.from_arrays(template, arrays))
            weights_digest = str(metadata["weights_digest"])
        except (LookupError, ValueError, TypeError) as error:
            raise BadInput(f"this state does not fit this model or is damaged: {error}") from None
        num_steps = read_num_steps(metadata)
        check_digest(activations, metadata)
        fits = (
            config.context_length + 1 >= num_tokens and max(num_tokens - 1, 0) >= num_cached and num_steps >= num_tokens
        )
        is_valid = trees.is_finite(activations) and all(0 <= t < config.vocab_size for t in activations.tokens)
        if not fits or not is_valid:
            raise BadInput("this state is damaged: its tokens or activations are outside their range")
        return TextSession(id, num_steps, activations, weights_digest)


class _TextDecoder:
    """One text while it grows.

    The cache holds `length` tokens: of the tokens in the context window all but the last one, which `decode` processes.
    """

    def __init__(
        self,
        config: TransformerConfig,
        weights: TransformerWeights,
        chunk: int,
        tokens: list[int],
        cache: KVCache,
        length: int,
    ) -> None:
        self.config, self.weights, self.chunk = config, weights, chunk
        self.tokens, self.cache, self.length = tokens, cache, length

    def prefill(self, num_new: int) -> None:
        """Processes the last `num_new` tokens, which are not in the cache, except the very last one.

        If they do not fit into the context window, the cache is emptied and starts again with half a window of tokens.
        """
        if self.length + num_new > self.config.context_length:
            self.length, num_new = 0, min(len(self.tokens), max(self.config.context_length // 2, 1))
        tokens = self.tokens[len(self.tokens) - num_new : -1]
        for start in range(0, len(tokens), self.chunk):
            chunk = tokens[start : start + self.chunk]
            self._append(np.array([*chunk, *[0] * (self.chunk - len(chunk))], np.int32), len(chunk))

    def decode(self) -> np.ndarray:
        """Processes the last token; returns the logits [V] of the next one."""
        if self.length == self.config.context_length:
            self.prefill(1)
        return self._append(np.array(self.tokens[-1:], np.int32), 1)

    def activations(self) -> TextActivations:
        """The tokens and cache as arrays."""
        keys, values = (
            tuple(np.asarray(leaf)[0, :, : self.length] for leaf in part)
            for part in (self.cache.keys, self.cache.values)
        )
        return TextActivations(np.array(self.tokens[-self.config.context_length - 1 :], np.int32), keys, values)

    def _append(self, tokens: np.ndarray, count: int) -> np.ndarray:
        """Processes the first `count` of these tokens; returns the logits [V] after the last one."""
        start, num_tokens, all_logits = np.int32(self.length), np.int32(count), False
        self.cache, logits = prefill(self.config, self.weights, self.cache, start, tokens, num_tokens, all_logits)
        self.length += count
        return np.asarray(logits)
