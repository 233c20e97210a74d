"""Chat templates: how a model wants a conversation to be written as one text.

Folders of Hugging Face hold a Jinja2 template, in `chat_template.jinja` or in `tokenizer_config.json`. It is rendered
as `transformers` renders it, in Jinja2's sandbox, since a template comes from strangers.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ontogeny.errors import BadInput
from ontogeny.lm.tokenizer_settings import TOKENIZER_CONFIG, read_tokenizer_settings, token_text
from ontogeny.runs.files import write_bytes

TEMPLATE_FILE = "chat_template.jinja"
FURTHER_TEMPLATES, WITH_TOOLS = "additional_chat_templates", "tool_use"
TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """The template of one model.

    Attributes:
        source: Its text.
        source_with_tools: The text of the template for conversations with tools; None where it is the same.
        special_tokens: Texts that the template may name, such as `bos_token`.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], source_with_tools: str | None = None) -> None:
        """Compile a template.

        Args:
            source: The text of the template.
            special_tokens: The attribute.
            source_with_tools: The attribute.

        Raises:
            BadInput: It is no template.
        """
        self.source, self.source_with_tools, self.special_tokens = source, source_with_tools, dict(special_tokens)
        try:
            self._template = self._template_with_tools = _environment().from_string(source)
            if source_with_tools is not None:
                self._template_with_tools = _environment().from_string(source_with_tools)
        except (jinja2.TemplateError, RecursionError) as error:
            raise BadInput(f"the chat template cannot be read: {error}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Write a conversation as one text.

        Args:
            messages: Each with `role` and `content`, in the form of the OpenAI API.
            tools: Descriptions of functions that the model may ask for, in the form of the OpenAI API.
            variables: Further variables of the template, such as `enable_thinking`.
            add_generation_prompt: Whether the text ends with the beginning of the model's answer.

        Raises:
            BadInput: The template refuses the conversation, or fails.
        """
        template = self._template_with_tools if tools else self._template
        try:
            return template.render(
                **self.special_tokens,
                messages=[dict(message) for message in messages],
                tools=list(tools) if tools else None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **(variables or {}),
            )
        except Exception as error:  # a filter raises whatever its input leads to
            raise BadInput(f"the model's chat template refuses this conversation: {error}") from None


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """Read the chat template of a folder; None where it has none.

    Raises:
        BadInput: A file is damaged.
    """
    settings = read_tokenizer_settings(folder)
    source = settings.get("chat_template")
    if isinstance(source, list):  # several templates, by name
        templates = {part.get("name"): part.get("template") for part in source if isinstance(part, dict)}
    else:
        templates = {"default": source}
    paths = {"default": folder / TEMPLATE_FILE, WITH_TOOLS: folder / FURTHER_TEMPLATES / f"{WITH_TOOLS}.jinja"}
    try:
        templates |= {name: path.read_text(encoding="utf-8") for name, path in paths.items() if path.is_file()}
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"a chat template in '{folder}' cannot be read: {error}") from None
    sources = [templates.get("default"), templates.get(WITH_TOOLS)]
    if not all(source is None or isinstance(source, str) for source in sources):
        raise BadInput(f"'{folder / TOKENIZER_CONFIG}' is damaged: its chat template is no text")
    return None if sources[0] is None else ChatTemplate(sources[0], _special_tokens(settings), sources[1])


def write_chat_template(folder: Path, template: ChatTemplate) -> None:
    """Write the files that `read_chat_template` reads, except the special tokens."""
    write_bytes(folder / TEMPLATE_FILE, template.source.encode())
    if template.source_with_tools is not None:
        (folder / FURTHER_TEMPLATES).mkdir()
        write_bytes(folder / FURTHER_TEMPLATES / f"{WITH_TOOLS}.jinja", template.source_with_tools.encode())


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """The texts of special tokens that the settings name."""
    texts = {name: token_text(settings.get(name)) for name in TOKEN_NAMES}
    return {name: text for name, text in texts.items() if text is not None}


class GenerationTag(Extension):
    """The block `{% generation %}`, which marks the model's answers and changes no text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Node | list[Node]:
        """Replaces the block by its content."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja2 with the filters and functions that templates of `transformers` use."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment


def _to_json(content: Any, **settings: Any) -> str:
    """JSON in which characters stand for themselves, unlike that of Jinja2."""
    return json.dumps(content, **{"ensure_ascii": False, **settings})


def _raise(message: str) -> Callable[[], None]:
    """Lets a template refuse a conversation."""
    raise jinja2.TemplateError(message)
