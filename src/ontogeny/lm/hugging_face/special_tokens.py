"""Which tokens of a Hugging Face folder begin a document, and which end an answer."""

from pathlib import Path
from typing import Any

from ontogeny.errors import BadInput
from ontogeny.lm.hugging_face.config_file import CONFIG
from ontogeny.lm.tokenizer import END, SpecialTokens
from ontogeny.lm.tokenizer_settings import read_optional_json, read_tokenizer_settings, token_text

GENERATION_CONFIG = "generation_config.json"


def read_special_tokens(folder: Path) -> SpecialTokens:
    """Read the special tokens from the settings of the tokenizer, `generation_config.json` and `config.json`.

    Raises:
        BadInput: A file is damaged.
    """
    settings = read_tokenizer_settings(folder)
    generation, model = read_optional_json(folder / GENERATION_CONFIG), read_optional_json(folder / CONFIG)
    end_tokens = _token_numbers(folder / GENERATION_CONFIG, generation.get("eos_token_id"))
    end_tokens = end_tokens or _token_numbers(folder / CONFIG, model.get("eos_token_id"))
    names = {name: token_text(settings.get(f"{name}_token")) for name in ("bos", "eos")}
    return SpecialTokens(names["bos"], names["eos"] or END, end_tokens)


def _token_numbers(path: Path, numbers: Any) -> tuple[int, ...]:
    """One number or several of them."""
    listed = numbers if isinstance(numbers, list) else [] if numbers is None else [numbers]
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in listed):
        raise BadInput(f"'{path}' is damaged: eos_token_id is {numbers!r}")
    return tuple(number for number in listed if number >= 0)
