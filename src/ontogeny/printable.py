"""Text of other people for logs and terminals: without control characters, which could forge lines or colors.

Log lines and tables hold names, paths and reasons that a client or another program chose.
"""

import re

KEY = re.compile(r"og-[^\s-]*-[\w-]+", re.IGNORECASE)  # the form of an API key, whether it exists or not
HIDDEN_KEY = "[key]"


def to_printable(text: str, max_length: int | None = None) -> str:
    """Returns a text on one line: what is not printable is written as an escape sequence, such as `\\n`.

    Args:
        text: Any text.
        max_length: Characters that are kept of a longer text; None for all.
    """
    if max_length is not None and len(text) > max_length:
        text = f"{text[:max_length]}..."
    return text if text.isprintable() else "".join(map(_escape, text))


def hide_keys(text: str) -> str:
    """Returns a text in which `[key]` replaces everything that has the form of an API key."""
    return KEY.sub(HIDDEN_KEY, text)


def _escape(character: str) -> str:
    """A character, or its escape sequence if it is not printable."""
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
