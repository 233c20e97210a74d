"""Routes of tokenizers, for clients that count tokens; `lm_eval` uses them, in the form that vLLM defines."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ontogeny.errors import BadInput
from ontogeny.lm.tokenizer import Tokenizer, begin_prompt, decode
from ontogeny.server.api import context, errors
from ontogeny.server.api.bodies import BodyRoute, compute
from ontogeny.server.api.context import Caller, LimitedCaller
from ontogeny.server.api.protocol import DetokenizeRequest, TokenizeRequest
from ontogeny.server.deployment_kinds import LanguageDeployment

router = APIRouter(route_class=BodyRoute, responses=errors.RESPONSES)
MAX_CHARACTERS = 1 << 20
Prompts = Sequence[str] | Sequence[list[int]]
Result = TypeVar("Result")


async def tokenize_prompts(tokenizer: Tokenizer, prompts: Prompts) -> list[list[int]]:
    """Returns the tokens of each prompt; of an empty prompt the token that begins a document."""
    return await compute(_map_prompts, _tokenize_prompt, tokenizer, prompts, size=sum(map(len, prompts)))


async def prompt_texts(tokenizer: Tokenizer, prompts: Prompts) -> list[str]:
    """Returns the text of each prompt, whose tokens `tokenize_prompts` has checked."""
    return await compute(_map_prompts, _prompt_text, tokenizer, prompts, size=sum(map(len, prompts)))


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the tokens of a text; raises a 400 error if it is too long or cannot be encoded."""
    if len(text) > MAX_CHARACTERS:
        raise errors.bad_request(f"a prompt can have at most {MAX_CHARACTERS} characters", "prompt")
    try:
        return np.asarray(tokenizer.encode(text)).tolist()
    except BadInput as error:
        raise errors.bad_request(str(error), "prompt") from None


@router.post("/tokenize")
async def tokenize(request: Request, body: TokenizeRequest, key: LimitedCaller) -> Response:
    """Returns the tokens of a text. The name of the end token in the text stands for that token."""
    deployment = _get_tokenizer_model(request, body.model)
    size = len(body.prompt)
    tokens = await compute(_encode_with_ends, deployment.model.tokenizer, body.prompt, size=size)
    max_length = deployment.engine.max_sequence_length
    return await _respond({"tokens": tokens, "count": len(tokens), "max_model_len": max_length}, size)


@router.post("/detokenize")
async def detokenize(request: Request, body: DetokenizeRequest, key: LimitedCaller) -> Response:
    """Returns the text of tokens; bytes that are not valid UTF-8 become U+FFFD."""
    tokenizer = _get_tokenizer_model(request, body.model).model.tokenizer
    size = len(body.tokens)
    tokens = await compute(_check_tokens, tokenizer, body.tokens, "tokens", size=size)
    return await _respond({"prompt": await compute(decode, tokenizer, tokens, size=size)}, size)


@router.get("/tokenizer_info")
def describe_tokenizer(request: Request, key: Caller, model: str | None = None) -> dict[str, Any]:
    """Returns the special tokens of a tokenizer."""
    tokenizer = _get_tokenizer_model(request, model).model.tokenizer
    has_start = bool(tokenizer.prefix)  # otherwise the end token stands before a document too
    return {"eos_token": tokenizer.end_name, "bos_token": tokenizer.start_name if has_start else None}


def _get_tokenizer_model(request: Request, name: str | None) -> LanguageDeployment:
    """The named model, or the first model if all models share its tokenizer, because these clients name none."""
    by_name = context.get_context(request).deployments.by_name
    models = [deployment for deployment in by_name.values() if isinstance(deployment, LanguageDeployment)]
    if name is None and models:
        if any(deployment.model.tokenizer is not models[0].model.tokenizer for deployment in models):
            raise errors.bad_request("the models have different tokenizers, so the request must name a model", "model")
        name = models[0].name
    return context.get_language_model(request, name)


def _encode_with_ends(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the tokens of a text in which the name of the end token stands for that token."""
    if tokenizer.end is None or tokenizer.end_name is None or tokenizer.source_of(tokenizer.end):
        return encode_text(tokenizer, text)  # the tokenizer knows the name, and what precedes a text after it
    parts = text.split(tokenizer.end_name)
    first, *later = [encode_text(tokenizer, part) for part in parts]
    return first + [token for part in later for token in (tokenizer.end, *part) if token is not None]


def _map_prompts(
    function: Callable[[Tokenizer, str | list[int]], Result], tokenizer: Tokenizer, prompts: Prompts
) -> list[Result]:
    """Calls a function on each prompt; many short prompts take as long together as one long prompt."""
    return [function(tokenizer, prompt) for prompt in prompts]


def _tokenize_prompt(tokenizer: Tokenizer, prompt: str | list[int]) -> list[int]:
    """Returns the tokens of a prompt; see `tokenize_prompts`."""
    tokens = encode_text(tokenizer, prompt) if isinstance(prompt, str) else _check_tokens(tokenizer, prompt, "prompt")
    prompt_tokens = begin_prompt(tokenizer, tokens) if isinstance(prompt, str) or not tokens else tokens
    if not prompt_tokens:
        raise errors.bad_request("the prompt is empty", "prompt")
    return prompt_tokens


def _prompt_text(tokenizer: Tokenizer, prompt: str | list[int]) -> str:
    """Returns the text of a prompt."""
    return prompt if isinstance(prompt, str) else decode(tokenizer, prompt)


def _check_tokens(tokenizer: Tokenizer, tokens: list[int], param: str) -> list[int]:
    """Returns the tokens; raises a 400 error if the tokenizer does not have one of them."""
    if max(tokens, default=0) >= tokenizer.size:
        raise errors.bad_request(f"token ids must be below {tokenizer.size}", param)
    return tokens


async def _respond(content: dict[str, Any], size: int) -> Response:
    """The response with a JSON content; see `compute` for the size."""
    return await compute(JSONResponse, content, size=size)
