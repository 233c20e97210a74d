"""A model's tokenizer, for clients that count and cut by tokens: `lm_eval` asks for these routes, as vLLM has them."""

import asyncio
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request

from ontogeny.errors import BadInput
from ontogeny.lm.tokenizer import END, Tokenizer, decode
from ontogeny.server.api import errors as faults
from ontogeny.server.api import protocol
from ontogeny.server.api.context import caller, language, service, take
from ontogeny.server.deployments import LanguageDeployment
from ontogeny.server.keys import Key

router = APIRouter(responses=faults.DOCUMENTED)
Caller = Annotated[Key, Depends(caller)]
MOST_CHARACTERS = 1 << 20
LONG = 10_000  # characters from which on tokenizing is no work for the loop that answers everybody


async def prompt_tokens(made: LanguageDeployment, prompt: str | list[int]) -> list[int]:
    """A prompt's tokens; of an empty one the end token, which stands before every document."""
    tokenizer = made.model.tokenizer
    if isinstance(prompt, str):
        found = await _off_the_loop(encoded, tokenizer, prompt)
    else:
        found = _checked(tokenizer, prompt, "prompt")
    if not found:
        if tokenizer.end is None:
            raise faults.bad("the prompt is empty", "prompt")
        found = [tokenizer.end]
    return found


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    if len(text) > MOST_CHARACTERS:
        raise faults.bad(f"a prompt has at most {MOST_CHARACTERS} characters", "prompt")
    try:
        return np.asarray(tokenizer.encode(text)).tolist()
    except BadInput as error:
        raise faults.bad(str(error), "prompt") from None


@router.post("/tokenize")
async def tokenize(request: Request, body: protocol.ToTokens, key: Caller) -> dict[str, Any]:
    """A text's tokens; the name of the end token in it stands for that token, whatever the tokenizer."""
    made = _meant(request, body.model)
    take(request, key)
    tokens = await _off_the_loop(_with_ends, made.model.tokenizer, body.prompt)
    return {"tokens": tokens, "count": len(tokens), "max_model_len": made.engine.max_sequence_length}


@router.post("/detokenize")
async def detokenize(request: Request, body: protocol.ToText, key: Caller) -> dict[str, Any]:
    """The text of tokens; bytes that make no character are shown as U+FFFD."""
    made = _meant(request, body.model)
    take(request, key)
    return {"prompt": decode(made.model.tokenizer, _checked(made.model.tokenizer, body.tokens, "tokens"))}


@router.get("/tokenizer_info")
def tokenizer_info(request: Request, key: Caller, model: str | None = None) -> dict[str, Any]:
    """Which token stands between documents."""
    end = _meant(request, model).model.tokenizer.end
    return {"eos_token": None if end is None else END, "bos_token": None}


def _meant(request: Request, name: str | None) -> LanguageDeployment:
    """The named model; without a name the first one, if all have its tokenizer, since these clients name none."""
    texts = [made for made in service(request).deployments.by_name.values() if isinstance(made, LanguageDeployment)]
    if name is None and texts:
        if any(made.model.tokenizer is not texts[0].model.tokenizer for made in texts):
            raise faults.bad("there are models with other tokenizers: name one", "model")
        name = texts[0].name
    return language(request, name)


def _with_ends(tokenizer: Tokenizer, text: str) -> list[int]:
    parts = [text] if tokenizer.end is None else text.split(END)
    first, *others = [encoded(tokenizer, part) for part in parts]
    return first + [token for part in others for token in (tokenizer.end, *part) if token is not None]


def _checked(tokenizer: Tokenizer, tokens: list[int], param: str) -> list[int]:
    if any(token >= tokenizer.size for token in tokens):
        raise faults.bad(f"token ids must be below {tokenizer.size}", param)
    return tokens


async def _off_the_loop(work: Any, tokenizer: Tokenizer, text: str) -> list[int]:
    return await asyncio.to_thread(work, tokenizer, text) if len(text) > LONG else work(tokenizer, text)
