"""Request bodies: the supported part of the OpenAI API, and the routes of ontogeny beside it.

Unknown fields are ignored, and named in the response; null means absent, as clients of the OpenAI API expect. Known
fields that are not supported are refused: see `unsupported`. The routes of ontogeny reject unknown fields,
and name the new name of a field that was renamed.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StrictInt, StrictStr, model_validator

from ontogeny.renamed import renamed_hint
from ontogeny.seeds import MAX_SEED, MIN_SAMPLING_SEED, NUM_SAMPLING_SEEDS
from ontogeny.server.api.unsupported import DefaultOnly, UnsupportedFields

MAX_TOKENS = 4096  # per answer
MAX_CHOICES = 16
MAX_PROMPTS = 256
MAX_STOPS = 16
MAX_BIASES = 1024
MAX_FIELDS = 1024  # of an object whose fields the client names
MAX_INTEGER = 2**63  # exclusive; of the database


def _check_encodable(text: str) -> str:
    """Rejects text with half a surrogate pair, which JSON can name and no encoding can represent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half a surrogate pair, which is not a character") from None
    return text


def _limit_fields(value: Any) -> Any:
    """Rejects an object with very many fields, of which each could be an error."""
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        raise ValueError(f"the object has more than {MAX_FIELDS} fields")
    return value


Text = Annotated[StrictStr, AfterValidator(_check_encodable)]
TokenId = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Stop = Annotated[Text, Field(min_length=1, max_length=1000)]
# Lists end with their first invalid element: an error for each of a million elements would take a second.
Tokens = Annotated[list[TokenId], Field(fail_fast=True)]
Prompt = (
    Text
    | Annotated[list[Text], Field(fail_fast=True, max_length=MAX_PROMPTS)]
    | Tokens
    | Annotated[list[Tokens], Field(fail_fast=True, max_length=MAX_PROMPTS)]
)
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class StreamOptions(BaseModel):
    """What a stream holds beside the text. A stream is never obfuscated."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: Annotated[Any, DefaultOnly(False)] = None


class JsonSchemaFormat(BaseModel):
    """A JSON schema with its name."""

    definition: dict[str, Any] = Field({}, alias="schema", description="Any JSON value if it is empty.")
    name: Text | None = None
    description: Text | None = None
    strict: bool | None = Field(None, description="An answer has the schema in any case.")


class AnswerFormat(BaseModel):
    """The form that an answer has."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @property
    def constraint(self) -> dict[str, Any] | None:
        """The JSON schema of an answer; None for any text."""
        if self.type == "json_schema" and self.json_schema is not None:
            return self.json_schema.definition
        return {"type": "object"} if self.type == "json_object" else None

    @model_validator(mode="after")
    def check_schema(self) -> Self:
        """Raises an error if the schema is missing."""
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("the type json_schema requires the field json_schema")
        return self


class CompletionFields(UnsupportedFields):
    """The common fields of completions and chat completions."""

    model: Text | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[StrictInt, Field(ge=MIN_SAMPLING_SEED, lt=NUM_SAMPLING_SEEDS)] | None = None
    stop: Stop | Annotated[list[Stop], Field(fail_fast=True, max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: AnswerFormat | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIASES), BeforeValidator(_limit_fields)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1, lt=2**31)] | None = Field(
        None, description="Extension of vLLM: sample from this many of the most probable tokens; 0 or -1 for all."
    )
    min_tokens: Annotated[StrictInt, Field(ge=0, le=MAX_TOKENS)] | None = Field(
        None, description="Extension of vLLM: neither the end token nor a stop string ends an answer before."
    )
    learn: bool | None = Field(
        None, description="Extension of ontogeny: if false, an online deployment does not learn from this request."
    )

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def num_candidates(self) -> int:
        """The number of answers that are generated for each prompt; those that are not returned count as usage."""
        return self.n or 1


class CompletionRequest(CompletionFields):
    """The body of `/v1/completions`."""

    prompt: Prompt | None = None
    max_tokens: Annotated[StrictInt, Field(ge=0, le=MAX_TOKENS)] | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_completion_tokens: Annotated[Any, DefaultOnly()] = None
    messages: Annotated[Any, DefaultOnly()] = None
    top_logprobs: Annotated[Any, DefaultOnly()] = None

    @property
    def num_candidates(self) -> int:
        """See `CompletionFields.num_candidates`."""
        return self.best_of or self.n or 1

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list of texts or of token lists."""
        prompt = self.prompt
        if prompt is None or isinstance(prompt, str):
            return [prompt or ""]
        if prompt and isinstance(prompt[0], int):
            return [prompt]  # type: ignore[list-item]
        return prompt  # type: ignore[return-value]


class MessagePart(BaseModel):
    """A part of a message. Images and audio are rejected, because an answer that ignored them would mislead."""

    type: Literal["text", "refusal"]
    text: Text | None = None
    refusal: Text | None = None


class Message(BaseModel):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | Annotated[list[MessagePart], Field(fail_fast=True)] | None = None
    name: Annotated[Text, Field(max_length=64)] | None = None
    refusal: Text | None = None  # of an assistant, instead of a content
    audio: Annotated[Any, DefaultOnly()] = None
    function_call: Annotated[Any, DefaultOnly()] = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: Annotated[Text, Field(max_length=256)] | None = None

    @property
    def text(self) -> str:
        """The text of all parts."""
        if self.content is None or isinstance(self.content, str):
            return self.content or self.refusal or ""
        return "".join(part.text or part.refusal or "" for part in self.content)


class ChatRequest(CompletionFields):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=1000)]
    max_tokens: Annotated[StrictInt, Field(ge=1, le=MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1, le=MAX_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    best_of: Annotated[Any, DefaultOnly(1)] = None
    echo: Annotated[Any, DefaultOnly(False)] = None
    prompt: Annotated[Any, DefaultOnly()] = None
    tools: list[dict[str, Any]] | None = Field(
        None, max_length=128, description="Functions that the model's chat template describes to it."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Further variables of the model's chat template, such as enable_thinking."
    )

    @property
    def needs_template(self) -> str | None:
        """The field that only a model with a chat template of its own can use, if the request has one."""
        if self.tools:
            return "tools"
        if self.chat_template_kwargs:
            return "chat_template_kwargs"
        return "messages.tool_calls" if any(message.tool_calls for message in self.messages) else None

    @property
    def chat_stops(self) -> list[str]:
        """The strings with which the next message of a user would begin in the plain template."""
        is_named = any(message.name for message in self.messages if message.role == "user")
        return ["\n\nUser:", "\n\nUser ("] if is_named else ["\n\nUser:"]


class TokenizeRequest(BaseModel):
    """The body of `/tokenize`, as vLLM defines it; the model is optional where all models share one tokenizer."""

    prompt: Text
    add_special_tokens: bool | None = None
    model: Text | None = None


class DetokenizeRequest(BaseModel):
    """The body of `/detokenize`, as vLLM defines it."""

    tokens: Tokens
    model: Text | None = None


class OntogenyRequest(BaseModel, extra="forbid"):
    """A body of a route that the OpenAI API does not have; an unknown field is an error."""

    @model_validator(mode="before")
    @classmethod
    def reject_old_names(cls, body: Any) -> Any:
        """Raises an error that names the new name of the first field with an old name."""
        for name in body if isinstance(body, dict) else ():
            if name not in cls.model_fields and (hint := renamed_hint("field", name)) is not None:
                raise ValueError(hint)
        return body


class ExampleRequest(OntogenyRequest):
    """A text to learn from."""

    text: Annotated[Text, Field(min_length=1)]


class RollbackRequest(OntogenyRequest):
    """The version that becomes the current one."""

    version: Annotated[StrictInt, Field(ge=0, lt=MAX_INTEGER)] = 0
    owner_key: Text | None = Field(None, description="The id of the key that owns the branch; the caller's by default.")


class ForkRequest(OntogenyRequest):
    """The branch that continues from another one."""

    target_key: Text = Field(description="The id of the key whose branch is replaced.")
    owner_key: Text | None = Field(None, description="The id of the key that owns the source; the caller's by default.")


class ContinuationRequest(OntogenyRequest):
    """A prompt that is appended to the text of a session, and how its continuation is generated."""

    prompt: Text = ""
    max_tokens: Annotated[StrictInt, Field(ge=0, le=MAX_TOKENS)] = 16
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    seed: Annotated[StrictInt, Field(ge=0, lt=NUM_SAMPLING_SEEDS)] | None = None


class LifetimeRequest(OntogenyRequest):
    """How a lifetime of an agent begins."""

    seed: Annotated[StrictInt, Field(ge=0, le=MAX_SEED)] = 0


class FeedbackRequest(OntogenyRequest):
    """The consequences of the last action."""

    reward: Number | None = Field(None, description="The outcome feature of an environment that has only one.")
    outcome: Annotated[dict[Text, Number], BeforeValidator(_limit_fields)] | None = Field(
        None, description="Outcome features by name; absent ones are 0."
    )
    terminated: bool | None = Field(None, description="Whether the action ended the episode; false at a time limit.")


class ObservationRequest(FeedbackRequest):
    """An observation, with the consequences of the last action unless they were sent before."""

    observation: Any = Field(description="A whole number or an array of numbers, as in the agent's environment.")
    first: bool = Field(False, description="Whether a new episode begins with this observation.")
    final_observation: Any = Field(None, description="Where an episode began: the observation that ended the last one.")


def user_text(messages: list[Message]) -> str:
    """Returns the text of the user in a conversation."""
    return "\n\n".join(message.text for message in messages if message.role == "user")
