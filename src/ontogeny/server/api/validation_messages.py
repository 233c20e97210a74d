"""One sentence for each error that pydantic can report about a request."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.datastructures import Headers

NOT_AN_OBJECT = "the value is not an object"
NO_NUMBER, NO_WHOLE_NUMBER = "the value is not a number", "the value is not a whole number"
NO_TRUTH_VALUE = "the value is neither true nor false"
MESSAGES = {  # type of the error -> message, with the fields of its context
    "bool_parsing": NO_TRUTH_VALUE,
    "bool_type": NO_TRUTH_VALUE,
    "dict_too_long": "the object has more than {max_length} fields",
    "dict_too_short": "the object has fewer than {min_length} fields",
    "dict_type": NOT_AN_OBJECT,
    "extra_forbidden": "there is no such field",
    "finite_number": "the number is not finite",
    "float_parsing": NO_NUMBER,
    "float_type": NO_NUMBER,
    "greater_than": "the number is not greater than {gt}",
    "greater_than_equal": "the number is less than {ge}",
    "int_from_float": NO_WHOLE_NUMBER,
    "int_parsing": NO_WHOLE_NUMBER,
    "int_parsing_size": "the number has too many digits",
    "int_type": NO_WHOLE_NUMBER,
    "json_invalid": "the body is not JSON at character {position}",
    "less_than": "the number is not less than {lt}",
    "less_than_equal": "the number is greater than {le}",
    "list_type": "the value is not a list",
    "literal_error": "the value is not {expected}",
    "missing": "the field is missing",
    "model_attributes_type": NOT_AN_OBJECT,
    "model_type": NOT_AN_OBJECT,
    "recursion_loop": "the value is nested too deeply",
    "string_too_long": "the text has more than {max_length} characters",
    "string_too_short": "the text has fewer than {min_length} characters",
    "string_type": "the value is not a text",
    "string_unicode": "the text holds half a surrogate pair, which is not a character",
    "too_long": "the list has more than {max_length} elements",
    "too_short": "the list has fewer than {min_length} elements",
    "value_error": "{error}",  # of a validator of this package
}
OTHER_ERROR = "the value is invalid"
MAX_NAME_LENGTH = 100  # characters of a field that the client named


def describe_validation_errors(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Chooses the most helpful of the errors that pydantic reports for a request.

    Pydantic reports an error for every alternative type of a field. Where one alternative has the right type but an
    invalid content, that error is chosen; otherwise the field has none of its types.

    Args:
        errors: The errors as pydantic lists them; `loc` begins with "body", "query" or "path".

    Returns:
        The path of the field, or an empty text for the whole request, and the message.
    """
    alternatives = [error for error in errors if error["loc"][:2] == errors[0]["loc"][:2]]
    right_type = [error for error in alternatives if not error["type"].endswith("_type")] or alternatives
    error = max(right_type, key=lambda error: len(error["loc"]))
    place, kind = error["loc"], error["type"]
    if kind in ("too_long", "too_short"):  # pydantic calls a text that another validator has checked a value
        prefixes = {"Value": "string_", "Dictionary": "dict_"}
        kind = prefixes.get(error["ctx"]["field_type"], "") + kind
    message = MESSAGES.get(kind, OTHER_ERROR).format(**error.get("ctx", {}) | {"position": place[-1]})
    if error["type"].endswith("_type") and len(alternatives) > 1:
        place, message = place[:2], "the value has none of the accepted types"
    names = [part[:MAX_NAME_LENGTH] for part in place[1:] if isinstance(part, str) and part.isidentifier()]
    return ".".join(names), message


def describe_media_type(headers: Headers) -> str | None:
    """Returns a sentence if the content of a request is declared as something else than JSON, and None otherwise."""
    header = headers.get("content-type", "")
    media_type = header.partition(";")[0].strip().lower()
    if media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json")):
        return None
    declared = f"not '{media_type[:MAX_NAME_LENGTH]}'" if media_type else "which is missing"
    return f"the body must be JSON with the header 'Content-Type: application/json', {declared}"
