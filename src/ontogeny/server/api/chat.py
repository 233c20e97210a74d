"""The prompt of a conversation: by the model's own chat template, or by a plain one where it has none."""

import json
from collections.abc import Mapping
from typing import Any

from ontogeny.errors import BadInput
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.tokenizer import begin_prompt
from ontogeny.server.api import errors
from ontogeny.server.api.protocol import ChatRequest, Message
from ontogeny.server.api.tokenizer import encode_text


def tokenize_conversation(model: LanguageModel, body: ChatRequest) -> list[int]:
    """Returns the tokens of a conversation, which end where the answer begins.

    Raises:
        ApiError: A 400 error if the model's template refuses the conversation, or if the request has fields that only
            a template can use and the model has none.
    """
    if model.chat_template is None:
        if body.needs_template is not None:
            raise errors.bad_request(
                f"{body.needs_template}: only a model with a chat template of its own can use it", body.needs_template
            )
        return begin_prompt(model.tokenizer, encode_text(model.tokenizer, plain_prompt(body.messages)))
    try:
        text = model.chat_template.render(
            [_template_message(message) for message in body.messages],
            tools=body.tools,
            variables=body.chat_template_kwargs,
        )
    except BadInput as error:
        raise errors.bad_request(str(error), "messages") from None
    tokens = encode_text(model.tokenizer, text)  # the template writes the tokens that begin a prompt itself
    if not tokens:
        raise errors.bad_request("the model's chat template makes an empty prompt of this conversation", "messages")
    return tokens


def _template_message(message: Message) -> dict[str, Any]:
    """A message as chat templates expect it."""
    calls = [_template_call(call) for call in message.tool_calls or ()]
    fields = {"name": message.name, "tool_calls": calls, "tool_call_id": message.tool_call_id}
    return {"role": message.role, "content": message.text} | {name: field for name, field in fields.items() if field}


def _template_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call of a function, whose arguments the OpenAI API writes as JSON in a string and templates as an object."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        arguments = function["arguments"]
    return {**call, "function": {**function, "arguments": arguments}}


def plain_prompt(messages: list[Message]) -> str:
    """Converts a conversation to one text by a plain template, for models without a template of their own."""
    return "".join(f"{_speaker(message)}{message.text}\n\n" for message in messages) + "Assistant:"


def _speaker(message: Message) -> str:
    """The beginning of a message in `plain_prompt`; the instructions of the system have none."""
    if message.name:
        return f"{message.role.capitalize()} ({message.name}): "
    return "" if message.role in ("system", "developer") else f"{message.role.capitalize()}: "
