"""What clients may say: the requests of the OpenAI API that are answered here, and ours beside them.

Fields that are not named here are ignored, and null is taken for absent, as existing clients count on.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, StrictInt, StrictStr

MOST_TOKENS = 4096  # to generate in one answer
MOST_CHOICES = 16
MOST_PROMPTS = 256
MOST_STOPS = 16
SEEDS = 2**64


def _whole(text: str) -> str:
    """JSON can name halves of characters, which nobody can write down again."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is no character") from None
    return text


Words = Annotated[StrictStr, AfterValidator(_whole)]
Id = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Stop = Annotated[Words, Field(min_length=1, max_length=1000)]
Prompt = (
    Words
    | Annotated[list[Words], Field(max_length=MOST_PROMPTS)]
    | list[Id]
    | Annotated[list[list[Id]], Field(max_length=MOST_PROMPTS)]
)


class Generation(BaseModel):
    """What both kinds of completions share."""

    model: Words | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=SEEDS)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    learn: bool | None = Field(None, description="Ours: false keeps an online deployment from learning from this")

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def tells_usage(self) -> bool:
        return bool((self.stream_options or {}).get("include_usage"))


class CompletionRequest(Generation):
    prompt: Prompt | None = None
    max_tokens: Annotated[StrictInt, Field(ge=0, le=MOST_TOKENS)] | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    echo: bool | None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Always a list of prompts."""
        prompt = self.prompt
        if prompt is None or isinstance(prompt, str):
            return [prompt or ""]
        if prompt and isinstance(prompt[0], int):
            return [prompt]  # type: ignore[list-item]
        return prompt  # type: ignore[return-value]


class Part(BaseModel):
    """Of a message. Pictures and sounds are refused: an answer that left them out would seem to have seen them."""

    type: Literal["text", "refusal"]
    text: Words | None = None
    refusal: Words | None = None


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Words | list[Part] | None = None

    @property
    def text(self) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text or part.refusal or "" for part in self.content)


class ChatRequest(Generation):
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_tokens: Annotated[StrictInt, Field(ge=1, le=MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1, le=MOST_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None


class ToTokens(BaseModel):
    """What clients ask that count by tokens; they name no model where there is one tokenizer."""

    prompt: Words
    add_special_tokens: bool | None = None
    model: Words | None = None


class ToText(BaseModel):
    tokens: list[Id]
    model: Words | None = None


class Given(BaseModel):
    """A contribution to a line of learning."""

    text: Annotated[Words, Field(min_length=1)]


class GoBack(BaseModel):
    version: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0
    owner: Words | None = Field(None, description="The id of the key whose line it is; by default one's own")


class Fork(BaseModel):
    to: Words = Field(description="The id of the key whose line goes on from here")
    owner: Words | None = Field(None, description="The id of the key whose line it is; by default one's own")


class GoOn(BaseModel):
    """What is said to a text's session, and how it is to go on."""

    prompt: Words = ""
    max_tokens: Annotated[StrictInt, Field(ge=0, le=MOST_TOKENS)] = 16
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    seed: Annotated[StrictInt, Field(ge=0, lt=SEEDS)] | None = None


class Birth(BaseModel):
    seed: Annotated[StrictInt, Field(ge=0, lt=2**31)] = 0


Number = Annotated[float, Field(allow_inf_nan=False)]


class Feedback(BaseModel):
    """What the last action led to: `outcome` names facts, `reward` is short for the only fact of an environment with one."""

    reward: Number | None = None
    outcome: dict[Words, Number] | None = None
    terminated: bool | None = None


class Seen(Feedback):
    """What there is to be seen now, and, where it was not said by feedback before, what the last action led to."""

    observation: Any = Field(description="A whole number, or an array of numbers, as the agent's environment has it")
    first: bool = Field(False, description="A new episode begins with this observation")


def chat_prompt(messages: list[Message]) -> str:
    """A plain template, for models that were never taught one: who speaks, what is said, a blank line."""
    names = {"system": "", "developer": "", "user": "User: ", "assistant": "Assistant: "}
    said = [f"{names.get(message.role, message.role.capitalize() + ': ')}{message.text}\n\n" for message in messages]
    return "".join(said) + "Assistant:"


CHAT_STOPS = ("\n\nUser:",)
