"""The settings of a tokenizer in a folder of Hugging Face: names of special tokens, and the chat template."""

from pathlib import Path
from typing import Any

from ontogeny.runs.files import read_json

TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP = "tokenizer_config.json", "special_tokens_map.json"


def read_tokenizer_settings(folder: Path) -> dict[str, Any]:
    """Read `tokenizer_config.json`, and `special_tokens_map.json` where `transformers` reads it.

    That is where the first has no `added_tokens_decoder`; what the second says then counts.

    Raises:
        BadInput: A file is damaged.
    """
    settings = read_optional_json(folder / TOKENIZER_CONFIG)
    if "added_tokens_decoder" in settings:
        return settings
    return settings | read_optional_json(folder / SPECIAL_TOKENS_MAP)


def token_text(token: Any) -> str | None:
    """The text of a special token, which old versions of `transformers` write as an object; None where it is unset."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def read_optional_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an absent file is an empty one."""
    return read_json(path) if path.is_file() else {}
