"""Sessions of texts: the activations of a language model, kept between requests and exported as files.

Activations are the tokens in the context window with their keys and values. They belong to the weights that computed
them; after the weights have learned, the session prefills its tokens again. The engine generates the continuations. The
same calls on the same weights are bitwise reproducible. H heads, N cached tokens, C capacity, D numbers per head.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int32

from ontogeny import trees
from ontogeny.content.transformer import TransformerWeights
from ontogeny.engine.engine import Engine
from ontogeny.engine.requests import (
    CachedLayers,
    FinishOutput,
    GenerationRequest,
    ReceiverClosed,
    SequenceActivations,
    TokenOutput,
)
from ontogeny.engine.sampling import SamplingParams, TokenLogprobs
from ontogeny.errors import BadInput
from ontogeny.lm import weight_types
from ontogeny.lm.adapters import AdapterTree
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.tokenizer import begin_prompt
from ontogeny.server.fair_executor import wait_for_call
from ontogeny.server.request_identity import RequestIdentity
from ontogeny.server.sessions.store import MAX_ATTEMPTS, SessionChanged, SessionManager
from ontogeny.server.states import check_digest, decode_state, encode_state, read_metadata, read_num_steps
from ontogeny.server.store import Store

STATE = "text session"
NUM_THREADS = 2  # that read and write states
log = logging.getLogger(__name__)


class GenerationFailed(Exception):
    """The engine has failed or stops, so a text is not continued."""


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
    revision: int = 0  # of the record that was read


class Continuation(NamedTuple):
    """What a request asks a text session to append.

    Attributes:
        weights: The weights that answer.
        weights_digest: The digest of their version.
        epoch: The value of `TextSessions.epoch` before the weights were chosen.
        prompt: New tokens, possibly none.
        max_tokens: Tokens to generate at most.
        sampling: How tokens are sampled.
        deadline: A value of `time.monotonic`.
        cache_epoch: The epoch of the engine's prefix cache before the weights were chosen; None for the present one.
        request: If it repeats the last one of the session, the text is not continued.
        adapter: The adapter of the weights that answer; None for weights alone.
    """

    weights: TransformerWeights
    weights_digest: str
    epoch: int
    prompt: Sequence[int]
    max_tokens: int
    sampling: SamplingParams
    deadline: float
    cache_epoch: int | None = None
    request: RequestIdentity | None = None
    adapter: AdapterTree | None = None


class SessionCompletion(NamedTuple):
    """The result of one call of `complete`."""

    tokens: list[int]  # without an end token
    finish_reason: str  # "stop" at the end token, else "length"
    session: TextSession
    is_repeated: bool = False  # the answer of an earlier call


class TextSessions(SessionManager[TextSession]):
    """The sessions of one language model.

    Args:
        name: The name of the deployment.
        model: The model.
        engine: Generates the continuations.
        store: The database.
        max_waiting: Calls of one key that may wait.

    Attributes:
        epoch: How often activations of some weights were dropped.
    """

    def __init__(
        self, name: str, model: LanguageModel, engine: Engine, store: Store, *, max_waiting: int | float = float("inf")
    ) -> None:
        super().__init__(name, store, num_threads=NUM_THREADS, max_waiting=max_waiting)
        self._model, self._engine = model, engine
        self.trained_digest = weight_types.digest(model.weights)
        self.epoch = 0
        self._deleted_digests: frozenset[str] = frozenset()  # when activations were last dropped
        self._activations_lock = threading.Lock()  # while states with activations are written

    def create(self, key: str, weights_digest: str, request: RequestIdentity | None = None) -> TextSession:
        """Begins an empty text for the weights of this digest, once for an idempotency key."""
        empty = self._empty_layers(0)
        activations = TextActivations(np.zeros(0, np.int32), empty, empty)
        return self._insert(key, TextSession("", 0, activations, weights_digest), request)

    def fork(self, key: str, id: str, request: RequestIdentity | None = None) -> TextSession:
        """Creates a new session that continues from the activations of this one; see `SessionManager.fork`."""
        with self._activations_lock:
            return super().fork(key, id, request)

    def drop_activations(self, digests: Collection[str], keys: Collection[str] | None = None) -> None:
        """Deletes activations of the weights of these digests; the next call prefills again.

        This includes activations that are being computed.

        Args:
            digests: Those of all deleted versions.
            keys: The keys whose sessions may have such activations; None for all keys.
        """
        with self._activations_lock:
            self.epoch += 1
            self._deleted_digests = frozenset(digests)
        query = "SELECT id FROM sessions WHERE deployment = ?"
        if keys is not None:
            query += f" AND key IN ({', '.join('?' * len(keys))})"
        for id in self._store.select_values(query, self.name, *(keys or ())):
            for _ in range(MAX_ATTEMPTS):
                with self._activations_lock, contextlib.suppress(SessionChanged):  # by another process
                    self._drop_if_deleted(id)
                    break

    def restore(self, key: str, id: str, data: bytes, weights_digest: str, epoch: int) -> TextSession:
        """Replaces the state of a session by an exported one of the weights of this digest.

        Args:
            key: The id of the key that owns the session.
            id: The session.
            data: The exported state.
            weights_digest: The digest of the weights that answer the key.
            epoch: As for `Continuation`.
        """
        session = self._decode(id, data)._replace(revision=self.get(key, id).revision)
        if session.weights_digest != weights_digest:
            raise BadInput(
                f"this state belongs to weights {session.weights_digest[:16]}, but the current weights are "
                f"{weights_digest[:16]}"
            )
        return self._write_activations(key, session, epoch)

    async def complete(
        self, key: str, id: str, continuation: Continuation, generated: list[int] | None = None
    ) -> SessionCompletion:
        """Appends a prompt to a text and generates its continuation when it is the turn of the session.

        The session changes at the end or not at all: if the task that awaits this is cancelled, the sequence is
        cancelled and the session stays as it was.

        Args:
            key: The id of the key that owns the session.
            id: The session.
            continuation: What is appended.
            generated: Receives the tokens as they are generated, however the call ends.

        Raises:
            BadInput: The text is empty and the tokenizer has no end token to begin with.
            UnknownSession: The key has no session of this id.
            QueueFull: Too many requests of this key wait.
            TimeoutError: The deadline passed; the session is unchanged.
            GenerationFailed: An error occurred in the engine; the session is unchanged.
        """
        generated = [] if generated is None else generated
        async with self.turns.take(key, id):
            for _ in range(MAX_ATTEMPTS - 1):
                with contextlib.suppress(SessionChanged):  # by another process
                    return await self._complete_once(key, id, continuation, generated)
                generated.clear()
            return await self._complete_once(key, id, continuation, generated)

    async def _complete_once(
        self, key: str, id: str, continuation: Continuation, generated: list[int]
    ) -> SessionCompletion:
        """Continues a text; see `complete`. Raises `SessionChanged` if another process has changed the session."""
        prepared = await self.executor.call(key, self._prepare, key, id, continuation)
        if isinstance(prepared, SessionCompletion):
            return prepared
        session, request = prepared
        end = await _generate(self._engine, request, generated)
        if end.finish_reason == "time":
            raise TimeoutError
        if end.activations is None:
            raise GenerationFailed
        answer = {"tokens": generated, "finish_reason": end.finish_reason}
        commit = self.executor.submit(key, self._commit, key, session, continuation, end.activations, answer)
        return SessionCompletion(generated, end.finish_reason, await wait_for_call(commit))

    def _prepare(
        self, key: str, id: str, continuation: Continuation
    ) -> tuple[TextSession, GenerationRequest] | SessionCompletion:
        """Reads a session and returns it with the request that continues it, or the result of an earlier call."""
        session, tokenizer = self.get(key, id), self._model.tokenizer
        if (answer := self._find_answer(key, id, continuation.request)) is not None:
            return SessionCompletion(answer["tokens"], answer["finish_reason"], session, is_repeated=True)
        activations, num_cached = session.activations, session.activations.num_cached
        before = tuple(activations.tokens.tolist())
        prompt = (*before, *continuation.prompt) if before else tuple(begin_prompt(tokenizer, [*continuation.prompt]))
        if not prompt:
            raise BadInput("the text is empty, and this tokenizer has no token that begins a document")
        is_current = num_cached and session.weights_digest == continuation.weights_digest
        return session, GenerationRequest(
            continuation.weights,
            prompt,
            continuation.max_tokens,
            continuation.sampling,
            tokenizer.end_tokens,
            tokenizer.size,
            deadline=continuation.deadline,
            cache_scope=(key, continuation.weights_digest),
            cache_epoch=continuation.cache_epoch,
            owner=key,
            activations=SequenceActivations(before, CachedLayers(activations.keys, activations.values))
            if is_current
            else None,
            returns_activations=True,
            adapter=continuation.adapter,
        )

    def _commit(
        self,
        key: str,
        session: TextSession,
        continuation: Continuation,
        after: SequenceActivations,
        answer: dict[str, Any],
    ) -> TextSession:
        """Writes the state of a session after its continuation."""
        tokens = np.array(after.tokens[-self._model.config.context_length - 1 :], np.int32)
        num_steps = session.num_steps + len(after.tokens) - len(session.activations.tokens)
        activations = TextActivations(tokens, *after.layers)
        after_session = TextSession(session.id, num_steps, activations, continuation.weights_digest, session.revision)
        return self._write_activations(key, after_session, continuation.epoch, continuation.request, answer)

    def _write_activations(
        self,
        key: str,
        session: TextSession,
        epoch: int,
        request: RequestIdentity | None = None,
        answer: Mapping[str, Any] = MappingProxyType({}),
    ) -> TextSession:
        """Writes a session, without activations of weights that were dropped since the epoch."""
        with self._activations_lock:
            if epoch != self.epoch and session.weights_digest in self._deleted_digests:
                session = _without_activations(session)
            return self._write(key, session, request, answer)

    def _drop_if_deleted(self, id: str) -> None:
        """Deletes the activations of a session whose weights are those of a deleted version."""
        records = self._store.execute("SELECT state, revision FROM sessions WHERE id = ?", id)
        try:
            if not records or read_metadata(records[0][0], STATE)["weights_digest"] not in self._deleted_digests:
                return
            session = self._decode(id, records[0][0])._replace(revision=records[0][1])
        except (BadInput, KeyError) as error:  # the session cannot be continued either
            log.warning("the session %s of '%s' cannot be read: %s", id, self.name, error)
            return
        if session.activations.num_cached:
            self._write_state(_without_activations(session))

    def _empty_layers(self, num_tokens: int) -> tuple[Float[np.ndarray, "G C D"], ...]:
        """Keys or values of every layer for a number of tokens."""
        config = self._model.config
        shape = config.kv_heads, num_tokens, config.size_of_head
        return tuple(np.zeros(shape, np.float32) for _ in range(config.num_layers))

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
            layers = self._empty_layers(num_cached)
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


def _without_activations(session: TextSession) -> TextSession:
    """Returns a session with its tokens alone; the next call prefills them."""
    empty = tuple(layer[:, :0] for layer in session.activations.keys)
    return session._replace(weights_digest="", activations=session.activations._replace(keys=empty, values=empty))


async def _generate(engine: Engine, request: GenerationRequest, generated: list[int]) -> FinishOutput:
    """Submits a request and awaits its end; cancels it if the task that awaits this is cancelled.

    Args:
        generated: Receives the tokens.
    """
    loop = asyncio.get_running_loop()
    finished = loop.create_future()

    def finish(output: FinishOutput) -> None:
        """Ends the wait; runs on the event loop."""
        if not finished.done():
            finished.set_result(output)

    def on_output(output: TokenOutput | list[TokenLogprobs] | FinishOutput) -> None:
        """Receives an output on a thread of the engine."""
        if isinstance(output, TokenOutput):
            generated.append(output.token)
        elif isinstance(output, FinishOutput):
            try:
                loop.call_soon_threadsafe(finish, output)
            except RuntimeError:  # the event loop has closed
                raise ReceiverClosed from None

    handle = engine.submit(request, on_output)
    try:
        return await finished
    finally:
        handle.cancel()
