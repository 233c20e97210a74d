"""A text that goes on from call to call: a language model's activations, kept between requests and carried away.

Activations are the tokens that the model looks back on and their keys and values. A session belongs to the weights that
read them; when those have learned since, it reads its tokens anew. The same calls on the same weights have the same
bits. One thread goes on with one session at a time, beside the engine's. H heads, N tokens read, D numbers of a head.
"""

import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int32
from safetensors import SafetensorError
from safetensors.numpy import load as decode
from safetensors.numpy import save as encode

from ontogeny import trees
from ontogeny.content import transformer
from ontogeny.content.transformer import KVCache, TransformerConfig, TransformerWeights
from ontogeny.engine.engine import QueueFull
from ontogeny.engine.sampling import SamplingParams, sample_token
from ontogeny.errors import BadInput
from ontogeny.lm.model import LanguageModel
from ontogeny.server.learning.branches import read_about
from ontogeny.server.sessions.store import SessionStore, steps_of
from ontogeny.server.store import Store

FORMAT = "1"
CHUNK = 32  # tokens read at a time
MOST_WAITING = 64  # calls


class TextActivations(NamedTuple):
    """Activations: every token but the last has been read, or as many of the last ones as there was room for."""

    tokens: Int32[np.ndarray, "_"]  # at most the context and one
    keys: tuple[Float[np.ndarray, "H N D"], ...]  # one per layer
    values: tuple[Float[np.ndarray, "H N D"], ...]


class Session(NamedTuple):
    id: str
    steps: int  # tokens read or said so far
    kept: TextActivations
    weights: str  # digest of the version that read them

    @property
    def about(self) -> dict[str, Any]:
        return {"id": self.id, "object": "session", "steps": self.steps, "weights": self.weights}


class Answer(NamedTuple):
    tokens: list[int]
    reason: str  # stop: the end token, which is not among the tokens; length
    session: Session


class TextSessions:
    def __init__(self, name: str, model: LanguageModel, store: Store) -> None:
        self._model, self._shelf = model, SessionStore(store, name)
        self._chunk = min(CHUNK, model.config.context_length)
        self._thread = ThreadPoolExecutor(1, f"sessions of {name}")
        self._lock, self._waiting = threading.Lock(), 0
        self.base = trees.digest(model.weights)

    def stop(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def submit(self, work: Any, *arguments: Any) -> Any:
        """A future of what `work` returns, on the thread of these sessions; `Busy` where too many wait."""
        with self._lock:
            if self._waiting >= MOST_WAITING:
                raise QueueFull(1.0)
            self._waiting += 1
        made = self._thread.submit(work, *arguments)
        made.add_done_callback(self._done)
        return made

    def _done(self, _: Any) -> None:
        with self._lock:
            self._waiting -= 1

    def warm_up(self) -> None:
        """Compiles what a step needs."""
        cache = transformer.init_cache(self._model.config, 1)
        for size in (self._chunk, 1):
            _read(self._model.config, self._model.weights, cache, np.zeros((1, size), np.int32), np.ones(1, np.int32))

    def create(self, key: str, weights: str) -> Session:
        nothing = [np.asarray(leaf)[0, :, :0] for leaf in transformer.init_cache(self._model.config, 1).keys]
        made = Session("", 0, TextActivations(np.zeros(0, np.int32), tuple(nothing), tuple(nothing)), weights)
        return made._replace(id=self._shelf.insert(key, 0, self._encoded(made)))

    def get(self, key: str, id: str) -> Session:
        return self._decoded(id, self._shelf.read(key, id)[1])

    def forget(self, known: Collection[str]) -> None:
        """Drops what weights have made of a text that are not among those of these digests: it will be read anew."""
        self._thread.submit(self._forget, known).result()

    def _forget(self, known: Collection[str]) -> None:
        for key, id, state in self._shelf.all():
            session = self._decoded(id, state)
            if session.weights not in known:
                nothing = tuple(leaf[:, :0] for leaf in session.kept.keys)
                bare = session._replace(weights="", kept=session.kept._replace(keys=nothing, values=nothing))
                self._shelf.write(key, id, session.steps, self._encoded(bare))

    def drop(self, key: str, id: str) -> None:
        self._shelf.drop(key, id)

    def fork(self, key: str, id: str) -> Session:
        """A new session that goes on from where this one is."""
        session = self.get(key, id)
        return session._replace(id=self._shelf.insert(key, session.steps, self._encoded(session)))

    def export(self, key: str, id: str) -> bytes:
        return self._encoded(self.get(key, id))

    def restore(self, key: str, id: str, data: bytes, weights: str) -> Session:
        """Makes a session what such a file says, if the weights that answer now are those that it belongs to."""
        self._shelf.read(key, id)
        session = self._decoded(id, data)
        if session.weights != weights:
            raise BadInput(f"this state belongs to weights {session.weights[:16]}, here are {weights[:16]}")
        self._shelf.write(key, id, session.steps, self._encoded(session))
        return session

    def go_on(
        self, key: str, id: str, weights: TransformerWeights, digest: str, new: Sequence[int], most: int, taste: SamplingParams,
        until: float,
    ) -> Answer:  # fmt: skip
        """Reads `new` tokens, then says at most `most`; `TimeoutError` after `until`, with the session as it was."""
        session, config, end = self.get(key, id), self._model.config, self._model.tokenizer.end
        tokens = [*session.kept.tokens.tolist(), *new]
        if not tokens:
            if end is None:
                raise BadInput("nothing was said yet, and this tokenizer has no token to begin a document with")
            tokens = [end]
        same = session.weights == digest
        cache = self._cache(session.kept) if same else transformer.init_cache(config, 1)
        row = _Row(config, weights, self._chunk, tokens, cache, session.kept.keys[0].shape[1] if same else 0)
        row.read(len(new) + min(len(session.kept.tokens), 1) if same else len(tokens))
        made, reason = [], "length"
        while len(made) < most:
            if time.monotonic() > until:
                raise TimeoutError
            token = sample_token(row.next(), taste, len(made))
            if token == end:
                row.length -= 1  # the last token is the one that is not read yet, again
                reason = "stop"
                break
            made.append(token)
            tokens.append(token)
        steps = session.steps + len(tokens) - len(session.kept.tokens)
        leaves = [
            tuple(np.asarray(leaf)[0, :, : row.length] for leaf in part) for part in (row.cache.keys, row.cache.values)
        ]
        after = Session(id, steps, TextActivations(np.array(tokens[-config.context_length - 1 :], np.int32), *leaves), digest)
        self._shelf.write(key, id, steps, self._encoded(after))
        return Answer(made, reason, after)

    def _cache(self, kept: TextActivations) -> KVCache:
        empty = transformer.init_cache(self._model.config, 1)
        length = kept.keys[0].shape[1]

        def filled(leaves: tuple[Array, ...], parts: tuple[np.ndarray, ...]) -> tuple[Array, ...]:
            return tuple(leaf.at[0, :, :length].set(part) for leaf, part in zip(leaves, parts, strict=True))

        return KVCache(filled(empty.keys, kept.keys), filled(empty.values, kept.values), jnp.full(1, length, jnp.int32))

    def _encoded(self, session: Session) -> bytes:
        about = {
            "format": FORMAT,
            "kind": "text",
            "base": self.base,
            "weights": session.weights,
            "steps": str(session.steps),
            "digest": trees.digest(session.kept),
        }
        arrays = {name: np.require(a, requirements="C") for name, a in trees.to_arrays(session.kept).items()}
        return encode(arrays, metadata=about)

    def _decoded(self, id: str, data: bytes) -> Session:
        about, config = read_about(data), self._model.config
        if about.get("format") != FORMAT or about.get("kind") != "text":
            raise BadInput("this is no state of a text's session")
        if about.get("base") != self.base:
            raise BadInput(f"this state belongs to model {str(about.get('base'))[:16]}, here is {self.base[:16]}")
        try:
            found = decode(data)
            N, T = found["keys.0"].shape[1], len(found["tokens"])
            part = np.zeros((config.num_heads, N, config.width // config.num_heads), np.float32)
            layers = tuple(part for _ in range(config.num_layers))
            kept = trees.from_arrays(TextActivations(np.zeros(T, np.int32), layers, layers), found)
            kept = jax.tree.map(np.asarray, kept)
            weights = str(about["weights"])
        except (SafetensorError, LookupError, ValueError, TypeError) as error:
            raise BadInput(f"this state does not fit this model or is damaged: {error}") from None
        steps = steps_of(about)
        whole = trees.digest(kept) == about.get("digest") and trees.is_finite(kept)
        fits = config.context_length + 1 >= T and max(T - 1, 0) >= N and steps >= T
        if not whole or not fits or not all(0 <= token < config.vocab_size for token in kept.tokens):
            raise BadInput("this state is damaged: it is not what its digest names, or means nothing")
        return Session(id, steps, kept, weights)


class _Row:
    """One text on its way: `cache` holds the `length` tokens before the last, or before those to be read."""

    def __init__(
        self, config: TransformerConfig, weights: TransformerWeights, chunk: int, tokens: list[int], cache: KVCache, length: int
    ) -> None:
        self.config, self.weights, self.chunk = config, weights, chunk
        self.tokens, self.cache, self.length = tokens, cache, length

    def read(self, unread: int) -> None:
        """All but the last of so many tokens at the end; where there is no room, the last half of what there is room
        for is read anew."""
        if self.length + unread > self.config.context_length:
            self.length, unread = 0, min(len(self.tokens), max(self.config.context_length // 2, 1))
        part = self.tokens[len(self.tokens) - unread : -1]
        for at in range(0, len(part), self.chunk):
            some = part[at : at + self.chunk]
            self._append(np.array([*some, *[0] * (self.chunk - len(some))], np.int32), len(some))

    def next(self) -> np.ndarray:
        """Reads the last token; logits [V] of what follows."""
        if self.length == self.config.context_length:
            self.read(1)
        return self._append(np.array(self.tokens[-1:], np.int32), 1)

    def _append(self, tokens: np.ndarray, count: int) -> np.ndarray:
        cache = self.cache._replace(length=jnp.full(1, self.length, jnp.int32))
        self.cache, logits = _read(self.config, self.weights, cache, tokens[None], np.full(1, count, np.int32))
        self.length += count
        return np.asarray(logits)[0]


@partial(jax.jit, static_argnums=0)
def _read(
    config: TransformerConfig, weights: TransformerWeights, cache: KVCache, tokens: Int32[Array, "1 K"], count: Int32[Array, "1"]
) -> tuple[KVCache, Float[Array, "1 V"]]:
    return transformer.extend_cache(config, weights, cache, tokens, count)
