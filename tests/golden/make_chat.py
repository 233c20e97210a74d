"""Writes `chat/golden.json`: conversations as Hugging Face's transformers renders them with each template in `chat/`.

`make golden` runs this script in a virtual environment of its own. `tests/test_chat_template.py` reads its file.
The templates are this project's own; between them they use the statements that the templates of common models use.
"""

import json
from pathlib import Path
from typing import Any

from make_models import byte_level_tokenizer

FOLDER = Path(__file__).parent / "chat"
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Looks up <b>words</b> & their meanings – 'quoted'.",
            "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
        },
    }
]
CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Name a color."}]},
    {
        "messages": [
            {"role": "system", "content": "  Answer briefly.  \n"},
            {"role": "user", "content": "naïve café – 中文?"},
            {"role": "assistant", "content": "Yes.\n"},
            {"role": "user", "content": "Why <b>so</b>?"},
        ]
    },
    {"messages": [{"role": "user", "content": "What is an ibis?"}], "tools": TOOLS},
    {
        "messages": [
            {"role": "user", "content": "Look it up."},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"type": "function", "function": {"name": "look_up", "arguments": {"word": "ibis", "n": 1}}}
                ],
            },
            {"role": "tool", "content": "a bird"},
        ],
        "tools": TOOLS,
    },
    {
        "messages": [{"role": "user", "content": "Think."}],
        "variables": {"enable_thinking": False},
        "add_generation_prompt": False,
    },
]


def main() -> None:
    """Writes the file."""
    tokenizer = byte_level_tokenizer(280)
    rendered: dict[str, list[str | None]] = {}
    for path in sorted(FOLDER.glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        rendered[path.stem] = []
        for conversation in CONVERSATIONS:
            try:
                text = tokenizer.apply_chat_template(
                    conversation["messages"],
                    tools=conversation.get("tools"),
                    chat_template=template,
                    add_generation_prompt=conversation.get("add_generation_prompt", True),
                    tokenize=False,
                    **conversation.get("variables", {}),
                )
            except Exception:  # the template refuses the conversation
                text = None
            rendered[path.stem].append(text)
    golden = {
        "special_tokens": {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token},
        "conversations": CONVERSATIONS,
        "rendered": rendered,
    }
    (FOLDER / "golden.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
