"""Routes of the OpenAI API: models, completions and chat completions."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from fastapi import APIRouter, Request, Response
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic_core import to_json

from ontogeny.engine.engine import QueueFull
from ontogeny.engine.requests import GenerationRequest
from ontogeny.engine.sampling import LogitAdjustments
from ontogeny.errors import BadInput, StorageUnavailable
from ontogeny.kernels.packing import weight_type_of
from ontogeny.runs.records import encode_line
from ontogeny.server.api import candidates, context, errors, protocol, teaching
from ontogeny.server.api.bodies import BodyRoute, compute
from ontogeny.server.api.chat import tokenize_conversation
from ontogeny.server.api.context import Caller, Cleanup
from ontogeny.server.api.errors import ApiError
from ontogeny.server.api.protocol import ChatRequest, CompletionFields, CompletionRequest
from ontogeny.server.api.responses import ChatFormat, CompletionFormat, PreparedRequest, ResponseFormat, describe_usage
from ontogeny.server.api.streaming import ClientDisconnected, OutputDelta, OutputStream
from ontogeny.server.api.tokenizer import prompt_texts, tokenize_prompts
from ontogeny.server.deployment_kinds import Deployment, LanguageDeployment
from ontogeny.server.keys import ApiKey

router = APIRouter(route_class=BodyRoute, responses=errors.RESPONSES)
DEFAULT_MAX_TOKENS, DEFAULT_CHAT_MAX_TOKENS = 16, 128
STREAM = {
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
    "description": "The response, or a stream of its parts.",
}


class PromptBatch(NamedTuple):
    """What a request asks the engine to generate."""

    prompts: Sequence[list[int]]
    max_tokens: int  # per choice
    num_alternatives: int | None  # None: no log-probabilities
    echo: bool = False  # whether the prompts are scored too
    training_text: str = ""  # learned by an online deployment
    logit_adjustments: LogitAdjustments | None = None


@router.get("/v1/models")
def list_models(request: Request, key: Caller) -> dict[str, Any]:
    """Lists all deployments with their mode, frozen or online."""
    by_name = context.get_context(request).deployments.by_name
    return {"object": "list", "data": [_describe(name, deployment) for name, deployment in by_name.items()]}


@router.get("/v1/models/{model}")
def show_model(request: Request, model: str, key: Caller) -> dict[str, Any]:
    """Describes one deployment."""
    return _describe(model, context.get_deployment(request, model))


@router.post("/v1/completions", responses={200: STREAM})
async def complete(request: Request, body: CompletionRequest, key: Caller, cleanup: Cleanup) -> Any:
    """Continues each prompt; with `echo` and `logprobs` the prompts are scored too."""
    prepared = await _prepare_completion(request, body, key, cleanup)
    body.prompt = None  # a long prompt is not kept while the request waits for its answer
    return await _respond(request, cleanup, CompletionFormat(prepared, body.logprobs), body)


@router.post("/v1/chat/completions", responses={200: STREAM})
async def complete_chat(request: Request, body: ChatRequest, key: Caller, cleanup: Cleanup) -> Any:
    """Continues a conversation, which the model's own chat template, or else a plain one, converts to one text."""
    deployment = context.get_language_model(request, body.model)
    limits = (body.max_completion_tokens, body.max_tokens, DEFAULT_CHAT_MAX_TOKENS)
    max_tokens = next(limit for limit in limits if limit is not None)
    size = sum(len(message.content or "") for message in body.messages)
    tokens = await compute(tokenize_conversation, deployment.model, body, size=size)
    if body.top_logprobs and not body.logprobs:
        raise errors.bad_request("top_logprobs requires logprobs: true", "top_logprobs")
    num_alternatives = (body.top_logprobs or 0) if body.logprobs else None
    is_learned = body.learn is not False and deployment.online
    training_text = await compute(protocol.user_text, body.messages, size=size) if is_learned else ""
    adjustments = await _adjustments(deployment, body, max_tokens)
    batch = PromptBatch([tokens], max_tokens, num_alternatives, False, training_text, adjustments)
    prepared = await _prepare(request, cleanup, deployment, key, body, batch)
    prepared = prepared._replace(id=f"chatcmpl-{prepared.id}")
    stops = body.chat_stops if deployment.model.chat_template is None else ()
    return await _respond(request, cleanup, ChatFormat(prepared, bool(body.logprobs)), body, stops)


async def _prepare_completion(
    request: Request, body: CompletionRequest, key: ApiKey, cleanup: AsyncExitStack
) -> PreparedRequest:
    """Checks and tokenizes the prompts; see `_prepare`."""
    deployment, prompts = context.get_language_model(request, body.model), body.prompts
    candidates.check_choices(body)
    n = body.num_candidates
    if not prompts:
        raise errors.bad_request("the list of prompts is empty", "prompt")
    if n * len(prompts) > protocol.MAX_PROMPTS:
        message = f"the request has {n * len(prompts)} choices; the maximum is {protocol.MAX_PROMPTS}"
        raise errors.bad_request(message, "n")
    tokens = await tokenize_prompts(deployment.model.tokenizer, prompts)
    is_learned = body.learn is not False and not body.echo and len(prompts) == 1 and deployment.online
    has_texts = body.echo or is_learned or body.logprobs is not None
    texts = await prompt_texts(deployment.model.tokenizer, prompts) if has_texts else []
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    num_alternatives = 0 if body.logprobs is None and n > (body.n or 1) else body.logprobs  # candidates are compared
    batch = PromptBatch(
        tokens,
        max_tokens,
        num_alternatives,
        bool(body.echo),
        texts[0] if is_learned else "",
        await _adjustments(deployment, body, max_tokens),
    )
    prepared = await _prepare(request, cleanup, deployment, key, body, batch)
    echoed = [text for text in texts for _ in range(n)] if body.echo else []
    lengths = [len(text) for text in texts for _ in range(n)]
    prepared = prepared._replace(echoed_prompts=echoed, prompt_lengths=lengths, id=f"cmpl-{prepared.id}")
    return prepared._replace(num_candidates=n, num_choices=body.n or 1)


async def _adjustments(
    deployment: LanguageDeployment, body: CompletionFields, max_tokens: int
) -> LogitAdjustments | None:
    """How the logits of each answer are adjusted."""
    model = deployment.model
    return await candidates.make_logit_adjustments(body, model.tokenizer, model.config.vocab_size, max_tokens)


def _describe(name: str, deployment: Deployment) -> dict[str, Any]:
    """Returns the description of a deployment that every key may read."""
    mode = "online" if deployment.online else "frozen"
    details: dict[str, Any] = {"kind": deployment.kind, "mode": mode, "trained_digest": deployment.digest}
    if isinstance(deployment, LanguageDeployment):
        details["context_length"] = deployment.engine.max_sequence_length  # tokens that an answer can depend on
        details["weights"] = weight_type_of(deployment.model.weights)
        details["checkpoint"] = deployment.checkpoint_name  # of its run
        details["learning"] = deployment.learning  # what learns, in words
        details["computed_by"] = deployment.engine.path  # bits differ between numba's kernels and XLA's programs
    description = {"id": name, "object": "model", "created": deployment.created_at, "owned_by": "ontogeny"}
    return description | {"ontogeny": details}


async def _prepare(
    request: Request,
    cleanup: AsyncExitStack,
    deployment: LanguageDeployment,
    key: ApiKey,
    body: CompletionFields,
    batch: PromptBatch,
) -> PreparedRequest:
    """Applies the limits, reserves the queue, writes the training example, and creates one sequence per choice."""
    started_at, n, engine = time.monotonic(), body.num_candidates, deployment.engine
    for prompt in batch.prompts:
        if batch.echo and len(prompt) > engine.max_sequence_length + 1:
            message = (
                f"the prompt has {len(prompt)} tokens; at most {engine.max_sequence_length + 1} can be scored: the "
                f"context of {engine.max_sequence_length} and the token after it"
            )
            raise errors.bad_request(message, "prompt", "context_length_exceeded")
        try:
            engine.check_memory(len(prompt) + batch.max_tokens)
        except BadInput as error:
            raise errors.bad_request(str(error), "max_tokens") from None
    num_prompt_tokens, num_sequences = sum(map(len, batch.prompts)), n * len(batch.prompts)
    tokens = context.apply_rate_limits(request, key, num_prompt_tokens + batch.max_tokens * num_sequences)
    cleanup.callback(tokens.close)
    served = await context.request_weights(request, deployment, key)
    if await request.is_disconnected():
        raise errors.disconnected()
    try:
        reservation = engine.reserve(num_sequences, key.id)
    except QueueFull as error:
        raise errors.queue_full(error.retry_after) from None
    cleanup.callback(reservation.release)
    example = await teaching.add_prompt(request, deployment, key, batch.training_text)
    # The engine cuts a long prompt at its beginning.
    num_usable = engine.max_sequence_length + batch.echo
    prompts = [tuple(prompt[-num_usable:]) for prompt in batch.prompts]
    sequences = [
        GenerationRequest(
            served.weights,
            prompt,
            batch.max_tokens,
            sampling_params,
            deployment.model.tokenizer.end_tokens,
            deployment.model.tokenizer.size,
            batch.num_alternatives,
            batch.echo,
            deadline=started_at + context.get_context(request).deployments.config.time_limit,
            cache_scope=(key.id, served.digest),
            owner=key.id,
            cache_epoch=served.cache_epoch,
            logit_adjustments=batch.logit_adjustments and batch.logit_adjustments.for_another_answer(),
            adapter=served.adapter,
        )
        for prompt in prompts
        for sampling_params in candidates.make_sampling_params(body)
    ]
    id, created_at = uuid.uuid4().hex, int(time.time())
    return PreparedRequest(
        deployment, served, key, sequences, num_prompt_tokens, example, started_at, id, created_at,
        tokens, reservation, num_choices=n, num_candidates=n, ignored_fields=body.unknown_fields,
    )  # fmt: skip


async def _respond(
    request: Request, cleanup: AsyncExitStack, form: ResponseFormat, body: CompletionFields, stops: Sequence[str] = ()
) -> Any:
    """Generates the sequences of a request and returns the whole response or a stream."""
    prepared, engine = form.prepared, form.prepared.deployment.engine
    stops = [*body.stops, *stops]
    outputs = OutputStream(request, engine, form.tokenizer, prepared.sequences, stops, prepared.reservation)
    counter = _UsageCounter(request, prepared, outputs)
    cleanup.callback(counter.close)
    try:
        if body.stream:
            first = await anext(outputs)  # an error before the first output has a status of its own
            if first.end_reason == "time":
                raise errors.timed_out()
            return EventSourceResponse(_events(first, outputs, form, counter, body.includes_usage))
        async for output in outputs:
            if output.end_reason == "time" and not counter.completion_tokens:
                raise errors.timed_out()
            counter.add(output)
            form.add(output)
    except ClientDisconnected:
        raise errors.disconnected() from None
    counter.close()
    num_alternatives = max(sequence.num_logprobs or 0 for sequence in prepared.sequences)
    size = counter.completion_tokens + sum(map(len, form.scored)) * (1 + num_alternatives)
    return Response(await compute(_encode, form, counter.usage, size=size), media_type="application/json")


def _encode(form: ResponseFormat, usage: dict[str, int]) -> bytes:
    """The JSON of the response as a whole, choice by choice: each call of the encoder holds Python's global lock."""
    response = form.response() | {"usage": usage}
    choices = b",".join(to_json(choice, inf_nan_mode="null") for choice in response.pop("choices"))
    return to_json(response)[:-1] + b',"choices":[' + choices + b"]}"


async def _events(
    first: OutputDelta,
    outputs: OutputStream,
    form: ResponseFormat,
    counter: "_UsageCounter",
    includes_usage: bool,
) -> AsyncIterator[bytes]:
    """The parts of a stream as server-sent events."""
    usage: dict[str, Any] = {"usage": None} if includes_usage else {}  # a stream with usage has the field in every part

    def event(content: dict[str, Any]) -> bytes:
        """Encodes a part of the stream."""
        return format_sse_event(data_str=encode_line(content, allow_nan=True))

    try:
        for chunk in form.first_chunks():
            yield event(chunk | usage)
        output: OutputDelta | None = first
        while output is not None:
            counter.add(output)
            for chunk in form.chunks(output):
                yield event(chunk | usage)
            output = await anext(outputs, None)
        counter.close()
        if includes_usage:
            yield event(form.header() | {"choices": [], "usage": counter.usage})
        yield format_sse_event(data_str="[DONE]")
    except ClientDisconnected:
        return
    except (ApiError, StorageUnavailable) as failure:
        error = failure if isinstance(failure, ApiError) else errors.storage_unavailable(failure)
        yield event(errors.error_body(error.status_code, str(error.detail), error.code))


class _UsageCounter:
    """Counts the tokens of one request; `close`, which must be called, records them however the request ends."""

    def __init__(self, request: Request, prepared: PreparedRequest, outputs: OutputStream) -> None:
        self._meter, self._prepared, self._outputs = context.get_context(request).meter, prepared, outputs
        self.completion_tokens, self._is_closed = 0, False

    def add(self, output: OutputDelta) -> None:
        """Counts the token of an output; the first token ends the measured latency."""
        if output.token is not None:
            if not self.completion_tokens:
                seconds = time.monotonic() - self._prepared.started_at
                self._meter.observe_first_token(self._prepared.deployment.name, seconds)
            self.completion_tokens += 1

    @property
    def usage(self) -> dict[str, int]:
        """The `usage` of the response."""
        return describe_usage(self._prepared.prompt_tokens, self.completion_tokens)

    def close(self) -> None:
        """Ends the sequences, records their usage and returns unused tokens; has no effect when it is called again.

        A request whose prompt the engine has not begun to process has used no tokens.
        """
        if self._is_closed:
            return
        self._is_closed, prepared = True, self._prepared
        self._outputs.close()
        if self._outputs.has_started:
            prepared.tokens.num_used = prepared.prompt_tokens + self.completion_tokens
            self._meter.count(prepared.key, prepared.deployment.name, prepared.prompt_tokens, self.completion_tokens)
        prepared.tokens.close()
