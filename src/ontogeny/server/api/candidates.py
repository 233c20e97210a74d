"""How the answers to a request are sampled, from the fields of its body."""

import asyncio
import os

from ontogeny.engine.grammar import JsonConstraint, compile_json_schema
from ontogeny.engine.sampling import (
    FORBIDDING_BIAS,
    LogitAdjustments,
    SamplingParams,
    derive_seed,
    make_adjustments,
)
from ontogeny.errors import BadInput
from ontogeny.lm.tokenizer import Tokenizer
from ontogeny.server.api import errors
from ontogeny.server.api.protocol import CompletionFields


def check_choices(body: CompletionFields) -> None:
    """Raises an error if the best of more candidates than choices cannot be returned."""
    n = body.n or 1
    if body.num_candidates < n:
        raise errors.bad_request(f"best_of must be at least n, which is {n}", "best_of")
    if body.num_candidates > n and body.stream:
        raise errors.bad_request("best_of above n cannot be streamed: the best is known only at the end", "best_of")


def make_sampling_params(body: CompletionFields) -> list[SamplingParams]:
    """Returns how each candidate of one prompt is drawn.

    With a seed, each prompt of a request has the answers of a request of its own; without one, all answers differ.
    """
    seed = int.from_bytes(os.urandom(8), "little") if body.seed is None else body.seed
    temperature = 1.0 if body.temperature is None else body.temperature
    top_p, top_k = 1.0 if body.top_p is None else body.top_p, max(body.top_k or 0, 0)
    return [
        SamplingParams(temperature, top_p, derive_seed(seed, number), top_k) for number in range(body.num_candidates)
    ]


async def make_logit_adjustments(
    body: CompletionFields, tokenizer: Tokenizer, vocab_size: int, max_tokens: int
) -> LogitAdjustments | None:
    """Returns how the logits of each answer are adjusted, if they are.

    Args:
        body: The request.
        tokenizer: The tokenizer of the model.
        vocab_size: Logits of the model, which may be more than the tokens of the tokenizer.
        max_tokens: The most tokens of one answer.

    Raises:
        ApiError: A biased token does not exist, every token is excluded, `min_tokens` exceeds `max_tokens`, or the
            schema of an answer cannot be used.
    """
    min_tokens, logit_bias = body.min_tokens or 0, {}
    if min_tokens > max_tokens:
        message = f"min_tokens is {min_tokens}, more than the {max_tokens} tokens that an answer may have"
        raise errors.bad_request(message, "min_tokens")
    for name, bias in (body.logit_bias or {}).items():
        if not (name.isascii() and name.isdecimal()) or len(name) > 10 or int(name) >= tokenizer.size:
            message = f"logit_bias: {name[:20]!r} is not one of the {tokenizer.size} tokens, 0 to {tokenizer.size - 1}"
            raise errors.bad_request(message, "logit_bias")
        logit_bias[int(name)] = bias
    num_excluded = sum(bias <= FORBIDDING_BIAS for bias in logit_bias.values())
    if num_excluded + bool(min_tokens and tokenizer.end is not None) >= vocab_size:
        raise errors.bad_request("logit_bias: every token is excluded", "logit_bias")
    return make_adjustments(
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=logit_bias,
        min_tokens=min_tokens,
        constraint=await _make_constraint(body, tokenizer),
    )


async def _make_constraint(body: CompletionFields, tokenizer: Tokenizer) -> JsonConstraint | None:
    """Which tokens may come next in an answer of the requested format; compiled on a thread of its own."""
    schema = None if body.response_format is None else body.response_format.constraint
    if schema is None:
        return None
    try:
        return await asyncio.to_thread(compile_json_schema, schema, tokenizer)
    except BadInput as error:
        raise errors.bad_request(f"response_format: {error}", "response_format") from None
