"""Request bodies: the supported part of the OpenAI API, and the routes of ontogeny beside it.

Unknown fields are ignored and null means absent, as clients of the OpenAI API expect. Old names of fields of the
routes of ontogeny are rejected with the new name.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, StrictInt, StrictStr, model_validator

from ontogeny.renamed import renamed_hint

MAX_TOKENS = 4096  # per answer
MAX_CHOICES = 16
MAX_PROMPTS = 256
MAX_STOPS = 16
NUM_SEEDS = 2**64
MAX_INTEGER = 2**63  # exclusive; of the database
CHAT_STOPS = ("\n\nUser:",)


def _check_encodable(text: str) -> str:
    """Rejects text with half a surrogate pair, which JSON can name and no encoding can represent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half a surrogate pair, which is not a character") from None
    return text


Text = Annotated[StrictStr, AfterValidator(_check_encodable)]
TokenId = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Stop = Annotated[Text, Field(min_length=1, max_length=1000)]
Prompt = (
    Text
    | Annotated[list[Text], Field(max_length=MAX_PROMPTS)]
    | list[TokenId]
    | Annotated[list[list[TokenId]], Field(max_length=MAX_PROMPTS)]
)
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class CompletionFields(BaseModel):
    """The common fields of completions and chat completions."""

    model: Text | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=NUM_SEEDS)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
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
        return bool((self.stream_options or {}).get("include_usage"))


class CompletionRequest(CompletionFields):
    """The body of `/v1/completions`."""

    prompt: Prompt | None = None
    max_tokens: Annotated[StrictInt, Field(ge=0, le=MAX_TOKENS)] | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    echo: bool | None = None

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
    content: Text | list[MessagePart] | None = None

    @property
    def text(self) -> str:
        """The text of all parts."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text or part.refusal or "" for part in self.content)


class ChatRequest(CompletionFields):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_tokens: Annotated[StrictInt, Field(ge=1, le=MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1, le=MAX_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None


class TokenizeRequest(BaseModel):
    """The body of `/tokenize`, as vLLM defines it; the model is optional where all models share one tokenizer."""

    prompt: Text
    add_special_tokens: bool | None = None
    model: Text | None = None


class DetokenizeRequest(BaseModel):
    """The body of `/detokenize`, as vLLM defines it."""

    tokens: list[TokenId]
    model: Text | None = None


class OntogenyRequest(BaseModel):
    """A body of a route that the OpenAI API does not have."""

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
    seed: Annotated[StrictInt, Field(ge=0, lt=NUM_SEEDS)] | None = None


class LifetimeRequest(OntogenyRequest):
    """How a lifetime of an agent begins."""

    seed: Annotated[StrictInt, Field(ge=0, lt=2**31)] = 0


class FeedbackRequest(OntogenyRequest):
    """The consequences of the last action."""

    reward: Number | None = Field(None, description="The outcome feature of an environment that has only one.")
    outcome: dict[Text, Number] | None = Field(None, description="Outcome features by name; absent ones are 0.")
    terminated: bool | None = Field(None, description="Whether the action ended the episode; false at a time limit.")


class ObservationRequest(FeedbackRequest):
    """An observation, with the consequences of the last action unless they were sent before."""

    observation: Any = Field(description="A whole number or an array of numbers, as in the agent's environment.")
    first: bool = Field(False, description="Whether a new episode begins with this observation.")


def chat_prompt(messages: list[Message]) -> str:
    """Converts a conversation to one text by a plain template, for models without a template of their own."""
    names = {"system": "", "developer": "", "user": "User: ", "assistant": "Assistant: "}
    turns = [f"{names.get(message.role, message.role.capitalize() + ': ')}{message.text}\n\n" for message in messages]
    return "".join(turns) + "Assistant:"
