"""Pydantic models from the data of a user, with one sentence that names the place of the first mistake.

Every spec, plan and setting that a user writes passes through `validate`. Not imported by the command line before a
command runs.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from ontogeny.errors import BadInput
from ontogeny.plugins import suggest_names
from ontogeny.renamed import renamed_hint
from ontogeny.seeds import check_seed

Model = TypeVar("Model", bound=BaseModel)


def _check_seed(seed: object) -> int:
    """A seed as `check_seed` takes it; pydantic puts the subject before the message of a `ValueError`."""
    try:
        return check_seed(seed, "")
    except BadInput as error:
        raise ValueError(str(error)) from None


Seed = Annotated[int, BeforeValidator(_check_seed)]


class FrozenModel(BaseModel):
    """Base of all specs: immutable, without unknown keys, no conversion of texts or truth values to numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def validate(model: type[Model], data: object, place: str, renamed_kind: str | None = None) -> Model:
    """Build a model from plain data such as JSON, TOML or the options of a command.

    Args:
        model: The class to build.
        data: A mapping of its keys, or whatever its validators accept.
        place: The name of the table, as messages show it: `run` gives "unknown key 'sed' in [run]".
        renamed_kind: A key of `renamed.TABLES` in which an unknown key is looked up.

    Raises:
        BadInput: The data do not fit; the message is one sentence about the first mistake.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        # A misspelled key is often also a missing one; the misspelling is reported.
        mistake = next((mistake for mistake in mistakes if mistake["type"] == "extra_forbidden"), mistakes[0])
        raise BadInput(_sentence(mistake, model, place, renamed_kind)) from None


def _sentence(mistake: ErrorDetails, model: type[BaseModel], place: str, renamed_kind: str | None) -> str:
    """The message about one mistake."""
    *tables, last = mistake["loc"] or ("",)
    table, key = ".".join([place, *map(str, tables)]), str(last)
    entry = f"'{key}' in [{table}]" if key else f"[{place}]"
    kind, value = mistake["type"], mistake["input"]
    if kind == "extra_forbidden":
        hint = renamed_hint(renamed_kind, key) if renamed_kind else None
        return f"unknown key {entry}" + (f": {hint}" if hint else suggest_names(key, _keys_at(model, tables)))
    if kind == "missing":
        return f"[{table}] lacks the key '{key}'"
    if kind in ("model_type", "model_attributes_type", "dict_type", "mapping_type"):
        return f"[{'.'.join([place, *map(str, mistake['loc'])])}] must be a table of keys, not {shorten(value)}"
    if kind == "value_error":
        message = mistake["msg"].removeprefix("Value error, ")
        return f"{entry}: {message}" if message.startswith("'") else f"{entry} {message}"
    if kind == "too_short":
        limits = mistake.get("ctx", {})
        return f"{entry} has too few entries: at least {limits['min_length']}, not {limits['actual_length']}"
    if kind == "tuple_type":
        return f"{entry} must be a list, not {shorten(value)}"
    rule = mistake["msg"].removeprefix("Input should be ").replace("valid integer", "whole number")
    return f"{entry} must be {rule}, not {shorten(value)}"


def shorten(value: object) -> str:
    """A value as Python writes it, at most 60 characters long, for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys_at(model: type[BaseModel], tables: Sequence[int | str]) -> list[str]:
    """The keys that a model allows in a nested table, which is named by the keys that lead to it."""
    fields: Mapping[str, Any] = model.model_fields
    for table in tables:
        annotation = fields[table].annotation if table in fields else None
        for inner in (annotation, *get_args(annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                fields = inner.model_fields
    return list(fields)
