"""Chat templates are rendered as `transformers` renders them; `tests/golden/make_chat.py` wrote the fixture."""

import json
from pathlib import Path

import pytest

from ontogeny.errors import BadInput
from ontogeny.lm.chat_template import ChatTemplate, read_chat_template

FOLDER = Path(__file__).parent / "golden" / "chat"
GOLDEN = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))
MESSAGES = [{"role": "user", "content": "x"}]


def render(folder):
    """The short conversation as the template of a folder writes it."""
    template = read_chat_template(folder)
    assert template is not None
    return template.render(MESSAGES)


@pytest.mark.parametrize("name", GOLDEN["rendered"])
def test_conversations_are_written_as_transformers_writes_them(name):
    template = ChatTemplate((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"), GOLDEN["special_tokens"])
    for conversation, expected in zip(GOLDEN["conversations"], GOLDEN["rendered"][name], strict=True):
        if expected is None:
            with pytest.raises(BadInput, match="refuses this conversation"):
                template.render(**conversation)
        else:
            assert template.render(**conversation) == expected


def test_there_are_ten_templates_and_both_outcomes():
    rendered = [text for texts in GOLDEN["rendered"].values() for text in texts]
    assert len(GOLDEN["rendered"]) == 10 and None in rendered and sum(text is not None for text in rendered) > 40


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{% set _ = messages.append(1) %}",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "{{ 'x'|dictsort }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox_and_its_failure_is_one_sentence(source):
    with pytest.raises(BadInput, match="refuses this conversation"):
        print(ChatTemplate(source, {}).render(MESSAGES))


def test_a_broken_template_is_refused_when_it_is_read(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(BadInput, match="the chat template cannot be read"):
        read_chat_template(tmp_path)


def test_the_template_is_read_from_every_place_where_folders_have_it(tmp_path):
    assert read_chat_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "old {{ bos_token }}", "bos_token": {"content": "<s>"}}))
    assert render(tmp_path) == "old <s>"
    templates = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    config.write_text(json.dumps({"chat_template": templates}))
    assert render(tmp_path) == "d"
    template = read_chat_template(tmp_path)
    assert template is not None and template.render(MESSAGES, tools=[{"type": "function"}]) == "t"
    assert template.render(MESSAGES, tools=[]) == "d"
    config.write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(BadInput, match="its chat template is no text"):
        read_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("new")
    assert render(tmp_path) == "new"
    assert read_chat_template(tmp_path).render(MESSAGES, tools=[{}]) == "new"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("new tools")
    assert read_chat_template(tmp_path).render(MESSAGES, tools=[{}]) == "new tools"
