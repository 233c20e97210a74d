"""Fields that other servers of the OpenAI API support and this one does not.

An answer that ignored them would mislead, so a request is refused unless their values mean what happens anyway. Fields
that have no effect on an answer, or only on its cost, are in `IGNORED`; the documentation lists both.
"""

import json
from typing import Annotated, Any

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

NOT_SUPPORTED = "Not supported; only the default is accepted."
IGNORED = frozenset(
    {
        # of the OpenAI API
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        # of vLLM
        "add_special_tokens",
        "cache_salt",
        "priority",
        "request_id",
    }
)


class DefaultOnly:
    """The annotation of a field that is not supported.

    Args:
        *accepted: The values that mean the default of the field, beside null.
    """

    def __init__(self, *accepted: Any) -> None:
        self.accepted = (None, *accepted)

    def check(self, value: Any) -> Any:
        """Returns an accepted value; raises `ValueError` for every other one."""
        for accepted in self.accepted:
            if isinstance(value, bool) == isinstance(accepted, bool) and value == accepted:
                return value
        values = " or ".join(json.dumps(accepted) for accepted in self.accepted[1:])
        raise ValueError(f"this field is not supported; leave it out{values and ' or send '}{values}")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Pydantic calls it to validate a field."""
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Pydantic calls it to document a field."""
        return {"enum": list(self.accepted), "description": NOT_SUPPORTED}


class UnsupportedFields(BaseModel, extra="allow"):
    """The fields that neither completions nor chat completions support."""

    # of the OpenAI API
    audio: Annotated[Any, DefaultOnly()] = None
    function_call: Annotated[Any, DefaultOnly("none", "auto")] = None
    functions: Annotated[Any, DefaultOnly([])] = None
    modalities: Annotated[Any, DefaultOnly(["text"])] = None
    moderation: Annotated[Any, DefaultOnly()] = None
    reasoning_effort: Annotated[Any, DefaultOnly("none")] = None
    suffix: Annotated[Any, DefaultOnly("")] = None
    tool_choice: Annotated[Any, DefaultOnly("none", "auto")] = None
    tools: Annotated[Any, DefaultOnly([])] = None
    verbosity: Annotated[Any, DefaultOnly("medium")] = None
    web_search_options: Annotated[Any, DefaultOnly()] = None
    # of vLLM
    add_generation_prompt: Annotated[Any, DefaultOnly(True)] = None
    allowed_token_ids: Annotated[Any, DefaultOnly()] = None
    bad_words: Annotated[Any, DefaultOnly([])] = None
    chat_template: Annotated[Any, DefaultOnly()] = None
    chat_template_kwargs: Annotated[Any, DefaultOnly({})] = None
    continue_final_message: Annotated[Any, DefaultOnly(False)] = None
    documents: Annotated[Any, DefaultOnly([])] = None
    guided_choice: Annotated[Any, DefaultOnly()] = None
    guided_grammar: Annotated[Any, DefaultOnly()] = None
    guided_json: Annotated[Any, DefaultOnly()] = None
    guided_regex: Annotated[Any, DefaultOnly()] = None
    ignore_eos: Annotated[Any, DefaultOnly(False)] = None
    include_stop_str_in_output: Annotated[Any, DefaultOnly(False)] = None
    length_penalty: Annotated[Any, DefaultOnly(1)] = None
    logits_processors: Annotated[Any, DefaultOnly([])] = None
    min_p: Annotated[Any, DefaultOnly(0)] = None
    prompt_embeds: Annotated[Any, DefaultOnly()] = None
    prompt_logprobs: Annotated[Any, DefaultOnly()] = None
    repetition_penalty: Annotated[Any, DefaultOnly(1)] = None
    return_token_ids: Annotated[Any, DefaultOnly(False)] = None
    return_tokens_as_token_ids: Annotated[Any, DefaultOnly(False)] = None
    skip_special_tokens: Annotated[Any, DefaultOnly(True)] = None
    spaces_between_special_tokens: Annotated[Any, DefaultOnly(True)] = None
    stop_token_ids: Annotated[Any, DefaultOnly([])] = None
    structured_outputs: Annotated[Any, DefaultOnly()] = None
    truncate_prompt_tokens: Annotated[Any, DefaultOnly()] = None
    use_beam_search: Annotated[Any, DefaultOnly(False)] = None

    @property
    def unknown_fields(self) -> list[str]:
        """The names of fields that the server does not know, in part and shortened where they are many or long."""
        return [name[:64] for name in self.model_extra or () if name not in IGNORED][:16]
